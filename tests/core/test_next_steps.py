"""What the end of a pretraining and a checkpoint's own command say: numbers, commands to paste."""

import itertools
import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml
from pretend_runs import start, vissl_command, write
from trunks import resnet, vissl_training_checkpoint

from vissl_barlow.checkpoint import TrunkDepth
from vissl_barlow.checkpoint.__main__ import main
from vissl_barlow.next_steps import next_steps

RESNET50 = TrunkDepth(50, small_stem=False)
IMAGENET = {"images": 1281167, "classes": 1000, "source": "disk_folder"}
PROBE = {"probe": "linear", "pixels": 0.953, "pretrained trunk": 0.969, "epoch 5": 0.9}


def pretraining(folder, images, source="barlow_folder", **sections):
    write(folder, start(vissl_command("pretrain/vissl_barlow/x"), data={"train": images}))
    config = {"DATA": {"TRAIN": {"DATA_SOURCES": [source]}}, **sections}
    (folder / "train_config.yaml").write_text(yaml.safe_dump(config))
    steps = [{"iteration": i, "loss": 100.0 / i, "invariance": 3.5} for i in (10, 20)]
    (folder / "barlow.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (folder / "barlow_probe.json").write_text(json.dumps(PROBE))
    return folder / "checkpoint.torch"


def commands(text):
    """The indented commands, as a shell splits them, by what stands above each."""
    lines = text.splitlines()
    found = {
        title.split()[0]: shlex.split(line)
        for title, line in itertools.pairwise(lines)
        if title.endswith(":") and line.startswith("    ")
    }
    for words in found.values():
        assert words[0] == "python" or Path(words[0]).absolute() == Path(sys.executable)
        assert words[1] == "-m"
    return {title: words[2:] for title, words in found.items()}


def test_imagenets_run_goes_on_with_table_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "image net" / "train"
    for part in (data, data.with_name("val")):
        part.mkdir(parents=True)
    checkpoint = pretraining(tmp_path / "run 1", IMAGENET | {"paths": [str(data)]})
    text = next_steps(checkpoint, RESNET50, 20)
    assert "loss 5, invariance 3.5" in text and "after 20 steps" in text
    assert "linear probe: pixels 95.3 %, pretrained trunk 96.9 %" in text and "epoch" not in text
    assert commands(text) == {
        "evaluate": shlex.split(
            "vissl_barlow.reproduce table1 --checkpoint 'run 1/checkpoint.torch' "
            "--imagenet 'image net' --out 'run 1/evaluation'"
        ),
        "export": shlex.split(
            "vissl_barlow.checkpoint --to torchvision 'run 1/checkpoint.torch' 'run 1/trunk.pth'"
        ),
        "report": shlex.split("vissl_barlow.reproduce report 'run 1' --out 'run 1/report'"),
    }


def test_another_trunk_and_machine_are_told(tmp_path):
    checkpoint = pretraining(
        tmp_path, IMAGENET, MACHINE={"DEVICE": "cpu"}, DISTRIBUTED={"NUM_PROC_PER_NODE": 2}
    )
    words = commands(next_steps(checkpoint, TrunkDepth(18, False, 0.5), 20))["evaluate"]
    assert words[words.index("--imagenet") + 1] == "IMAGENET"
    assert {
        "config.MODEL.TRUNK.RESNETS.DEPTH=18",
        "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.5",
        "config.MODEL.HEAD.PARAMS=[[barlow_linear,{in_dim:256,num_classes:1000}]]",
        "config.MACHINE.DEVICE=cpu",
        "config.DISTRIBUTED.BACKEND=gloo",
        "config.DISTRIBUTED.NUM_PROC_PER_NODE=2",
    } <= set(words)


def test_own_images_are_evaluated_as_such(tmp_path):
    images = {"images": 512, "classes": None, "paths": [str(tmp_path)]}
    checkpoint = pretraining(tmp_path / "run", images)
    words = commands(next_steps(checkpoint, RESNET50, 20))["evaluate"]
    assert words[:2] == ["vissl_barlow.reproduce", "own"]
    assert words[words.index("--images") + 1] == str(tmp_path)
    # They cannot be, without labels: others are to be named.
    images["found"] = "512 images without labels: val/ is left out"
    checkpoint = pretraining(tmp_path / "unlabelled", images)
    words = commands(next_steps(checkpoint, RESNET50, 20))["evaluate"]
    assert words[words.index("--images") + 1] == "FOLDER_OF_CLASSES"


def test_the_digits_trunk_fits_their_evaluation(tmp_path):
    checkpoint = pretraining(tmp_path, {"images": 1437, "paths": [""]}, source="barlow_digits")
    words = commands(next_steps(checkpoint, TrunkDepth(18, False, 0.5), 20))["evaluate"]
    assert words[0] == "tools.run_distributed_engines" and "bundled_digits" in words[2]
    assert not any(word.startswith("config.MODEL.TRUNK") for word in words)
    wider = commands(next_steps(checkpoint, TrunkDepth(18, True, 1), 20))["evaluate"]
    assert "config.MODEL.TRUNK.RESNETS.SMALL_STEM=True" in wider
    assert "config.MODEL.HEAD.PARAMS=[[barlow_linear,{in_dim:512,num_classes:10}]]" in wider


@pytest.mark.parametrize(
    ("name", "source", "classes", "paths"),
    [
        ("CIFAR10", "torchvision_dataset", 10, ("data", "data", "data")),
        ("STL10", "barlow_stl10", 10, ("data", "data", "data")),
        ("imagenet100_folder", "barlow_folder", 100, ("data/train", "data/train", "data/val")),
    ],
)
def test_a_data_set_with_an_evaluation_of_its_own(
    tmp_path, monkeypatch, name, source, classes, paths
):
    """What is in its folder is no folder of classes, or not normalised as ImageNet is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "val").mkdir()
    trained, train, test = (str(tmp_path / path) for path in paths)
    images = {"images": 50000, "classes": None, "paths": [trained]}
    config = {"DATA": {"TRAIN": {"DATA_SOURCES": [source], "DATASET_NAMES": [name]}}}
    checkpoint = pretraining(
        tmp_path / "run", images, **config, DISTRIBUTED={"NUM_PROC_PER_NODE": 2}
    )
    small = name == "CIFAR10"
    words = commands(next_steps(checkpoint, TrunkDepth(18, small), 20))["evaluate"]
    linear = name.removesuffix("_folder").lower()
    assert words == [
        "tools.run_distributed_engines",
        f"config=benchmark/vissl_barlow/{linear}_linear",
        "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=run/checkpoint.torch",
        f"config.DATA.TRAIN.DATA_PATHS=[{Path(train).relative_to(tmp_path)}]",
        f"config.DATA.TEST.DATA_PATHS=[{Path(test).relative_to(tmp_path)}]",
        "config.CHECKPOINT.DIR=run/evaluation",
        "config.DISTRIBUTED.NUM_PROC_PER_NODE=2",
    ]
    words = commands(next_steps(checkpoint, TrunkDepth(50, small), 20))["evaluate"]
    head = f"[[barlow_linear,{{in_dim:2048,num_classes:{classes}}}]]"
    assert {"config.MODEL.TRUNK.RESNETS.DEPTH=50", f"config.MODEL.HEAD.PARAMS={head}"} <= {*words}


def test_a_checkpoint_from_the_middle_has_its_own_numbers_and_no_probe(tmp_path):
    text = next_steps(pretraining(tmp_path, IMAGENET), RESNET50, 15)
    assert "loss 10, invariance 3.5 at step 10" in text and "probe" not in text


@pytest.mark.parametrize("damage", ("barlow_run.json", "train_config.yaml", "barlow.jsonl"))
def test_damaged_files_of_the_run_cost_only_what_they_tell(tmp_path, damage):
    checkpoint = pretraining(tmp_path, IMAGENET)
    (tmp_path / damage).write_bytes(b"\xff[{")
    assert set(commands(next_steps(checkpoint, RESNET50, 20))) == {"evaluate", "export", "report"}


def test_the_command_says_it_of_any_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(resnet(18).state_dict(), "others.pth")
    assert main(["others.pth"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("checkpoint: others.pth (ResNet-18)\n")
    assert "IMAGENET" in commands(text)["evaluate"]
    pretraining(tmp_path / "run", IMAGENET)
    torch.save(
        vissl_training_checkpoint(resnet(18).state_dict()) | {"iteration": 20}, "run/it.torch"
    )
    assert main(["run/it.torch"]) == 0
    text = capsys.readouterr().out
    assert "(ResNet-18, after 20 steps)" in text and "loss 5" in text
    for wrong in (["run/it.torch", "out.pth"], ["--to", "vissl", "run/it.torch"]):
        with pytest.raises(SystemExit):
            main(wrong)
        assert "give both --to FORMAT and OUT" in capsys.readouterr().err
