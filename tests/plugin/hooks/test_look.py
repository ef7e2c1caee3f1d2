"""The map at the end of a pretraining: which images are on it, and where it leaves the run."""

import random
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import nn
from vissl_runs import resolve

from vissl_barlow import figures
from vissl_barlow.digits import digits
from vissl_barlow.views import normalize

DIGITS = "pretrain/vissl_barlow/digits_quickstart"


class Trunk(nn.Module):
    """Mean colours of an image's quarters, as a list of one, as VISSL's trunks give theirs."""

    def forward(self, images):
        self.seen = images
        return [nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)]


def drawn(monkeypatch, tmp_path, images, *overrides):
    """What the hook hands to the figure, and the model it looked through."""
    from vissl_barlow.vissl_plugin.components.reproducible import ReproducibleDataset
    from vissl_barlow.vissl_plugin.hooks import look

    config = resolve(tmp_path / "run", DIGITS, f"config.BARLOW.MAP_IMAGES={images}", *overrides)
    model = nn.Module()
    model.trunk = Trunk().train()
    (tmp_path / "run").mkdir(exist_ok=True)
    task = SimpleNamespace(
        config=config,
        datasets={"train": ReproducibleDataset(config, "TRAIN")},
        base_model=model,
        device=torch.device("cpu"),
        num_epochs=3,
        checkpoint_folder=tmp_path / "run",
    )
    calls = []
    draw = figures.draw_representations
    monkeypatch.setattr(figures, "draw_representations", lambda *a: (calls.append(a), draw(*a)))
    look.BarlowLook(config.BARLOW.MAP_IMAGES).on_end(task)
    return (*calls[0][1:], model)


def test_the_digits_are_shown_with_their_classes(monkeypatch, tmp_path):
    before = random.getstate(), torch.get_rng_state()
    images, places, neighbours, labels, title, model = drawn(monkeypatch, tmp_path, 12)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    known = {image.tobytes(): int(label) for image, label in zip(*digits("train"))}
    assert [known[image.tobytes()] for image in images] == labels and len(images) == 12
    assert places.shape == (12, 2) and len(neighbours) == 8
    expected = normalize(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous())
    assert torch.equal(model.trunk.seen, expected)
    assert model.training and model.trunk.training
    assert "12 training images after 3 epochs" in title
    with Image.open(tmp_path / "run" / "barlow_map.png") as picture:
        assert picture.width > 1000


def test_of_a_folder_the_middles_of_what_can_be_read_are_shown(monkeypatch, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "0.png").write_text("no image")
    for number in range(1, 4):
        image = np.zeros((8, 24, 3), np.uint8)
        image[:, 8:16] = 60 * number  # its middle third
        Image.fromarray(image).save(folder / f"{number}.png")
    images, places, neighbours, labels, *_ = drawn(
        monkeypatch,
        tmp_path,
        100,
        "config.DATA.TRAIN.DATA_SOURCES=[barlow_folder]",
        f"config.DATA.TRAIN.DATA_PATHS=[{folder}]",
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=2",
        "config.BARLOW.CHECK_IMAGES=0",
        "config.BARLOW.PROBE.KIND=none",
    )
    assert sorted(int(image.mean()) for image in images) == [60, 120, 180]
    assert (places == 0).all() and len(neighbours) == 3 and len(set(labels)) == 3


def test_no_map_without_the_key(tmp_path):
    from vissl_barlow.vissl_plugin.hooks import barlow_hooks
    from vissl_barlow.vissl_plugin.hooks.look import BarlowLook

    found = [
        [type(hook) for hook in barlow_hooks([], resolve(tmp_path, DIGITS, *words), True)]
        for words in (("config.BARLOW.MAP_IMAGES=9",), ())
    ]
    assert BarlowLook in found[0] and BarlowLook not in found[1]
