"""Nodes whose commands, images or folders differ: they train nothing together."""

import shutil

import numpy as np
from forked_runs import STEPS_PER_EPOCH
from interrupted_runs import SHORT, checkpoints
from PIL import Image
from two_nodes import as_node, meet_here


def both(server, folder, first=(), second=(), own_folders=False) -> list[str]:
    """What two nodes, of one process each, say last with these overrides; both must be refused."""
    command = (*SHORT, *meet_here(), "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4")
    shared = () if own_folders else (f"config.CHECKPOINT.DIR={folder / '0'}",)
    runs = [
        server.start(folder / node, *command, *shared, *overrides, **as_node(node))
        for node, overrides in (("0", first), ("1", second))
    ]
    for run in runs:
        assert run.wait() == 1, run.output[-3000:]
    said = [run.output.splitlines()[-1] for run in runs]
    assert all("config.DISTRIBUTED.NUM_NODES=2: the nodes would not" in each for each in said), said
    return said


def test_nodes_with_other_settings_are_refused_with_those(server, tmp_path):
    other = ("config.SEED_VALUE=5", "config.LOG_FREQUENCY=2", "config.DATA.PIN_MEMORY=true")
    for said in both(server, tmp_path, second=other):
        assert "SEED_VALUE is 0 on node 0 and 5 on node 1" in said
        assert "LOG_FREQUENCY is 1 on node 0 and 2 on node 1" in said and "PIN_MEMORY" not in said
    assert not checkpoints(tmp_path / "0")


def test_nodes_with_other_images_are_refused(server, tmp_path):
    folders = [tmp_path / "images0", tmp_path / "images1"]
    for folder in folders:
        folder.mkdir()
        pixels = np.random.default_rng(0).integers(256, size=(64, 16, 16, 3), dtype=np.uint8)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(folder / f"{number}.png")
    Image.new("RGB", (16, 16)).save(folders[1] / "7.png")
    source = "config.DATA.TRAIN.DATA_SOURCES=[barlow_folder]"
    paths = [(source, f"config.DATA.TRAIN.DATA_PATHS=[{folder}]") for folder in folders]
    for said in both(server, tmp_path, *paths):
        assert "the digest of names and files in DATA.TRAIN is " in said


def test_a_node_without_the_checkpoint_is_refused(server, uninterrupted, tmp_path):
    """Of a folder that the nodes do not share: the first resumes, and the second would begin."""
    shutil.copytree(uninterrupted[1], tmp_path / "0")
    (tmp_path / "0" / "barlow_run.lock").unlink()
    for path in (tmp_path / "0").glob("model_final*"):
        path.unlink()
    before = (tmp_path / "0" / "barlow.jsonl").read_text()
    assert before.count("\n") == 3 * STEPS_PER_EPOCH
    for said in both(server, tmp_path, own_folders=True):
        assert "the checkpoint to resume is there on node 0 and none on node 1" in said
    assert (tmp_path / "0" / "barlow.jsonl").read_text() == before
