"""What is refused before any work, in one line; the weights are read, nothing is trained."""

import shutil

import pytest
import torch
import torchvision
from detection_runs import CPU, FPN, SMALL, VOC, build, config
from files_with_code import malicious

from vissl_barlow.checkpoint import CheckpointError, TrunkDepth
from vissl_barlow.detection.config import check_trunk, shipped_configs

pytestmark = pytest.mark.detectron2


@pytest.fixture
def voc_in_place(data, monkeypatch):
    """The drawn VOC, where Detectron2 looks: it read DETECTRON2_DATASETS once, on import."""
    from detectron2.data import MetadataCatalog

    years = {"voc_2007_trainval": 2007, "voc_2012_trainval": 2012, "voc_2007_test": 2007}
    for name, year in years.items():
        metadata = MetadataCatalog.get(name)
        monkeypatch.setitem(metadata.__dict__, "dirname", str(data / f"VOC{year}"))


def refusal(capfd, *arguments) -> str:
    """The line with which the command line refuses these arguments."""
    from vissl_barlow.detection.__main__ import main

    assert main([str(argument) for argument in arguments]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.WEIGHTS", ""), "MODEL.WEIGHTS is empty"),
        (("MODEL.WEIGHTS", "absent.pth"), "absent.pth: no such file"),
        (("MODEL.RESNETS.DEPTH", 101), ".pth: this is a ResNet-50: set MODEL.RESNETS.DEPTH 50"),
        (("MODEL.RESNETS.NORM", "SyncBN"), "'SyncBN', which needs GPUs"),
        (("SOLVER.AMP.ENABLED", "True"), "SOLVER.AMP.ENABLED is True, which needs a GPU"),
        (("INPUT.FORMAT", "BGR"), "set it to 'RGB'"),
        (("DATASETS.TEST", "('voc_2007_val',)"), "voc_2007_val is missing: expected"),
        (("DATASETS.TEST", "('nowhere',)"), "'nowhere' is not registered"),
        (("SOLVER.NO_SUCH_KEY", "1"), "SOLVER.NO_SUCH_KEY"),
        (("SOLVER.BASE_LR", "fast"), "config key: SOLVER.BASE_LR"),
        (("MODEL.ROI_HEADS.NAME", "Nobodys"), "cannot be built: \"No object named 'Nobodys'"),
        (("--resume",), "--resume: flags go before"),
        (("SEED",), "SEED: overrides are pairs, KEY VALUE"),
        (("SOLVER.BASELR", "0.1"), "SOLVER.BASELR 0.1 (is SOLVER.BASE_LR meant?)"),
        (
            ("MODEL.ROI_HEADS.NUM_CLASSES", "80"),
            "NUM_CLASSES 80, but dataset voc_2007_trainval has",
        ),
        (("TEST.AUG.ENABLED", "True"), "TEST.AUG.ENABLED True: nothing here reads it"),
        (("SOLVER.MAX_ITER", "30"), "SOLVER.STEPS (25, 35): the rate would not fall behind"),
        (("SOLVER.WARMUP_ITERS", "41"), "WARMUP_ITERS 41 is longer than the training, SOLVER.MAX_"),
    ],
)
def test_what_a_user_can_mend_is_one_line_before_any_work(
    options, message, voc_in_place, checkpoints, tmp_path, capfd
):
    output = tmp_path / "run"
    given = ["MODEL.WEIGHTS", checkpoints.authors, "OUTPUT_DIR", output, *options]
    assert message in refusal(capfd, "--config-file", VOC, *SMALL, *given)
    assert not output.exists()


def test_an_address_without_an_answer_is_named(voc_in_place, tmp_path, capfd):
    from vissl_barlow.detection.__main__ import main

    given = ["MODEL.WEIGHTS", "http://localhost:9/c.pth", "OUTPUT_DIR", str(tmp_path / "run")]
    assert main(["--config-file", VOC, *SMALL, *given]) == 1
    last = capfd.readouterr().err.splitlines()[-1]  # after Detectron2's log
    assert last.startswith("error: MODEL.WEIGHTS http://localhost:9/c.pth: cannot be downloaded")


def test_a_checkpoint_says_how_its_images_were_normalised(
    voc_in_place, checkpoints, tmp_path, capfd
):
    """In training; where it resumes or evaluates, the config of the training does."""
    from vissl_barlow.detection import trainer
    from vissl_barlow.detection.__main__ import main

    key = "DATA.TRAIN.TRANSFORMS.0"
    noted = {f"{key}.name": "BarlowTwoViews"}
    noted |= {f"{key}.{what}.{i}": 0.5 for what in ("mean", "std") for i in range(3)}
    checkpoint = torch.load(checkpoints.vissl, weights_only=True)
    checkpoint["classy_state_dict"]["experiment"] = noted
    torch.save(checkpoint, tmp_path / "own.torch")
    given = ["--config-file", VOC, *SMALL, "MODEL.WEIGHTS", str(tmp_path / "own.torch")]
    given += ["OUTPUT_DIR", str(tmp_path / "run")]
    assert main(given) == 1
    mean, std = capfd.readouterr().err.splitlines()
    assert "PIXEL_MEAN is [123.675" in mean and mean.endswith("to [127.5, 127.5, 127.5]")
    assert "PIXEL_STD is [58.395" in std
    typed = ["MODEL.PIXEL_MEAN", "[127.5,127.5,127.5]", "MODEL.PIXEL_STD", "[127.5,127.5,127.5]"]
    cfg = trainer.prepare(trainer.argument_parser().parse_args([*given, *typed]))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    detector = tmp_path / "run" / "model_final.pth"
    torch.save({"model": build(VOC, *SMALL).state_dict()}, detector)
    evaluated = ["--eval-only", *given, "MODEL.WEIGHTS", str(detector)]
    assert main(evaluated) == 1
    assert "MODEL.PIXEL_MEAN is [123.675" in capfd.readouterr().err
    trainer.prepare(trainer.argument_parser().parse_args([*evaluated, *typed]))


@pytest.mark.parametrize("flags", [(), ("--scale-batch-and-lr", "--num-gpus", 4)])
def test_another_length_of_training_wants_steps_of_its_own(
    flags, voc_in_place, checkpoints, tmp_path, capfd
):
    """Detectron2 leaves out those behind the end, and trains at one rate."""
    given = (*flags, "--config-file", VOC, *CPU, "MODEL.WEIGHTS", checkpoints.authors)
    given += ("OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", 12000)
    told = refusal(capfd, *given)
    assert "MAX_ITER 12000 with SOLVER.STEPS (18000, 22000), of 24000 iterations" in told
    assert told.endswith('add SOLVER.STEPS "(9000, 11000)"\n')


def test_a_changed_copy_of_a_shipped_config_wants_a_name_of_its_own(
    voc_in_place, checkpoints, tmp_path, capfd
):
    from vissl_barlow.detection import trainer

    for file in shipped_configs().values():
        shutil.copy(file, tmp_path)
    copy = tmp_path / f"{VOC}.yaml"
    given = ("--config-file", copy, *SMALL, "MODEL.WEIGHTS", checkpoints.authors)
    given = tuple(map(str, (*given, "OUTPUT_DIR", tmp_path / "run")))
    trainer.prepare(trainer.argument_parser().parse_args(given))
    copy.write_text(copy.read_text().replace("BASE_LR: 0.1", "BASE_LR: 0.02"))
    told = refusal(capfd, *given)
    assert f"{copy} has the name" in told and "other values (SOLVER.BASE_LR)" in told
    renamed = copy.rename(tmp_path / "moco.yaml")
    trainer.prepare(
        trainer.argument_parser().parse_args(["--config-file", str(renamed), *given[2:]])
    )


def test_all_faults_are_said_at_once(checkpoints, tmp_path, capfd):
    from vissl_barlow.detection.__main__ import main

    given = ["--config-file", VOC, *SMALL, "OUTPUT_DIR", str(tmp_path / "run")]
    unknown = ["SOLVER.BASELR", "0.1", "SEEED", "1"]
    assert main([*given, *unknown]) == 1
    first, second = capfd.readouterr().err.splitlines()
    assert "SOLVER.BASE_LR meant" in first and "SEED meant" in second

    wrong = ["INPUT.FORMAT", "BGR", "MODEL.RESNETS.STRIDE_IN_1X1", "True"]
    wrong += ["MODEL.RESNETS.NORM", "SyncBN", "SOLVER.IMS_PER_BATCH", "3"]
    wrong += ["DATASETS.TRAIN", "('nowhere', 'nor_here')", "DATASETS.TEST", "('nor_there',)"]
    assert main(["--num-gpus", "2", *given, *wrong, "MODEL.WEIGHTS", "absent.pth"]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    told = (
        "STRIDE_IN_1X1",
        "BGR",
        "IMS_PER_BATCH 3",
        "NORM is 'SyncBN'",
        "'nowhere'",
        "'nor_here'",
    )
    told += ("'nor_there'", "absent.pth: no such file")
    assert [part for part, line in zip(told, lines, strict=True) if part not in line] == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--num-gpus", 0), ["--num-gpus 0: give 1 or more; on CPU"]),
        (("--num-gpus", -1, "--scale-batch-and-lr"), ["--num-gpus -1: give 1 or more; on CPU"]),
        (
            ("--num-machines", 0, "--machine-rank", -1),
            ["--num-machines 0: give 1 or more", "--machine-rank -1: of --num-machines 0"],
        ),
        (("--num-machines", 2, "--machine-rank", 2), ["--machine-rank 2: of --num-machines 2"]),
    ],
)
def test_no_processes_are_refused(flags, told, capfd):
    from vissl_barlow.detection.__main__ import main

    assert main([*map(str, flags), "--config-file", VOC, *SMALL]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert all(f"error: {part}" in line for part, line in zip(told, lines, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value, resnet, tmp_path):
    from vissl_barlow.detection.weights import StrictCheckpointer, load_backbone

    broken = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
    broken["layer3.1.conv2.weight"][0, 0, 0, 0] = value
    broken["bn1.running_var"][3] = value
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(
        CheckpointError, match=r"broken\.pth: not finite .* in 2 tensors \(.*layer3"
    ):
        load_backbone(build(VOC), tmp_path / "broken.pth")
    model = build(VOC)
    whole = model.state_dict()
    whole["roi_heads.box_predictor.cls_score.bias"][0] = value
    torch.save({"model": whole}, tmp_path / "trained.pth")
    with pytest.raises(CheckpointError, match=r"trained\.pth: not finite .*cls_score\.bias"):
        StrictCheckpointer(model).load(str(tmp_path / "trained.pth"))


def test_scaling_needs_the_batch_of_the_reference(capfd):
    given = ("--scale-batch-and-lr", "--config-file", VOC, *SMALL, "SOLVER.IMS_PER_BATCH", 12)
    assert "IMS_PER_BATCH 12: give the batch for 8 GPUs" in refusal(capfd, *given)


def test_a_folder_with_a_training_is_refused_unless_it_is_resumed_as_it_was(
    voc_in_place, checkpoints, tmp_path, capfd
):
    given = ("--config-file", VOC, *SMALL, "MODEL.WEIGHTS", checkpoints.authors)
    given += ("OUTPUT_DIR", tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000019.pth")
    (tmp_path / "model_0000019.pth").touch()
    (tmp_path / "config.yaml").write_text(config(VOC, *given[2:]).dump())
    assert f"OUTPUT_DIR {tmp_path} holds a training: add --resume" in refusal(capfd, *given)
    changed = refusal(capfd, "--resume", *given, "SOLVER.BASE_LR", "0.3", "SEED", "1")
    assert "SEED was 0 and is 1; SOLVER.BASE_LR was 0.02 and is 0.3" in changed


def test_a_resnet_18_is_told_so(voc_in_place, tmp_path, capfd):
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    given = ("MODEL.WEIGHTS", path, "OUTPUT_DIR", tmp_path / "run")
    told = refusal(capfd, "--config-file", VOC, *SMALL, *given)
    assert f"MODEL.WEIGHTS {path}: this is a ResNet-18, and the C4 models' res5 has" in told
    settings = "MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64"
    assert "coco_mask_rcnn_R50_FPN_1x" in told and settings in told

    with pytest.raises(ValueError, match=f"this is a ResNet-18: set {settings}$"):
        check_trunk(config(FPN, "MODEL.WEIGHTS", path), TrunkDepth(18, small_stem=False))


def test_a_resnet_18_trains_with_the_settings_it_was_told(tmp_path):
    from vissl_barlow.detection.weights import load_backbone

    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    told = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    check_trunk(config(FPN, *told), TrunkDepth(18, small_stem=False))
    assert load_backbone(build(FPN, *told), path) == 100


def test_a_wide_resnet_is_told_its_widths(tmp_path):
    told = (
        "this is a ResNet-50 x2: set MODEL.RESNETS.STEM_OUT_CHANNELS 128"
        " MODEL.RESNETS.WIDTH_PER_GROUP 128 MODEL.RESNETS.RES2_OUT_CHANNELS 512$"
    )
    with pytest.raises(ValueError, match=told):
        check_trunk(config(VOC), TrunkDepth(50, small_stem=False, width_multiplier=2))


def test_a_trunk_that_fits_in_part_is_refused(resnet, tmp_path):
    from vissl_barlow.detection.weights import load_backbone

    model = build(VOC, "MODEL.RESNETS.DEPTH", 101)
    torch.save(resnet.state_dict(), tmp_path / "resnet50.pth")
    with pytest.raises(CheckpointError, match="matches 265 of 520 backbone tensors"):
        load_backbone(model, tmp_path / "resnet50.pth")


def test_eval_only_refuses_a_pretrained_trunk(checkpoints):
    from vissl_barlow.detection.weights import StrictCheckpointer

    with pytest.raises(CheckpointError, match=r"tensors of the detection model random.*eval-only"):
        StrictCheckpointer(build(VOC)).load(str(checkpoints.authors))


@pytest.mark.parametrize("name", ["model.pkl", "model.pth"])
def test_eval_only_runs_no_code_of_the_weights(name, tmp_path):
    from vissl_barlow.detection.weights import StrictCheckpointer

    path = malicious(tmp_path / name, tmp_path / "ran")
    with pytest.raises(CheckpointError, match=rf"{name}: "):
        StrictCheckpointer(build(VOC)).load(str(path))
    assert not (tmp_path / "ran").exists()


def test_eval_only_refuses_a_deeper_model_that_has_all_the_tensors(tmp_path):
    from vissl_barlow.detection.weights import StrictCheckpointer

    deeper = tmp_path / "model_final.pth"
    torch.save({"model": build(VOC, "MODEL.RESNETS.DEPTH", 101).state_dict()}, deeper)
    with pytest.raises(CheckpointError, match=r"255 tensors without a place.*--config-file"):
        StrictCheckpointer(build(VOC)).load(str(deeper))
