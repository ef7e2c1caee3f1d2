"""Every command of README and docs is run, as typed.

`COMMANDS` says of each how: a new or changed command, and an entry for none, fail the first test. To
document a command, add its line here. What differs from the documented command is in that line:
`/data` becomes a folder of digits laid out like the data sets, `replace` puts in what the docs leave
to the reader, and `append` adds overrides that make it small enough for one CPU. What was typed stays
in force: the run's own record of its config is compared with it.
"""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detection_datasets import draw_voc
from detection_runs import TWO_STEPS
from digits_on_disk import ATTRIBUTES, OVERLAY
from documented import PAGES, ROOT, documented, lay_out_data
from documented_emoji import EMOJI
from documented_runs import (
    Place,
    converts,
    converts_the_other,
    has_accuracy,
    on_nodes,
    own_images,
    own_pretraining,
    places_lists,
    pretrains,
    report,
    reproduces,
    runs,
    study,
    submits,
    subset_lists,
    voc_lists,
)
from documented_targets import (
    QUICKSTART_TEST,
    all_passed,
    benchmarks,
    fails_without,
    from_the_network,
    installs,
    is_python,
    is_resolved,
    is_run_by_the_gate,
    is_tested_by,
    lint,
    loads_the_trunk,
    quickstart,
    soak,
    suite,
    suite_on_source,
)

from vissl_barlow.checkpoint import save_atomically
from vissl_barlow.resnet import build_trunk

WEIGHTS = "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=resnet50.pth"
CPU = ("config.MACHINE.DEVICE=cpu", "config.DISTRIBUTED.BACKEND=gloo")
VOC07_12 = "voc0712_faster_rcnn_R50_C4_24k"
ONE_PROCESS = "config.DISTRIBUTED.NUM_PROC_PER_NODE=1"
# ResNet-18, an eighth as wide, on 32-pixel views, for one epoch.
SMALL = (
    *CPU,
    "config.OPTIMIZER.num_epochs=1",
    "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=0",
    "config.DATA.TRAIN.TRANSFORMS.0.size=32",
    "config.DATA.NUM_DATALOADER_WORKERS=0",
    "config.DATA.PIN_MEMORY=false",
    "config.BARLOW.CHECK_IMAGES=10",
    "config.MODEL.TRUNK.RESNETS.DEPTH=18",
    "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
    "config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:64,dims:[64,64]}]]",
    "config.LOSS.barlow_loss.embedding_dim=64",
    "config.MODEL.AMP_PARAMS.USE_AMP=false",
)
LIMITED = ("config.DATA.TRAIN.DATA_LIMIT=64", "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=32")
# The digits' own config is small already, but for its length.
SHORT_WITH_PROBE = (
    "config.OPTIMIZER.num_epochs=1",
    "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=0",
    "config.DATA.TRAIN.DATA_LIMIT=256",
)
SHORT = (*SHORT_WITH_PROBE, "config.BARLOW.PROBE.KIND=''")
ONE_EPOCH = (OVERLAY, "config.OPTIMIZER.num_epochs=1", "config.BARLOW.CHECK_IMAGES=10")
# The classes of VOC's stand-in; its labels come in the order of the names.
FEW_SVMS = (
    f"config.SVM.class_names=[{','.join(sorted(ATTRIBUTES))}]",
    "config.SVM.costs.costs_list=[1.0]",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory, digits_on_disk) -> Path:
    folder = tmp_path_factory.mktemp("documented") / "data"
    lay_out_data(folder, digits_on_disk)
    return folder


@pytest.fixture(scope="module")
def trunk(tmp_path_factory) -> Path:
    """A ResNet of the digits overlay's shape, as the authors publish theirs."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("trunk") / "resnet50.pth"
    save_atomically(build_trunk(18, width_multiplier=0.5).state_dict(), path)
    return path


@pytest.fixture
def place(tmp_path, data, trunk, digits_on_disk) -> Place:
    for name in ("resnet50.pth", "checkpoint.torch", "IN"):
        (tmp_path / name).symlink_to(trunk)
    return Place(folder=tmp_path, data=data, digits=digits_on_disk, trunk=trunk)


VOC = (
    WEIGHTS,
    "config.DATA.TRAIN.DATA_PATHS=[lists/train_images.npy]",
    "config.DATA.TRAIN.LABEL_PATHS=[lists/train_labels.npy]",
    "config.DATA.TEST.DATA_PATHS=[lists/test_images.npy]",
    "config.DATA.TEST.LABEL_PATHS=[lists/test_labels.npy]",
    OVERLAY,
    *FEW_SVMS,
)
FOLDERS = (
    WEIGHTS,
    "config.DATA.TRAIN.DATA_PATHS=[{data}/imagenet/train]",
    "config.DATA.TEST.DATA_PATHS=[{data}/imagenet/val]",
    OVERLAY,
)
# Fine-tuning has two milestones, and each wants an epoch.
FINE_TUNING = (
    OVERLAY,
    "config.OPTIMIZER.num_epochs=3",
    "config.OPTIMIZER.param_schedulers.lr.milestones=[1,2]",
    "config.OPTIMIZER.param_schedulers.lr_head.milestones=[1,2]",
    "config.TEST_EVERY_NUM_EPOCH=3",
    "config.CHECKPOINT.CHECKPOINT_FREQUENCY=3",
)


HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None
NO_DETECTRON2 = fails_without(r"Detectron2 in \S+: see docs/detection\.md", HAS_DETECTRON2)
NO_GPU = fails_without("a CUDA device, and torch sees none", torch.cuda.is_available())


# Detectron2: without it the commands say so or are printed; with it, see the end of this file.
def detection(place: Place, command: str) -> None:
    if HAS_DETECTRON2:
        pytest.skip("test_detection_runs_as_documented runs it")
    assert "Detectron2 is not installed" in place.run(place.words(command), status=1)


def table_4(place: Place, command: str) -> None:
    """Printed, not run: VOC with five seeds and COCO with one, each as docs/detection.md has it."""
    lines = place.run([*place.words(command), "--dry-run"]).splitlines()
    (one,) = (text for text in COMMANDS if text.startswith("python -m vissl_barlow.detection "))
    alike = [line.split(" -m ")[1].replace("--resume ", "") for line in lines]
    folder = place.folder.resolve()
    for seed, line in enumerate(alike[:5]):
        voc = f"{folder}/report/{VOC07_12}/seed{seed}"
        expected = one.removeprefix("python -m ").replace("OUTPUT_DIR voc", f"OUTPUT_DIR {voc}")
        expected = expected.replace("SEED 0", f"SEED {seed}")
        assert line.replace(str(place.trunk), "checkpoint.torch") == expected
    assert len(alike) == 6 and "coco_mask_rcnn_R50_C4_1x" in alike[5]


RUNNER = "python -m tools.run_distributed_engines"
PRETRAIN = f"{RUNNER} config=pretrain/vissl_barlow"
IMAGENET = "config.DATA.TRAIN.DATA_PATHS=[/data/imagenet/train]"
REPRODUCE = "python -m vissl_barlow.reproduce"
MAIN_RUN, ONE_GPU = "checkpoints/resnet50_in1k_1000ep", "checkpoints/resnet50_in1k_1000ep_1gpu"
# `SMALL`'s trunk, evaluated.
LINEAR_OF_SMALL = (
    *ONE_EPOCH,
    "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
    "config.MODEL.HEAD.PARAMS=[[barlow_linear,{in_dim:64,num_classes:10}]]",
)
PLAIN_PYTORCH_TEST = "tests/plugin/test_plain_pytorch.py"
PLAIN_PYTORCH, IN_PROCESSES, _ = documented((ROOT / "docs" / "plain-pytorch.md").read_text())
EXPORTS_TEST = "tests/checkpoint/test_exports.py"
DOTS = {" ...": ""}
EVALUATION_FILES = ("train_config.yaml", "checkpoint.torch")

COMMANDS: dict[str, Callable[[Place, str], None]] = {
    # README.md, docs/pretraining.md, docs/one-gpu.md
    "make quickstart": quickstart,
    "prints vissl_barlow 0 training with barlow_loss": (
        is_tested_by(QUICKSTART_TEST, "test_the_quickstart_learns_the_digits_and_draws_it")
    ),
    "make test": suite,
    "prints =============== 0 passed, 0 warnings in 0s (0) ================": all_passed,
    f"{PRETRAIN}/resnet50_in1k_1000ep_1gpu {IMAGENET} config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=256 "
    "config.OPTIMIZER.param_schedulers.lr.auto_lr_scaling.base_value=0.4": (
        pretrains(ONE_GPU, *SMALL, "config.DATA.TRAIN.DATA_LIMIT=512")
    ),
    f"{PRETRAIN}/resnet50_in1k_1000ep_1gpu {IMAGENET} config.BARLOW.CHUNK_SIZE=256 "
    "config.MODEL.ACTIVATION_CHECKPOINTING.USE_ACTIVATION_CHECKPOINTING=false": (
        pretrains(
            ONE_GPU,
            *SMALL,
            "config.DATA.TRAIN.DATA_LIMIT=384",
            "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=384",
        )
    ),
    f"{PRETRAIN}/resnet50_in1k_1000ep_8gpu_24gb {IMAGENET}": (
        pretrains(
            f"{MAIN_RUN}_8gpu_24gb",
            *SMALL,
            *LIMITED,
            "config.DISTRIBUTED.NUM_PROC_PER_NODE=2",
        )
    ),
    f"{PRETRAIN}/resnet50_in1k_1000ep {IMAGENET} config.DISTRIBUTED.NUM_NODES=1 "
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=256": (
        pretrains(
            MAIN_RUN,
            *SMALL,
            "config.DATA.TRAIN.DATA_LIMIT=512",
            "config.DISTRIBUTED.NUM_PROC_PER_NODE=2",
        )
    ),
    f"{PRETRAIN}/resnet50_in1k_1000ep {IMAGENET} "
    "config.DISTRIBUTED.RUN_ID=ADDRESS_OF_NODE_0:29500 node_id=0": (
        on_nodes(
            2,
            *SMALL,
            "config.DATA.TRAIN.DATA_LIMIT=256",
            "config.DISTRIBUTED.NUM_NODES=2",
            ONE_PROCESS,
        )
    ),
    f"{PRETRAIN}/resnet50_in1k_1000ep {IMAGENET} config.SLURM.USE_SLURM=true "
    "config.SLURM.PARTITION=PARTITION": submits(hours=72),
    f"{PRETRAIN}/resnet50_in1k_1000ep {IMAGENET} config.SLURM.USE_SLURM=true "
    "config.SLURM.PARTITION=PARTITION config.SLURM.TIME_HOURS=72": submits(hours=72),
    f"{PRETRAIN}/own_images config.DATA.TRAIN.DATA_PATHS=[FOLDER]": own_pretraining,
    "from vissl_barlow.loss import barlow_twins_loss\n"
    "loss, invariance, redundancy = barlow_twins_loss(z_a, z_b, lambda_=5e-3)": is_python,
    "from vissl_barlow.checkpoint import load_trunk\n"
    "resnet.fc = torch.nn.Identity()\n"
    'resnet.load_state_dict(load_trunk("checkpoint.torch"))': loads_the_trunk,
    "pip install -c constraints.txt .": installs,
    "pip install --no-deps vissl==0.1.6": installs,
    "pip install --no-deps --force-reinstall classy-vision==0.7.0": installs,
    REPRODUCE: runs("--help", prints="table1"),
    "make lint": lint,
    "make bench": benchmarks,
    "make soak": soak,
    "make test VISSL_SOURCE=CHECKOUT": suite_on_source,
    "make test-gpu": NO_GPU,
    "make test-slurm": is_run_by_the_gate,
    "make test-detection": NO_DETECTRON2,
    f"{PRETRAIN}/NAME [config.KEY=VALUE ...]": pretrains(
        "quickstart", *SHORT, replace={"NAME": "digits_quickstart", " [config.KEY=VALUE ...]": ""}
    ),
    IMAGENET: is_resolved,
    "python -m vissl_barlow.views /data/imagenet/train --out views.png": runs(
        leaves=("views.png",)
    ),
    "python -m vissl_barlow.views FOLDER --config pretrain/vissl_barlow/own_images "
    "--out views.png": is_tested_by(
        "tests/views/test_command.py",
        "test_what_own_images_leaves_open_is_chosen_as_a_run_chooses_it",
    ),
    "python -m vissl_barlow.datasets.imagenet100 --imagenet /data/imagenet --out "
    "/data/imagenet-100": is_tested_by(
        "tests/plugin/components/test_small_data_sets.py", "test_imagenet_100_is_a_folder_of_links"
    ),
    # docs/ablations.md
    f"{PRETRAIN}/ablations/only_invariance {IMAGENET} config.DISTRIBUTED.NUM_NODES=1 "
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=256": (
        pretrains("checkpoints/ablations/only_invariance", *SMALL, *LIMITED, ONE_PROCESS)
    ),
    f"{PRETRAIN}/ablations/only_invariance config/pretrain/vissl_barlow=digits_quickstart "
    "config.LOSS.barlow_loss.embedding_dim=512": (
        pretrains("checkpoints/ablations/only_invariance", *SHORT)
    ),
    f"{REPRODUCE} table5 --imagenet /data/imagenet config.DISTRIBUTED.NUM_NODES=1": study(
        "imagenet", *SMALL, *LIMITED, ONE_PROCESS, *(f"--linear={word}" for word in LINEAR_OF_SMALL)
    ),
    f"{REPRODUCE} table5 --data digits": study("digits", *SHORT_WITH_PROBE),
    f"{REPRODUCE} NAME --data digits --seeds 2": study(
        "digits", *SHORT_WITH_PROBE, replace={"NAME": "table5"}
    ),
    f"{REPRODUCE} table5 --data /data/images": is_tested_by(
        "tests/reproduce/test_own_studies.py", "test_an_overlay_goes_onto_own_images"
    ),
    # docs/detection.md
    "pip install ninja 'setuptools<82' wheel": from_the_network,
    "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2": (
        from_the_network
    ),
    f"{REPRODUCE} table4 --checkpoint checkpoint.torch --num-gpus 8": table_4,
    "python -m vissl_barlow.detection --num-gpus 8 --config-file voc0712_faster_rcnn_R50_C4_24k "
    "MODEL.WEIGHTS checkpoint.torch OUTPUT_DIR voc SEED 0": detection,
    "python -m vissl_barlow.checkpoint --to detectron2 IN OUT.pth": converts,
    # docs/evaluation.md
    f"{REPRODUCE} table1 --checkpoint resnet50.pth --imagenet /data/imagenet": (
        reproduces("table1", ("ImageNet linear",), *ONE_EPOCH)
    ),
    f"{REPRODUCE} table2 --checkpoint resnet50.pth --imagenet /data/imagenet "
    "--simclr-lists /data/simclr": reproduces(
        "table2",
        ("1% of the labels", "10% of the labels"),
        *FINE_TUNING,
        prepare=subset_lists,
    ),
    f"{REPRODUCE} table3 --checkpoint resnet50.pth --places205-images /data/places205/images256 "
    "--places205-lists /data/places205/lists --voc07 /data/VOCdevkit/VOC2007 "
    "--inat18 /data/inat18": reproduces(
        "table3",
        ("Places-205", "VOC07", "iNaturalist 2018"),
        *ONE_EPOCH,
        *(f"++{word}" for word in FEW_SVMS),  # of one row; the others have no such keys
        prepare=places_lists,
    ),
    f"{RUNNER} config=benchmark/vissl_barlow/imagenet1k_linear "
    "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=resnet50.pth "
    "config.DATA.TRAIN.DATA_PATHS=[/data/imagenet/train] "
    "config.DATA.TEST.DATA_PATHS=[/data/imagenet/val]": runs(
        *ONE_EPOCH,
        leaves=tuple(f"checkpoints/imagenet1k_linear/{name}" for name in EVALUATION_FILES),
        then=lambda place: has_accuracy(place.folder / "checkpoints" / "imagenet1k_linear"),
    ),
    "python -m vissl_barlow.checkpoint --to torchvision --trunk encoder_k IN OUT": converts_the_other,
    f"{RUNNER} config=benchmark/vissl_barlow/imagenet1k_linear "
    "+config/benchmark/vissl_barlow/overlays=bundled_digits "
    "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=checkpoint.torch config.CHECKPOINT.DIR=linear": runs(
        *ONE_EPOCH[1:], then=lambda place: has_accuracy(place.folder / "linear")
    ),
    "python -m vissl_barlow.checkpoint checkpoint.torch": runs(prints="export it"),
    "python -m vissl_barlow.checkpoint --to safetensors IN OUT.safetensors": converts,
    "python -m vissl_barlow.checkpoint --to onnx IN OUT.onnx": (
        is_tested_by(EXPORTS_TEST, "test_onnxruntime_gives_the_representations")
    ),
    "python -m tools.nearest_neighbor_test config=benchmark/vissl_barlow/imagenet1k_knn ...": runs(
        *FOLDERS, replace=DOTS, leaves=("checkpoints/imagenet1k_knn/knn_res5avg.json",)
    ),
    "python -m tools.train_svm config=benchmark/vissl_barlow/voc07_svm ...": runs(
        *VOC,
        replace=DOTS,
        prepare=voc_lists,
        leaves=("checkpoints/voc07_svm/res5avg/test_ap.json",),
    ),
    "python -m tools.train_svm_low_shot config=benchmark/vissl_barlow/voc07_low_shot_svm ...": runs(
        *VOC,
        "config.SVM.low_shot.k_values=[2]",
        "config.SVM.low_shot.sample_inds=[1]",
        replace=DOTS,
        prepare=voc_lists,
        leaves=("checkpoints/voc07_low_shot_svm/res5avg/test_ap_sample1_k2.npy",),
    ),
    f"{RUNNER} engine_name=extract_features config=benchmark/vissl_barlow/imagenet1k_knn ...": runs(
        *FOLDERS,
        replace=DOTS,
        leaves=("checkpoints/imagenet1k_knn/rank0_chunk0_test_res5avg_features.npy",),
    ),
    "python -m vissl_barlow.datasets.imagenet_subsets": runs(
        *("--names", "{data}/simclr/1percent.txt", "--imagenet", "{data}/imagenet"),
        *("--out", "lists", "--allow-any-count"),
        leaves=("lists/train_images.npy", "lists/train_labels.npy"),
    ),
    "python -m vissl_barlow.datasets.places205": runs(
        *("--images", "{data}/places205/images256", "--lists", "{data}/places205/lists"),
        *("--out", "lists", "--allow-any-count"),
        leaves=("lists/train_images.npy", "lists/val_labels.npy"),
    ),
    "python -m extra_scripts.datasets.create_inaturalist2018_data_files": runs(
        *("-i", "{data}/inat18", "-o", "."), leaves=("train_images.npy", "val_labels.npy")
    ),
    "python -m extra_scripts.datasets.create_voc_data_files": runs(
        *("--data_source_dir", "{data}/VOCdevkit/VOC2007", "--output_dir", "."),
        leaves=("train_images.npy", "test_labels.npy"),
    ),
    f"{REPRODUCE} own --checkpoint resnet50.pth --images /data/images": runs(
        *("--only", "knn"), leaves=("report/own.md",), then=own_images
    ),
    **EMOJI,
    # docs/report.md
    f"{REPRODUCE} report RUNS_DIR": report,
    f"{REPRODUCE} report RUNS_DIR --out report": report,
    # docs/plain-pytorch.md
    "python -m vissl_barlow.checkpoint checkpoint.pth": runs(
        replace={"checkpoint.pth": "checkpoint.torch"}, prints="export it"
    ),
    PLAIN_PYTORCH: is_tested_by(PLAIN_PYTORCH_TEST, "test_its_loop_leaves_the_bits_of_vissls_run"),
    IN_PROCESSES: is_tested_by(PLAIN_PYTORCH_TEST, "test_several_processes_take_the_steps_of_one"),
    # docs/speed.md
    "make bench-gpu": NO_GPU,
    # docs/troubleshooting.md
    "python -m vissl_barlow.checkpoint --to torchvision|timm|vissl|detectron2 IN OUT": converts,
}


def test_each_documented_command_has_its_line_here_and_each_line_its_command():
    found = {item for page in PAGES for item in documented(page.read_text())}
    assert found - set(COMMANDS) == set(), "documented, and nothing here says how they are run"
    assert set(COMMANDS) - found == set(), "in no page any more"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[:80])
def test_documented_command(command, place):
    COMMANDS[command](place, command)


ONE_GPU_FEWER = {"--num-gpus 8": "--num-gpus 1"}


@pytest.mark.detectron2
def test_detection_runs_as_documented(tmp_path, data):
    from detectron2.data.datasets.pascal_voc import CLASS_NAMES
    from torchvision.models import resnet50

    from vissl_barlow.detection import compat  # noqa: F401

    save_atomically(resnet50().state_dict(), tmp_path / "checkpoint.torch")
    draw_voc(tmp_path / "datasets", CLASS_NAMES)
    place = Place(folder=tmp_path, data=data)
    for command, append, result in (
        (
            next(text for text in COMMANDS if COMMANDS[text] is detection),
            [word for override in TWO_STEPS.items() for word in override],
            "voc/results.json",
        ),
        (
            next(text for text in COMMANDS if COMMANDS[text] is table_4),
            ["--only", f"{VOC07_12}/seed1", *map("=".join, TWO_STEPS.items())],
            f"report/{VOC07_12}/seed1/results.json",
        ),
    ):
        words = [*place.words(command, ONE_GPU_FEWER), *append]
        place.run(words, DETECTRON2_DATASETS=str(tmp_path / "datasets"))
        (scores,) = json.loads((tmp_path / result).read_text()).values()
        assert {"AP", "AP50", "AP75"} <= scores["bbox"].keys()
    table = (tmp_path / "report" / "table4.md").read_text()
    # Drawn images, which the paper's number does not stand beside.
    images = "16 train images instead of 16,551, 8 test images instead of 4,952"
    label = rf"VOC07\+12 detection \(checkpoint\.torch, sha256 \w{{12}}\), {images}[^|]*"
    assert re.search(rf"\| {label} \| box AP \|\s+\| \S+ \(1 of 5 runs\) \|", table)
