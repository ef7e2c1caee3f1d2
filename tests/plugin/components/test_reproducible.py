"""VISSL's own sources and transforms: what is drawn does not depend on what was drawn before."""

import random
import signal

import numpy as np
import pytest
import torch
from forked_runs import STEPS_PER_EPOCH
from interrupted_runs import SHORT, assert_same_end
from PIL import Image
from vissl_runs import resolve

import vissl_barlow

IMAGES = 8 * STEPS_PER_EPOCH
# VISSL's transforms, that draw from torch's, numpy's and Python's generators.
TRANSFORMS = (
    "config.DATA.TRAIN.TRANSFORMS=[{name:ImgReplicatePil,num_times:2},{name:RandomResizedCrop,size:32},"
    "{name:ImgPilColorDistortion,strength:1.0},{name:ImgPilGaussianBlur,p:0.5,radius_min:0.1,radius_max:2},"
    "{name:ToTensor}]"
)


@pytest.fixture
def images(tmp_path):
    for number in range(IMAGES):
        path = tmp_path / "images" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


def source(images, name: str) -> tuple[str, ...]:
    """Overrides for a run over `images` by a source of VISSL's."""
    path = images
    if name == "disk_filelist":
        path = images.parent / "images.npy"
        np.save(path, sorted(map(str, images.rglob("*.png"))))
    return f"config.DATA.TRAIN.DATA_SOURCES=[{name}]", f"config.DATA.TRAIN.DATA_PATHS=[{path}]"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("name", "transforms"),
    [("disk_folder", ()), ("disk_folder", (TRANSFORMS,)), ("disk_filelist", ())],
)
def test_an_interrupted_run_ends_as_one_that_is_not(
    server, images, tmp_path, name, transforms, workers
):
    command = (*SHORT, *source(images, name), *transforms)
    server.finish(tmp_path / "whole", *command)
    loader = f"config.DATA.NUM_DATALOADER_WORKERS={workers}"
    command += (loader, "config.MULTI_PROCESSING_METHOD=fork")
    run = server.start(tmp_path / "run", *command)
    run.wait_for_steps(STEPS_PER_EPOCH + 2)
    run.send(signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM, run.output[-3000:]
    server.finish(tmp_path / "run", *command)
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_a_sample_is_a_function_of_seed_epoch_and_image(images, tmp_path):
    vissl_barlow.register()
    from vissl_barlow.vissl_plugin.components.reproducible import ReproducibleDataset

    def dataset(seed: int):
        batch = f"config.DATA.TRAIN.BATCHSIZE_PER_REPLICA={IMAGES}"
        overrides = (*source(images, "disk_folder"), TRANSFORMS, batch)
        config = resolve(
            tmp_path / "run",
            "pretrain/vissl_barlow/digits_quickstart",
            f"config.SEED_VALUE={seed}",
            *overrides,
        )
        return ReproducibleDataset(config, "TRAIN")

    def drawn(dataset, epoch: int, index: int) -> bytes:
        dataset.set_epoch(epoch)
        return torch.stack(dataset[index]["data"]).numpy().tobytes()

    first, other = dataset(0), dataset(1)
    expected = drawn(first, 1, 5)
    drawn(first, 0, 3)
    for generator in (random, np.random, torch):
        (generator.manual_seed if generator is torch else generator.seed)(7)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert drawn(first, 1, 5) == expected
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )
    assert len({expected, drawn(first, 0, 5), drawn(first, 1, 6), drawn(other, 1, 5)}) == 4
