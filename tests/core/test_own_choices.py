"""What is chosen for a folder of images and a machine, and what follows from what is given."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from vissl_barlow.experiment import IRRELEVANT_KEYS
from vissl_barlow.own_images import OwnFolder
from vissl_barlow.own_images import choices as keys
from vissl_barlow.own_images.choices import Machine, agrees, choose, run_folder
from vissl_barlow.paths import is_within
from vissl_barlow.resnet import representation_dim

CPU = Machine(gpus=0, gpu_bytes=0, bfloat16=True, cores=8)
GPU = Machine(gpus=1, gpu_bytes=80 * 2**30, bfloat16=True, cores=16)
HEAD = "MODEL.HEAD.PARAMS.0.1"
CROP, BLUR = (f"DATA.TRAIN.TRANSFORMS.0.{name}" for name in ("crop_scale", "blur_sigma"))
WORKERS = "DATA.NUM_DATALOADER_WORKERS"
CONFIG = Path(__file__).parents[2] / "configs/config/pretrain/vissl_barlow/own_images.yaml"
ALL = (
    *(keys.DEVICE, keys.PROCESSES, keys.DEPTH, keys.WIDTH, keys.SMALL_STEM, keys.VIEW_SIZE),
    *(keys.BATCH, keys.BASE_RATE, keys.PEAK_RATE, keys.LAST_RATE, keys.WARMUP, keys.EPOCHS),
    *(keys.PROBE, keys.RUN_FOLDER, f"{HEAD}.in_dim", f"{HEAD}.dims", CROP, BLUR, WORKERS),
    *("MODEL.AMP_PARAMS.USE_AMP", "BARLOW.AMP_DTYPE", "BARLOW.CHANNELS_LAST", "LOG_FREQUENCY"),
    *("BARLOW.CHECK_IMAGES", "BARLOW.PROBE.EVERY_EPOCHS", "CHECKPOINT.CHECKPOINT_FREQUENCY"),
    *("DISTRIBUTED.BACKEND", "DATA.PIN_MEMORY", "DATA.TEST.DATA_PATHS"),
    *("DATA.TEST.TRANSFORMS.0.size", "DATA.TEST.TRANSFORMS.1.size"),
)


def folder(images: int, side: int, classes: int = 0) -> OwnFolder:
    names = [str(number) for number in range(images)]
    labels = np.arange(images) % classes if classes else None
    own = OwnFolder(
        "/data/holidays", names, [], [str(c) for c in range(classes)], labels, labels, "", ""
    )
    own.__dict__["sizes"] = np.array([[side, side + 10]] * 3 + [[side + 100, side + 50]])
    return own


def chosen(own: OwnFolder, machine: Machine = CPU, recorded=None, batch=None, **given) -> dict:
    given = {getattr(keys, name, name.replace("__", ".")): value for name, value in given.items()}

    def dimension(so_far) -> int:
        def value(key):
            return so_far[key].value if key in so_far else given[key]

        return representation_dim(value(keys.DEPTH), value(keys.WIDTH))

    opened = [key for key in ALL if key not in given]
    found = choose(opened, given, own, machine, dimension, recorded=recorded, recorded_batch=batch)
    assert list(found) and found.keys() == set(opened)
    assert all(choice.reason for choice in found.values())
    return {key: choice.value for key, choice in found.items()}


def test_every_open_value_of_the_config_is_chosen():
    def leaves(section, prefix=""):
        for name, value in section.items() if isinstance(section, dict) else enumerate(section):
            if isinstance(value, dict | list):
                yield from leaves(value, f"{prefix}{name}.")
            elif value == keys.AUTO:
                yield f"{prefix}{name}"

    assert sorted(leaves(yaml.safe_load(CONFIG.read_text())["config"])) == sorted(ALL)


def test_photographs_on_a_gpu_are_trained_as_in_the_paper():
    found = chosen(folder(100_000, 300, classes=7), GPU)
    assert found[keys.DEVICE] == "gpu" and found["DISTRIBUTED.BACKEND"] == "nccl"
    assert found["MODEL.AMP_PARAMS.USE_AMP"] and found["BARLOW.AMP_DTYPE"] == "bfloat16"
    assert (found[keys.VIEW_SIZE], found[CROP], found[BLUR]) == (224, [0.08, 1.0], [0.1, 2.0])
    assert (found[keys.DEPTH], found[keys.WIDTH], found[keys.SMALL_STEM]) == (50, 1, False)
    assert (found[f"{HEAD}.in_dim"], found[f"{HEAD}.dims"]) == (2048, [8192] * 3)
    assert (found["DATA.TEST.TRANSFORMS.0.size"], found["DATA.TEST.TRANSFORMS.1.size"]) == (
        256,
        224,
    )
    assert (found[keys.BATCH], found[keys.BASE_RATE], found[keys.WARMUP]) == (512, 0.3, 10)
    assert found[keys.LAST_RATE] == pytest.approx(0.3 / 1000)
    assert found[keys.PROBE] == "linear"
    assert found[keys.EPOCHS] == -(-50_000 // (100_000 // 512))


@pytest.mark.parametrize(("side", "size"), [(8, 32), (32, 32), (64, 64), (96, 96)])
def test_small_images_have_views_of_their_size_and_the_small_stem(side, size):
    found = chosen(folder(2000, side), GPU)
    assert (found[keys.VIEW_SIZE], found[keys.SMALL_STEM], found[keys.DEPTH]) == (size, True, 18)
    assert found[BLUR] == pytest.approx([0.1 * size / 224, 2 * size / 224], abs=1e-4)
    assert found["DATA.TEST.TRANSFORMS.0.size"] == found["DATA.TEST.TRANSFORMS.1.size"] == size


def test_without_a_gpu():
    found = chosen(folder(461, 200))
    assert (found[keys.DEVICE], found["DISTRIBUTED.BACKEND"]) == ("cpu", "gloo")
    assert not found["MODEL.AMP_PARAMS.USE_AMP"] and not found["DATA.PIN_MEMORY"]
    assert (found[keys.VIEW_SIZE], found[keys.DEPTH], found[keys.WIDTH]) == (112, 18, 1)
    assert (found[keys.BATCH], found[keys.BASE_RATE]) == (64, 0.7)
    assert (found[keys.PROBE], found[WORKERS], found[keys.PROCESSES]) == ("", 3, 1)
    assert found[keys.RUN_FOLDER] == "own_images/holidays"
    assert chosen(folder(461, 32))[keys.WIDTH] == 0.5


@pytest.mark.parametrize(
    ("batch", "rate"),
    [(8, 0.7), (128, 0.7), (256, 0.4), (512, 0.3), (1024, 0.25), (2048, 0.2), (8192, 0.2)],
)
def test_the_rate_is_the_authors_for_the_batch(batch, rate):
    found = chosen(folder(100_000, 300), BATCH=batch)
    assert found[keys.BASE_RATE] == found[keys.PEAK_RATE] == rate
    assert 0.4 < chosen(folder(9000, 300), BATCH=192)[keys.BASE_RATE] < 0.7


def test_what_is_given_is_followed():
    own = folder(2000, 300)
    assert chosen(own, DEPTH=50)[f"{HEAD}.dims"] == [8192] * 3
    assert chosen(own, VIEW_SIZE=64)[keys.SMALL_STEM] is True
    assert chosen(own, BASE_RATE=1.5)[keys.LAST_RATE] == 0.0015
    short = chosen(own, EPOCHS=3)
    assert (short[keys.WARMUP], short["BARLOW.PROBE.EVERY_EPOCHS"]) == (0.3, 1)
    assert short["BARLOW.CHECK_IMAGES"] == 100 and short["LOG_FREQUENCY"] == 1
    assert chosen(own, GPU, DEVICE="cpu")["DISTRIBUTED.BACKEND"] == "gloo"
    limited = chosen(own, DATA__TRAIN__DATA_LIMIT=64)
    assert limited[keys.BATCH] == 16


def test_the_batch_fits_images_memory_and_processes():
    assert chosen(folder(10, 300))[keys.BATCH] == 2
    own = folder(10**6, 300)
    small = Machine(gpus=1, gpu_bytes=8 * 2**30, bfloat16=False, cores=4)
    assert chosen(own, small)[keys.BATCH] < chosen(own, GPU)[keys.BATCH] == 512
    assert chosen(own, small)["BARLOW.AMP_DTYPE"] == "float16"
    eight = Machine(gpus=8, gpu_bytes=80 * 2**30, bfloat16=True, cores=64)
    found = chosen(own, eight)
    assert (found[keys.PROCESSES], found[keys.BATCH], found[WORKERS]) == (8, 256, 7)
    assert found[keys.BASE_RATE] == 0.2
    assert chosen(folder(200, 300), eight)[keys.PROCESSES] == 2


@pytest.mark.parametrize("value", ["ten", -1, 0, None, [4], True, float("nan")])
def test_values_of_a_wrong_kind_are_left_to_those_who_refuse_them(value):
    own = folder(461, 200)
    usual = chosen(own)
    for name in ("BATCH", "EPOCHS", "VIEW_SIZE", "BASE_RATE", "PROCESSES"):
        found = chosen(own, **{name: value})
        assert {key: usual[key] for key in found} == found


def test_a_resumed_run_keeps_what_makes_it_and_follows_its_machine():
    own = folder(2000, 300, classes=3)
    begun = chosen(own, GPU)
    several = Machine(gpus=3, gpu_bytes=2**33, bfloat16=False, cores=2)
    found = chosen(own, several, recorded=begun, batch=begun[keys.BATCH])
    for key in ALL:
        if not IRRELEVANT_KEYS.fullmatch(f"config.{key}"):
            assert found[key] == begun[key]
    assert found[keys.PROCESSES] * found[keys.BATCH] == begun[keys.BATCH]
    moved = chosen(own, CPU, recorded=begun, batch=begun[keys.BATCH])
    assert (moved[keys.DEVICE], moved[keys.DEPTH]) == ("cpu", 50)


def test_more_processes_than_cores_have_no_loader_workers():
    two = Machine(gpus=0, gpu_bytes=0, bfloat16=True, cores=2)
    assert chosen(folder(500, 40), two, PROCESSES=3)[WORKERS] == 0


def test_a_run_may_be_extended_and_is_no_other():
    begun = {keys.EPOCHS: 10, keys.BATCH: 64}
    assert agrees(begun, {keys.EPOCHS: 20}) and agrees(begun, {"SEED_VALUE": 3})
    assert not agrees(begun, {keys.BATCH: 32}) and not agrees(begun, {keys.EPOCHS: 9})


def test_runs_are_named_after_their_folder():
    assert run_folder("/data/my photos/train") == "own_images/my_photos_train"
    assert run_folder("/") == "own_images/images"


def test_a_run_leaves_its_pictures_outside_the_images(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    (photos / "cats").mkdir(parents=True)
    beside = str(tmp_path / "own_images/photos")
    monkeypatch.chdir(photos / "cats")
    assert run_folder("..") == run_folder(str(photos)) == beside
    assert run_folder(".") == str(photos / "own_images/cats")
    monkeypatch.chdir(photos)
    assert run_folder(".") == beside and run_folder("cats") == "own_images/cats"
    assert is_within("runs/1", ".") and is_within(".", photos)
    assert not is_within("../photos2", ".") and not is_within("runs", "cats")
