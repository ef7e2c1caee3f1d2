"""A folder of one's own images and nothing else: what is chosen, what follows, what is refused."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image
from vissl_runs import resolve

import vissl_barlow
from vissl_barlow.vissl_plugin.errors import ConfigError

CONFIG = "pretrain/vissl_barlow/own_images"
DIGITS = "pretrain/vissl_barlow/digits_quickstart"
# Other trunks are built to ask for their dimensions; this one need not be.
TRUNK = "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.0625"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folders: `classes`, of two; `flat`; `ones`, of 1 x 1; `three`; `empty`; `broken`."""
    root = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 48, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        picture = Image.fromarray(image)
        for name in (f"classes/{'ab'[number % 2]}", "flat", *(["three"] if number < 3 else [])):
            (root / name).mkdir(parents=True, exist_ok=True)
            picture.save(root / name / f"{number}.png")
        (root / "ones").mkdir(exist_ok=True)
        picture.resize((1, 1)).save(root / "ones" / f"{number}.png")
        (root / "broken").mkdir(exist_ok=True)
        (root / "broken" / f"{number}.jpg").write_bytes(b"none")
    (root / "empty").mkdir()
    return root


def from_folder(folder) -> str:
    return f"config.DATA.TRAIN.DATA_PATHS=[{folder}]"


def derived(config) -> dict:
    return {each["key"]: each["value"] for each in config.BARLOW.DERIVED}


def refusals(tmp_path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        resolve(tmp_path / "run", CONFIG, *overrides)
    return str(raised.value).splitlines()


def test_a_folder_is_enough(images, tmp_path, capsys):
    config = resolve(tmp_path, CONFIG, from_folder(images / "classes"))
    said = capsys.readouterr().out
    assert "20 images in 2 classes; 2 of them (1 in 10 of each class) are held out" in said
    chosen = derived(config)
    assert (
        chosen["DATA.TRAIN.BATCHSIZE_PER_REPLICA"] == config.DATA.TRAIN.BATCHSIZE_PER_REPLICA == 4
    )
    assert "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4  (18 images are to give 4 steps" in said
    assert re.search(r"lr\.auto_lr_scaling\.base_value=0\.7  \(the authors' for 128", said)
    assert re.search(r"OPTIMIZER\.num_epochs=\d+  \(", said)
    assert config.DATA.TRAIN.TRANSFORMS[0]["size"] == 40
    assert config.MODEL.TRUNK.RESNETS.SMALL_STEM is True
    assert config.BARLOW.PROBE.KIND == "linear" and config.BARLOW.PROBE.WHILE_TRAINING == "knn"
    assert config.DATA.TEST.DATA_PATHS == [str(images / "classes")]
    lr = config.OPTIMIZER.param_schedulers.lr
    assert lr.start_value == pytest.approx(0.7 * 4 / 256)
    assert lr.end_value == pytest.approx(lr.start_value / 1000)
    # Given, it is not chosen: CHECKPOINT.DIR.
    assert "CHECKPOINT.DIR" not in chosen and "CHECKPOINT.DIR=" not in said


def test_what_is_typed_wins_and_what_hangs_on_it_follows(images, tmp_path):
    config = resolve(
        tmp_path,
        CONFIG,
        from_folder(images / "flat"),
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=16",
        "config.DATA.TRAIN.TRANSFORMS.0.size=112",
        "config.MODEL.TRUNK.NAME=resnet",
        "config.MODEL.TRUNK.RESNETS.DEPTH=50",
        "config.OPTIMIZER.num_epochs=5",
    )
    assert config.MODEL.HEAD.PARAMS[0][1] == {"in_dim": 2048, "dims": [8192] * 3}
    assert config.MODEL.TRUNK.RESNETS.SMALL_STEM is False
    assert config.OPTIMIZER.param_schedulers.lr.start_value == pytest.approx(0.7 * 16 / 256)
    assert config.OPTIMIZER.param_schedulers.lr.warmup_epochs == 0.5
    assert config.BARLOW.PROBE.KIND == ""
    given = {"DATA.TRAIN.BATCHSIZE_PER_REPLICA", "OPTIMIZER.num_epochs"}
    assert not given & derived(config).keys()


def test_other_configs_have_nothing_chosen(tmp_path, capsys):
    assert "DERIVED" not in resolve(tmp_path, DIGITS).BARLOW
    assert "chosen" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "overrides", "reason"),
    [
        (None, (), r"DATA_PATHS=\[\]: say where your images are"),
        ("empty", (), "no image is in or below it"),
        ("three", (), "3 images to train on are too few"),
        ("ones", (), r"side of at most 1 pixels \(1 x 1, \.\.\.\)"),
        ("flatt", (), "there is no such folder; type config.DATA.TRAIN.DATA_PATHS=/.*/flat$"),
        ("flat/1.png", (), "this is a file.*; type config.DATA.TRAIN.DATA_PATHS=/.*/flat$"),
        (
            "broken",
            (),
            r"20 of the 20 images checked cannot be read .*config\.BARLOW\.CHECK_IMAGES=0",
        ),
        (
            "flat",
            ("config.BARLOW.PROBE.KIND=linear",),
            "PROBE.KIND=linear: .*flat has 20 images without labels; leave it out, or type config",
        ),
        (
            "flat",
            ("config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=21",),
            "REPLICA=21: .*has 20 images.*type config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=20$",
        ),
        (
            "flat",
            ("config.DATA.TRAIN.DATA_SOURCES=[disk_folder]",),
            "`auto` .* type config.DATA.TRAIN.DATA_SOURCES=barlow_own_folder",
        ),
    ],
)
def test_refusals_say_what_to_type_instead(images, tmp_path, name, overrides, reason):
    folder = (from_folder(images / name),) if name else ()
    (line,) = refusals(tmp_path, *folder, *overrides)
    assert re.search(reason, line), line
    assert re.search(r"config\.[\w.]+=[^,;:() ]", line.partition(": ")[2]), line


def test_a_run_among_the_images_is_refused(images, tmp_path):
    with pytest.raises(ConfigError) as raised:
        resolve(images / "classes" / "run", CONFIG, from_folder(images / "classes"))
    (line,) = str(raised.value).splitlines()
    assert "which would have the run's pictures among them" in line
    assert line.endswith("; type config.CHECKPOINT.DIR=own_images/classes")


@pytest.mark.parametrize("name", ["1.10", "2024_06"])
def test_a_name_that_hydra_takes_for_a_number_is_no_other_folder(
    images, tmp_path, monkeypatch, name
):
    """Of 1.10 it makes 1.1, which may be there."""
    monkeypatch.chdir(tmp_path)
    for place in (name, "1.1", "202406", "2024"):
        (tmp_path / place).symlink_to(images / "three")
    typed = f"config.DATA.TRAIN.DATA_PATHS=[{name}]"
    (line,) = refusals(tmp_path, typed, f"+config.BARLOW.COMMAND=['{typed}']")
    (word,) = shlex.split(line.rpartition("quote what is meant: ")[2])
    assert word == f'config.DATA.TRAIN.DATA_PATHS=["{name}"]'
    (line,) = refusals(tmp_path, word)
    assert f"[{name}]: 3 images to train on are too few" in line
    typed = "config.DATA.TRAIN.DATA_PATHS=[2024]"
    (line,) = refusals(tmp_path, typed, f"+config.BARLOW.COMMAND=['{typed}']")
    assert "[2024]: 3 images" in line


@pytest.mark.parametrize("other", ["gone", "classes/a"])
def test_no_other_folder_is_tested(images, tmp_path, other):
    """Its classes would be taken for the others', by their numbers."""
    tested = f"config.DATA.TEST.DATA_PATHS=[{images / other}]"
    (line,) = refusals(tmp_path, from_folder(images / "classes"), tested)
    assert "put both as train/ and val/ into one folder: config.DATA.TRAIN.DATA_PATHS=" in line
    same = f"config.DATA.TEST.DATA_PATHS=[{images}/three/../classes]"
    resolve(tmp_path, CONFIG, from_folder(images / "classes"), same)


def test_images_held_out_that_are_trained_on_are_said(images, tmp_path, capsys):
    copies = shutil.copytree(images / "classes", tmp_path / "copies")
    resolve(tmp_path / "run", CONFIG, TRUNK, from_folder(copies))
    assert "warning" not in capsys.readouterr().out
    for image in sorted(copies.glob("a/*.png")):
        shutil.copy(image, image.with_stem(f"copy_{image.stem}"))
    resolve(tmp_path / "run2", CONFIG, TRUNK, from_folder(copies))
    assert "vissl_barlow: warning: 2 of 3 images held out are trained on" in capsys.readouterr().out


def test_images_without_contrast_are_said(images, tmp_path, caplog):
    """Twelve bits in a file of sixteen have 15 grey levels of 255."""
    (tmp_path / "dark").mkdir()
    levels = np.random.default_rng(0).integers(0, 4096, (9, 40, 48), dtype=np.uint16)
    for number, image in enumerate(levels):
        Image.fromarray(image).save(tmp_path / "dark" / f"{number}.png")
    resolve(tmp_path / "run", CONFIG, TRUNK, from_folder(images / "flat"))
    assert "grey levels" not in caplog.text
    resolve(tmp_path / "run", CONFIG, TRUNK, from_folder(tmp_path / "dark"))
    assert "half of the 9 images checked" in caplog.text and "at most 16 of 255" in caplog.text


def test_all_that_is_wrong_is_said_at_once(images, tmp_path):
    lines = refusals(
        tmp_path,
        from_folder(images / "empty"),
        "config.OPTIMIZER.nesterov=true",
        "config.MODEL.TRUNK.RESNETS.DEPTH=19",
        "config.BARLOW.TIMEOUT_MINUTES=1",
    )
    assert [re.match(r"config\.([\w.]+)=", line)[1] for line in lines] == [
        *("DATA.TRAIN.DATA_PATHS", "OPTIMIZER.nesterov", "MODEL.TRUNK.RESNETS.DEPTH")
    ]


def test_a_folder_with_blanks_can_be_pasted(images, tmp_path):
    (images / "my own").mkdir(exist_ok=True)
    (images / "my own" / "1.png").write_bytes((images / "flat" / "1.png").read_bytes())
    path = '"' + str(images / "my own" / "1.png") + '"'
    (line,) = refusals(tmp_path, f"config.DATA.TRAIN.DATA_PATHS={path}")
    (word,) = shlex.split(line.rpartition("type ")[2])
    (line,) = refusals(tmp_path, word)
    assert "1 images to train on are too few" in line


def test_a_resumed_run_keeps_its_values(images, tmp_path):
    """Of the experiment; what the machine decides is of the machine."""
    words = from_folder(images / "classes"), TRUNK
    vissl_barlow.register()
    first = resolve(tmp_path, CONFIG, *words)
    values = derived(first)
    values |= {"OPTIMIZER.num_epochs": 70, "LOG_FREQUENCY": 9, "BARLOW.AMP_DTYPE": "float16"}
    values |= {"DATA.TRAIN.BATCHSIZE_PER_REPLICA": 3}
    start = {
        "started": "2026-01-01T00:00:00+00:00",
        "hours": 1.0,
        "command": [],
        "weights": None,
        "seed": 0,
        "processes": 2,
        "hardware": "GPU",
        "left": True,
        "derived": [{"key": key, "value": value, "reason": ""} for key, value in values.items()],
    }
    (tmp_path / "barlow_run.json").write_text(json.dumps([start]))
    again = derived(resolve(tmp_path, CONFIG, *words))
    assert (again["OPTIMIZER.num_epochs"], again["BARLOW.AMP_DTYPE"]) == (70, "float16")
    assert again["DATA.TRAIN.BATCHSIZE_PER_REPLICA"] == 6
    assert again["LOG_FREQUENCY"] != 9
    # Of another trunk it is another run, whose values are its own; so is one from nothing.
    for other in (
        "config.MODEL.TRUNK.RESNETS.SMALL_STEM=false",
        "config.CHECKPOINT.AUTO_RESUME=false",
    ):
        fresh = derived(resolve(tmp_path, CONFIG, *words, other))
        assert fresh["OPTIMIZER.num_epochs"] == derived(first)["OPTIMIZER.num_epochs"]
    # Extended, it keeps the rest.
    longer = resolve(tmp_path, CONFIG, *words, "config.OPTIMIZER.num_epochs=700")
    warmup = "OPTIMIZER.param_schedulers.lr.warmup_epochs"
    assert derived(longer)[warmup] == values[warmup]
