"""The probe's labelled images, of a folder of the user's own."""

import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from vissl_runs import resolve

from vissl_barlow.vissl_plugin.errors import ConfigError


@pytest.fixture
def config(tmp_path):
    for part in ("train", "val"):
        for width, name in ((8, "a"), (9, "b"), (10, "b")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (width, 8)).save(folder / f"{width}.png")
    return resolve(
        tmp_path / "run",
        "pretrain/vissl_barlow/digits_quickstart",
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=2",
        *(
            word
            for split, part in (("TRAIN", "train"), ("TEST", "val"))
            for word in (
                f"config.DATA.{split}.DATA_SOURCES=barlow_folder",
                f"config.DATA.{split}.DATA_PATHS={tmp_path}/{part}",
            )
        ),
    )


def test_images_of_several_sizes_want_a_resize(config):
    from vissl_barlow.vissl_plugin.hooks.labelled_images import LabelledImages

    with pytest.raises(
        ConfigError, match=r"TRANSFORMS=.*: the probe's images \(TRAIN\) have 3 sizes"
    ):
        list(LabelledImages(config, "TRAIN"))
    config.DATA.TEST.TRANSFORMS = [{"name": "Resize", "size": [8, 8]}, {"name": "ToTensor"}]
    for split in ("TRAIN", "TEST"):
        ((images, labels),) = LabelledImages(config, split)
        assert images.shape == (3, 3, 8, 8) and labels.tolist() == [0, 1, 1]


def test_images_are_in_memory_a_batch_at_a_time(config):
    """And those of a choice, where there are more than are asked for."""
    from vissl_barlow.vissl_plugin.hooks.labelled_images import LabelledImages

    config.DATA.TEST.TRANSFORMS = [{"name": "Resize", "size": [8, 8]}, {"name": "ToTensor"}]
    config.DATA.TEST.BATCHSIZE_PER_REPLICA = 2
    state = torch.get_rng_state()
    found = LabelledImages(config, "TRAIN")
    assert [len(images) for images, _ in found] == [2, 1]
    # Two passes are alike, and the run's own draws are what they would have been.
    assert [labels.tolist() for _, labels in found] == [[0, 1], [1]]
    assert torch.equal(torch.get_rng_state(), state)
    config.BARLOW.PROBE.IMAGES = 2
    ((images, labels),) = LabelledImages(config, "TRAIN")
    assert len(images) == len(labels) == 2


def test_workers_are_started_for_many_images_alone(config, monkeypatch):
    from vissl_barlow.vissl_plugin.hooks import labelled_images

    config.DATA.NUM_DATALOADER_WORKERS = 2
    assert labelled_images.LabelledImages(config, "TRAIN").loader.num_workers == 0
    monkeypatch.setattr(labelled_images, "_WORTH_WORKERS", 3)
    assert labelled_images.LabelledImages(config, "TRAIN").loader.num_workers == 2


def test_features_alone_are_held(config, monkeypatch):
    """No pass holds a second batch of images, for the trunk as for pixels."""
    from vissl_barlow.vissl_plugin.hooks.probe import BarlowProbe, _pixels

    probe, alive = BarlowProbe("knn", 0, 1), []

    def batches():
        for _ in range(3):
            images = torch.rand(2, 3, 64, 64)
            alive.append(weakref.ref(images))
            yield images, torch.tensor([0, 1])
            del images
            assert [ref for ref in alive[:-1] if ref() is not None] == []

    class Batches:
        def __iter__(self):
            return batches()

    probe.sets = [Batches(), Batches()]
    seen = []
    monkeypatch.setattr(
        "vissl_barlow.vissl_plugin.hooks.probe.probe_accuracy",
        lambda kind, *arrays, **_: seen.append([array.shape for array in arrays]),
    )
    probe._accuracies(["knn"], _pixels)
    # Of two probes too, each image is read and embedded once.
    probe._accuracies(["knn", "linear"], lambda images: images.mean((2, 3)))
    assert len(alive) == 2 * 2 * 3
    assert seen == [[(6, 3072), (6,)] * 2, *[[(6, 3), (6,)] * 2] * 2]


def test_another_probe_while_training_has_a_name_of_its_own(tmp_path, monkeypatch):
    from vissl_barlow.vissl_plugin.hooks.probe import BarlowProbe

    asked = []
    monkeypatch.setattr(
        BarlowProbe, "_probe_trunk", lambda _, task, *kinds: asked.extend(kinds) or [0.5]
    )
    hook = BarlowProbe("linear", 1, 5, "knn")
    hook.folder = tmp_path
    task = SimpleNamespace(train=True, train_phase_idx=0, num_train_phases=2)
    hook.on_phase_end(task)
    results = json.loads((tmp_path / "barlow_probe.json").read_text())
    assert asked == ["knn"] and results == {"probe": "linear", "epoch 1, knn": 0.5}


def test_views_of_bytes_are_normalised_for_the_picture():
    from vissl_barlow.vissl_plugin.hooks.probe import BarlowProbe

    views = torch.randint(0, 256, (40, 2, 3, 4, 4), dtype=torch.uint8)
    levels = views.double().flatten(2).mean(2).div(255)  # (N, 2)

    class Model(torch.nn.Module):
        def forward(self, batch):  # (1, N, 3, H, W)
            assert batch.is_floating_point()
            return [batch[0].flatten(1).mean(1, keepdim=True)]

    task = SimpleNamespace(
        datasets={"train": [{"data": list(pair)} for pair in views]},
        config=SimpleNamespace(
            BARLOW=SimpleNamespace(PROBE=SimpleNamespace(CORRELATION_IMAGES=40))
        ),
        base_model=Model(),
        device="cpu",
        normalization=([0.5] * 3, [0.25] * 3),
    )
    found = BarlowProbe("knn", 0, 1)._correlation(task)
    expected = np.corrcoef(levels.numpy().T)[0, 1]
    assert found.shape == (1, 1) and found[0, 0] == pytest.approx(expected, abs=1e-5)
