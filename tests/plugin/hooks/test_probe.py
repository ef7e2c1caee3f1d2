"""The probe's labelled images, of a folder of the user's own."""

import itertools
import json
import signal
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forked_runs import STEPS_PER_EPOCH
from interrupted_runs import SHORT
from PIL import Image
from small_disks import full, small_disk
from vissl_runs import compose, resolve

import vissl_barlow
from vissl_barlow.images import UnreadableImage
from vissl_barlow.run_files import AT_ITS_START, UNTRAINED
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


def test_an_image_that_cannot_be_read_is_no_other_of_its_class(config, tmp_path):
    """What takes its place while training, b/9.png here, is not of class a."""
    from vissl_barlow.vissl_plugin.hooks.labelled_images import LabelledImages

    config.DATA.TEST.TRANSFORMS = [{"name": "Resize", "size": [8, 8]}, {"name": "ToTensor"}]
    config.DATA.TEST.BATCHSIZE_PER_REPLICA = 1
    (tmp_path / "val/a/8.png").write_bytes(b"no image")
    assert [labels.tolist() for _, labels in LabelledImages(config, "TEST")] == [[1], [1]]
    for image in tmp_path.glob("val/b/*"):
        image.write_bytes(b"no image")
    config.BARLOW.MAX_CONSECUTIVE_UNREADABLE = 1
    with pytest.raises((ConfigError, UnreadableImage)):
        list(LabelledImages(config, "TEST"))


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
    shapes = [[array.shape for array in probe._features(_pixels)]]
    shapes += [[array.shape for array in probe._features(lambda images: images.mean((2, 3)))]]
    assert len(alive) == 2 * 2 * 3
    assert shapes == [[(6, 3072), (6,)] * 2, [(6, 3), (6,)] * 2]


def test_another_probe_while_training_has_a_name_of_its_own(tmp_path, monkeypatch):
    from vissl_barlow.vissl_plugin.hooks.probe import BarlowProbe

    asked = []
    monkeypatch.setattr(BarlowProbe, "_trunk_features", lambda *_: None)
    monkeypatch.setattr(
        BarlowProbe, "_accuracy", lambda _, kind, features: asked.append(kind) or 0.5
    )
    hook = BarlowProbe("linear", 1, 5, "knn")
    hook.folder = tmp_path
    task = SimpleNamespace(train=True, train_phase_idx=0, num_train_phases=2)
    hook.on_phase_end(task)
    results = json.loads((tmp_path / "barlow_probe.json").read_text())
    assert asked == ["knn"] and results == {"probe": "linear", "epoch 1, knn": 0.5}


class Labelled:
    """A task of four images in two classes, and a trunk that makes of them what it is told to."""

    sure, wrong = torch.eye(2).repeat(2, 1), torch.eye(2).flip(0).repeat(2, 1)

    def __init__(self, folder: Path, **given) -> None:
        self.train, self.train_phase_idx, self.num_train_phases = True, 0, 3
        self.checkpoint_folder, self.config, self.device = folder, None, "cpu"
        self.iteration, self.checkpoint = 0, None
        self.base_model = torch.nn.Module()
        vars(self).update(given)

    def makes(self, features: torch.Tensor) -> "Labelled":
        """The trunk, of the images trained on; of those tested on it always makes `sure`."""
        answers = itertools.cycle([features, self.sure])
        self.base_model.trunk = lambda images: [next(answers)]
        return self


@pytest.fixture
def probe(monkeypatch):
    """Makes hooks of the `Labelled` images, as a process of a run's first or later start has them."""
    vissl_barlow.register()
    from vissl_barlow.vissl_plugin.hooks.probe import BarlowProbe

    batches = [(Labelled.sure[:, :, None, None].expand(-1, -1, 3, 3), torch.arange(4) % 2)]
    monkeypatch.setattr(BarlowProbe, "_labelled_images", lambda *_: batches)
    monkeypatch.setattr(BarlowProbe, "_correlation", lambda *_: np.eye(2))
    return lambda kind="knn", while_training="same": BarlowProbe(kind, 0, 1, while_training)


def results(folder: Path) -> dict | None:
    path = folder / "barlow_probe.json"
    return json.loads(path.read_text()) if path.exists() else None


KEPT = "barlow_untrained_features.npz"


def test_the_untrained_trunk_is_probed_after_the_first_epoch(probe, tmp_path, monkeypatch):
    """Its features are of before the first step, and survive a kill in the epoch."""
    from vissl_barlow.vissl_plugin.hooks import probe as module

    fitted = []
    fit = module.probe_accuracy
    monkeypatch.setattr(
        module, "probe_accuracy", lambda *a, **k: fitted.append(a[0]) or fit(*a, **k)
    )
    probe("linear", "knn").on_start(Labelled(tmp_path).makes(Labelled.wrong))
    assert (tmp_path / KEPT).exists() and (tmp_path / "barlow_correlation_before.npy").exists()
    assert fitted == [] and results(tmp_path) is None
    later = probe("linear", "knn")
    task = Labelled(tmp_path, iteration=5, checkpoint={}).makes(Labelled.sure)
    later.on_start(task)
    later.on_phase_end(task)
    assert results(tmp_path) == {
        "probe": "linear",
        "pixels": 1.0,
        "untrained trunk": 0.0,
        "untrained trunk, knn": 0.0,
    }
    assert not (tmp_path / KEPT).exists() and fitted == ["linear", "linear", "knn"]
    later.on_phase_end(task)
    assert len(fitted) == 3


def test_of_one_epoch_too(probe, tmp_path):
    hook, task = probe(), Labelled(tmp_path, num_train_phases=1).makes(Labelled.wrong)
    hook.on_start(task)
    hook.on_phase_end(task)
    assert results(tmp_path) == {"probe": "knn", "pixels": 1.0, "untrained trunk": 0.0}


@pytest.mark.parametrize(("weights", "name"), [("", UNTRAINED), ("w.pth", AT_ITS_START)])
def test_a_trunk_with_weights_from_a_file_is_not_untrained(weights, name, probe, tmp_path):
    from vissl_barlow.vissl_plugin.hooks import BarlowProbe, barlow_hooks

    config = compose("pretrain/vissl_barlow/digits_quickstart")
    config.MODEL.WEIGHTS_INIT.PARAMS_FILE = weights
    (hook,) = (each for each in barlow_hooks([], config, False) if isinstance(each, BarlowProbe))
    task = Labelled(tmp_path, num_train_phases=1).makes(Labelled.wrong)
    hook.on_start(task)
    hook.on_phase_end(task)
    assert results(tmp_path).keys() == {"probe", "pixels", name}
    assert not (tmp_path / KEPT).exists()


def test_labels_of_one_class_are_refused_before_the_first_step(probe, tmp_path, monkeypatch):
    hook, task = probe(), Labelled(tmp_path).makes(Labelled.sure)
    batches = [(torch.ones(4, 2), torch.full((4,), 7))]
    monkeypatch.setattr(type(hook), "_labelled_images", lambda *_: batches)
    with pytest.raises(
        ConfigError, match=r"KIND=knn: the 4 labelled images .* all of class 7.*=none"
    ):
        hook.on_start(task)


@pytest.mark.parametrize("iteration", [0, 5])
def test_a_resumed_trunk_is_not_taken_for_the_untrained_one(iteration, probe, tmp_path, caplog):
    """What the first start left may be gone, or that start had no probe."""
    hook = probe()
    task = Labelled(tmp_path, iteration=iteration, checkpoint={} if iteration else None)
    hook.on_start(task.makes(Labelled.sure))
    assert (tmp_path / "barlow_correlation_before.npy").exists() == (iteration == 0)
    assert ("the untrained trunk is gone" in caplog.text) == (iteration > 0)
    hook.on_phase_end(task)
    assert ("untrained trunk" in results(tmp_path)) == (iteration == 0)
    assert results(tmp_path)["pixels"] == 1.0


def test_a_run_anew_has_features_of_its_own(probe, tmp_path):
    """A start that failed before its first epoch ended has left its trunk's."""
    probe().on_start(Labelled(tmp_path).makes(Labelled.sure))
    hook, task = probe(), Labelled(tmp_path).makes(Labelled.wrong)
    hook.on_start(task)
    hook.on_phase_end(task)
    assert results(tmp_path)["untrained trunk"] == 0.0


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"text", None])
def test_damaged_features_are_set_aside(content, probe, tmp_path, caplog):
    hook, task = probe(), Labelled(tmp_path).makes(Labelled.sure)
    hook.on_start(task)
    path = tmp_path / KEPT
    whole = path.read_bytes()
    path.write_bytes(whole[:-30] if content is None else content)
    hook.on_phase_end(task)
    assert results(tmp_path) == {"probe": "knn", "pixels": 1.0}
    assert (tmp_path / f"{KEPT}.damaged1").exists() and "is damaged" in caplog.text


@pytest.mark.parametrize(
    "shapes", [[(4,), (4,)] * 2, [(4, 2), (3,)] * 2, [(4, 2), (4,), (4, 3), (4,)]]
)
def test_features_of_something_else_are_set_aside(shapes, probe, tmp_path):
    hook, task = probe(), Labelled(tmp_path).makes(Labelled.sure)
    hook.on_start(task)
    np.savez(tmp_path / KEPT, *map(np.zeros, shapes))
    hook.on_phase_end(task)
    assert results(tmp_path) == {"probe": "knn", "pixels": 1.0}
    assert (tmp_path / f"{KEPT}.damaged1").exists()


@pytest.mark.parametrize("kind", ["bytes", "inodes"])
def test_without_room_for_the_features_they_are_probed_at_once(kind, probe, tmp_path, caplog):
    hook, task = probe(), Labelled(tmp_path / "disk").makes(Labelled.wrong)
    with small_disk(task.checkpoint_folder, megabytes=1) as folder:
        with full(folder, kind):
            hook.on_start(task)
        assert "is probed before training" in caplog.text
        assert not (folder / KEPT).exists()
        hook.every_epochs = 1
        hook.on_phase_end(task)  # which writes, with its own, what had to wait
        assert results(folder)["untrained trunk"] == 0.0


def test_the_features_stay_until_what_was_found_is_written(probe, tmp_path, monkeypatch):
    hook, task = probe(), Labelled(tmp_path / "disk").makes(Labelled.wrong)
    with small_disk(task.checkpoint_folder, megabytes=1) as folder:
        hook.on_start(task)
        with full(folder, "bytes"):
            hook.on_phase_end(task)
            assert (folder / KEPT).exists() and results(folder) is None
        hook.every_epochs = 1
        hook.on_phase_end(task)
        assert results(folder)["untrained trunk"] == 0.0 and not (folder / KEPT).exists()


def test_an_interrupted_run_finds_what_one_does_that_is_not(server, tmp_path):
    command = (*SHORT, "config.BARLOW.PROBE.KIND=linear", "config.BARLOW.PROBE.IMAGES=100")
    server.finish(tmp_path / "whole", *command)
    run = server.start(tmp_path / "run", *command)
    run.wait_for_steps(2)
    run.send(signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM, run.output[-3000:]
    assert max(run.steps()) < STEPS_PER_EPOCH and results(tmp_path / "run") is None
    server.finish(tmp_path / "run", *command)
    found = results(tmp_path / "run")
    assert found == results(tmp_path / "whole")
    assert found.keys() == {"probe", "pixels", "untrained trunk", "pretrained trunk"}


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
