"""Which views are drawn: functions of the seed, the epoch and the image, and of nothing else."""

import hashlib
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from vissl_runs import resolve

import vissl_barlow
from vissl_barlow.views import IMAGENET_MEAN, IMAGENET_STD, TwoViews

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
# Images of a part of the digits: VISSL numbers them anew, the source does not.
LIMIT = 64
EPOCHS = (0, 1)
# What was drawn, by seed, when sources seeded Python's module `random`. Of the parameters, not the
# pixels: those are the same with every version of OpenCV and torch.
DIGESTS = {
    0: "1cc364408da4fc66e3bdcbed17011ed9b450dfa9a7860942818dfc92b1ea54dd",
    3: "24c023458158919663038c26ff265a8d8c20ec4893a2bf804b1645c79ce2713b",
}


def build_dataset(folder, *overrides: str, seed: int = 0):
    from vissl.data import build_dataset

    limit = (
        f"config.DATA.TRAIN.DATA_LIMIT={LIMIT}",
        f"config.DATA.TRAIN.BATCHSIZE_PER_REPLICA={LIMIT}",
    )
    config = resolve(folder, DIGITS, f"config.SEED_VALUE={seed}", *limit, *overrides)
    return build_dataset(config, "TRAIN")


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The parameters of every view made, in order."""
    parameters = []
    apply = TwoViews.apply

    def recorded(two_views, image, view):
        parameters.append(view)
        return apply(two_views, image, view)

    monkeypatch.setattr(TwoViews, "apply", recorded)
    return parameters


@pytest.mark.parametrize("seed", DIGESTS)
def test_the_views_drawn_are_the_same_as_ever(seed, tmp_path, drawn):
    dataset = build_dataset(tmp_path, seed=seed)
    drawn.clear()  # of the checks
    for epoch in EPOCHS:
        dataset.data_objs[0].set_epoch(epoch)
        for index in range(LIMIT):
            dataset[index]
    assert len(drawn) == 2 * LIMIT * len(EPOCHS)
    assert hashlib.sha256(repr(drawn).encode()).hexdigest() == DIGESTS[seed]


def test_seed_epoch_and_image_each_make_other_views(tmp_path, drawn):
    datasets = [build_dataset(tmp_path, seed=seed) for seed in (0, 1)]
    drawn.clear()  # of the checks
    for dataset in datasets:
        for epoch in (0, 1):
            dataset.data_objs[0].set_epoch(epoch)
            for index in (0, 1):
                dataset[index]
    assert len(drawn) == 16 and len(set(drawn)) == 16


def test_no_random_state_of_the_process_is_read_or_moved(tmp_path, drawn):
    random.seed(1)
    before = random.getstate()
    dataset = build_dataset(tmp_path)
    assert random.getstate() == before
    drawn.clear()  # of the checks
    for state in (1, 2):
        random.seed(state)
        before = random.getstate()
        dataset[5]
        assert random.getstate() == before
    assert drawn[:2] == drawn[2:]


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_loader_workers_draws_the_same(workers, tmp_path):
    dataset = build_dataset(tmp_path)
    alone = [dataset[index]["data"] for index in range(LIMIT)]
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork",
    )
    for expected, item in zip(alone, loader, strict=True):
        assert all(torch.equal(*views) for views in zip(expected, item["data"], strict=True))


def test_vissls_own_sources_draw_from_the_process_state(tmp_path, drawn):
    """They say nothing of a generator; VISSL seeds the state in each of a loader's workers."""
    folder = tmp_path / "images" / "class"
    folder.mkdir(parents=True)
    for number in range(LIMIT):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / f"{number}.png")
    dataset = build_dataset(
        tmp_path,
        "config.DATA.TRAIN.DATA_SOURCES=[disk_folder]",
        f"config.DATA.TRAIN.BATCHSIZE_PER_REPLICA={LIMIT}",
        f"config.DATA.TRAIN.DATA_PATHS=[{folder.parent}]",
    )
    drawn.clear()  # of the checks
    for state in (1, 1, 2):
        random.seed(state)
        dataset[0]
    assert drawn[:2] == drawn[2:4] != drawn[4:]


def test_a_pil_image_may_bring_a_generator_too(drawn):
    vissl_barlow.register()
    from vissl_barlow.vissl_plugin.components.views import BarlowTwoViews

    transform = BarlowTwoViews(size=8)
    for seed in (1, 1, 2):
        image = Image.new("RGB", (40, 30))
        image.rng = random.Random(seed)
        transform(image)
    assert drawn[:2] == drawn[2:4] != drawn[4:]


def test_an_images_generator_stays_with_its_parts_and_its_pixels_are_not_copied():
    vissl_barlow.register()
    from vissl_barlow.vissl_plugin.components.views import with_rng

    pixels, rng = np.zeros((6, 5, 3), np.uint8), random.Random(0)
    image = with_rng(pixels, rng)
    assert image[1:, ::-1].rng is image.rng is rng
    assert np.shares_memory(image, pixels) and isinstance(image, np.ndarray)


TWO_VIEWS = {"name": "BarlowTwoViews", "size": 8}
OTHER = {"name": "ToTensor"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (IMAGENET_MEAN, IMAGENET_STD)),
        ({"mean": [0.1, 0.2, 0.3], "std": [1, 0.5, 0.2]}, ((0.1, 0.2, 0.3), (1, 0.5, 0.2))),
    ],
)
def test_the_step_normalises_as_the_transforms_section_says(options, expected):
    vissl_barlow.register()
    from vissl_barlow.vissl_plugin.components.views import normalization

    assert normalization([OTHER, TWO_VIEWS | options]) == expected


@pytest.mark.parametrize("transforms", [[OTHER], [TWO_VIEWS, TWO_VIEWS]])
def test_bytes_that_nobody_says_how_to_normalise_are_refused(transforms):
    vissl_barlow.register()
    from vissl_barlow.vissl_plugin.components.views import normalization

    with pytest.raises(ValueError, match=r"config\.DATA\.TRAIN\.TRANSFORMS: .* once, not"):
        normalization(transforms)
