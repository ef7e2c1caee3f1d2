"""Data sources and samplers: which image is read, how it is labelled, in which order."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.testing._internal.distributed.fake_pg import FakeStore
from vissl.config import AttrDict

import vissl_barlow
from vissl_barlow.images import UnreadableImage


@pytest.fixture(autouse=True)
def registered():
    vissl_barlow.register()


def folder_source(path, **settings):
    from vissl_barlow.vissl_plugin.components.data import BarlowImageFolder

    cfg = AttrDict({"SEED_VALUE": 0, **settings})
    return BarlowImageFolder(cfg, "barlow_folder", str(path), "TRAIN", "")


@pytest.fixture
def images(tmp_path):
    """b/0.png, b/1.png, a/x/0.png, a/x/1.png, each of one grey; a/x/1.png is none."""
    for grey, name in enumerate(("b/0", "b/1", "a/x/0", "a/x/1")):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (grey, grey, grey)).save(path)
    (tmp_path / "a/x/1.png").write_bytes(b"no image")
    return tmp_path


def test_images_are_labelled_by_their_top_level_folder_in_sorted_order(images):
    source = folder_source(images)
    names = [path.removeprefix(f"{images}/") for path in source.get_image_paths()]
    assert names == ["a/x/0.png", "a/x/1.png", "b/0.png", "b/1.png"]
    assert source.get_labels() == [0, 0, 1, 1]
    assert source.num_samples() == len(source) == 4


def test_the_next_readable_image_takes_the_place_of_one_that_is_not_and_is_marked(images, caplog):
    source = folder_source(images)
    read = [source[index] for index in range(4)]
    assert [(int(image[0, 0, 0]), is_own) for image, is_own in read] == [
        (2, True),
        (0, False),
        (0, True),
        (1, True),
    ]
    assert source.unreadable == 1
    assert f"{images}/a/x/1.png" in caplog.text
    (images / "b/0.png").unlink()
    (images / "b/1.png").unlink()
    assert int(source[2][0][0, 0, 0]) == 2  # past the end, at the beginning


def test_other_images_of_the_same_number_are_another_experiment(images, tmp_path_factory):
    """Of the same names as well; the same elsewhere are not."""
    from vissl_barlow.vissl_plugin.run.experiment import images_identity

    def identity(root) -> dict:
        dataset = SimpleNamespace(data_objs=[folder_source(root)], label_sources=[])
        return images_identity("TRAIN", dataset)

    first = identity(images)
    moved = shutil.copytree(images, tmp_path_factory.mktemp("moved") / "images")
    assert identity(moved) == first and first["images in DATA.TRAIN"] == 4
    (moved / "b/1.png").rename(moved / "b/2.png")
    renamed = identity(moved)
    (moved / "b/2.png").rename(moved / "b/1.png")
    Image.new("RGB", (2, 2), (9, 9, 9)).save(moved / "b/1.png")
    redrawn = identity(moved)
    assert len({tuple(each.items()) for each in (first, renamed, redrawn)}) == 3
    assert all(" in DATA.TRAIN" in key for key in first)


def test_a_folder_of_nothing_but_bad_files_is_not_searched_for_hours(tmp_path):
    for index in range(9):
        (tmp_path / f"{index}.png").write_bytes(b"no image")
    source = folder_source(tmp_path, BARLOW={"MAX_CONSECUTIVE_UNREADABLE": 3})
    with pytest.raises(
        UnreadableImage, match=r"3 images in a row are unreadable, the last is .*/6"
    ):
        source[4]
    assert source.unreadable == 3


@pytest.fixture(params=[0, 1])
def rank(request):
    """Of two processes."""
    dist.init_process_group("fake", rank=request.param, world_size=2, store=FakeStore())
    yield request.param
    dist.destroy_process_group()


SAMPLES, BATCH, SEED = 26, 4, 7
SECTION = {"BATCHSIZE_PER_REPLICA": BATCH, "DROP_LAST": True}


def permutation(epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(SEED + epoch)
    return torch.randperm(SAMPLES, generator=generator).tolist()


def test_training_goes_through_one_permutation_of_all_processes_from_any_step(rank):
    from vissl_barlow.vissl_plugin.components.task import _train_sampler

    sampler = _train_sampler(np.arange(SAMPLES), SECTION, SEED)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        sampler.set_start_iter(0)
        assert list(sampler) == permutation(epoch)[rank::2]
        sampler.set_start_iter(2)
        assert list(sampler) == permutation(epoch)[rank::2][2 * BATCH :]


def test_testing_keeps_the_order(rank):
    from vissl_barlow.vissl_plugin.components.every_image import ordered_sampler

    assert list(ordered_sampler(np.arange(SAMPLES), SECTION)) == list(range(rank, SAMPLES, 2))


@pytest.mark.parametrize("scaled", [True, False])
def test_the_loss_scale_is_saved_where_there_is_one(scaled, monkeypatch):
    """classy-vision saves it for apex only; a resumed run would begin at 65536 again."""
    from vissl_barlow.vissl_plugin.components.task import BarlowTask, BarlowTaskBase

    monkeypatch.setattr(BarlowTaskBase, "get_classy_state", lambda *_, **__: {"amp": None})
    task = BarlowTask.__new__(BarlowTask)
    task.amp_grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    state = task.get_classy_state()
    assert (state["amp"]["scale"] == 8.0) if scaled else state["amp"] is None
