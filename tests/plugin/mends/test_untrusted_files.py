"""Files a run is given run no code, and copies of data stay where they belong."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from files_with_code import malicious
from sklearn.svm import LinearSVC
from vissl_runs import resolve

from vissl_barlow import checkpoint as ck
from vissl_barlow.checkpoint.__main__ import main
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.mends import untrusted_files

DIGITS = "pretrain/vissl_barlow/digits_quickstart"


pytestmark = pytest.mark.usefixtures("barlow_run")


@pytest.fixture
def ran(tmp_path):
    """The folder that no file may make."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


def unguarded(path: Path) -> None:
    if path.suffix in (".torch", ".pth"):
        torch.load(path, weights_only=False)
    elif path.suffix == ".npz":
        np.load(path, allow_pickle=True)["features"]
    elif path.suffix == ".npy":
        np.load(path, allow_pickle=True)
    elif path.suffix == ".yaml":
        yaml.unsafe_load(path.read_text())
    else:
        pickle.loads(path.read_bytes())


@pytest.mark.parametrize("name", ["x.torch", "x.npy", "x.npz", "x.yaml", "x.pkl"])
def test_the_files_of_these_tests_would_run_code(tmp_path, name):
    unguarded(malicious(tmp_path / name, tmp_path / "witness"))
    assert (tmp_path / "witness").is_dir()


@pytest.mark.parametrize("name", ["x.pkl", "x.pickle", "x.npy", "x.yaml"])
@pytest.mark.parametrize("mmap_mode", [None, "r"])
def test_vissls_load_file_runs_nothing(tmp_path, ran, name, mmap_mode):
    from vissl.utils.io import load_file

    path = malicious(tmp_path / name, ran)
    with pytest.raises((ValueError, pickle.UnpicklingError, yaml.YAMLError)):
        load_file(str(path), mmap_mode=mmap_mode)


def trained_svm() -> LinearSVC:
    return LinearSVC().fit(np.array([[0.0], [1.0], [2.0], [3.0]]), [-1, -1, 1, 1])


def test_svms_are_stored_without_pickle(tmp_path):
    from vissl.utils.io import load_file
    from vissl.utils.svm_utils import svm_low_shot_trainer, svm_trainer

    svm, path = trained_svm(), tmp_path / "svm.pickle"
    for module in (svm_trainer, svm_low_shot_trainer):
        with path.open("wb") as file:
            module.pickle.dump(svm, file)
        with np.load(path, allow_pickle=False) as arrays:
            assert np.array_equal(arrays["coef_"], svm.coef_)
        loaded = load_file(str(path))
        assert np.array_equal(loaded.decision_function([[4.0]]), svm.decision_function([[4.0]]))
        assert np.array_equal(loaded.predict([[0.0], [4.0]]), [-1, 1])
        with pytest.raises(ValueError, match="2 features"):
            loaded.decision_function([[4.0, 4.0]])


class Reduced:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


# Each a pickle of names that an SVM's has as well; the first two make numpy take bytes for pointers.
FORGED = {
    "objects at an address": Reduced(np.ndarray, (1,), Reduced(np.dtype, "O"), b"A" * 8),
    "a dtype with a forged state": Reduced(
        np._core.multiarray.scalar, Reduced(np.dtype, "O"), b"A" * 8
    ),
    "an SVM": trained_svm(),
    "numbers": [1, 2],
}


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED)
def test_no_pickle_is_loaded_for_an_svm(tmp_path, content):
    from vissl.utils.io import load_file

    for name in ("svm.pickle", "svm.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content))
        with pytest.raises(pickle.UnpicklingError, match=rf"refused.*remove {tmp_path}/{name}"):
            load_file(str(tmp_path / name))


STRUCTURED = np.zeros((1, 1), dtype=[("x", "f8")])


@pytest.mark.parametrize("array", [STRUCTURED, np.array([[Reduced(id, 1)]])], ids=["fields", "O"])
def test_arrays_that_are_no_numbers_are_refused(tmp_path, array):
    from vissl.utils.io import load_file

    arrays = dict.fromkeys(untrusted_files._SVM_ARRAYS, np.zeros((1, 1)))
    np.savez(tmp_path / "svm.npz", **{**arrays, "coef_": array})
    (tmp_path / "svm.npz").rename(tmp_path / "svm.pickle")
    with pytest.raises(pickle.UnpicklingError, match="expected the arrays of an SVM"):
        load_file(str(tmp_path / "svm.pickle"))


def test_plain_files_still_load(tmp_path):
    from vissl.utils.io import load_file, save_file

    for name, value in {
        "a.yaml": {"lr": [0.1, None], "name": "x"},
        "a.json": {"lr": 1},
        "a.npy": np.arange(3),
    }.items():
        save_file(value, str(tmp_path / name), append_to_json=False)
        np.testing.assert_equal(load_file(str(tmp_path / name)), value)


def test_a_list_of_images_with_code_is_refused(tmp_path, ran):
    from vissl.config import AttrDict
    from vissl.data.disk_dataset import DiskImageDataset

    path = malicious(tmp_path / "images.npy", ran)
    for mmap in (True, False):
        cfg = AttrDict({"DATA": {"TRAIN": {"MMAP_MODE": mmap, "BATCHSIZE_PER_REPLICA": 2}}})
        with pytest.raises(ValueError, match=r"allow_pickle|Python objects"):
            DiskImageDataset(cfg, "disk_filelist", str(path), "TRAIN", "x")


def test_weights_to_start_from_with_code_are_refused(tmp_path, ran):
    from vissl.config import AttrDict
    from vissl.trainer.train_task import SelfSupervisionTask
    from vissl.utils.checkpoint import CheckpointLoader

    from vissl_barlow.vissl_plugin.components.task import BarlowTask

    path = malicious(tmp_path / "weights.torch", ran)
    config = AttrDict(
        {
            "MODEL": {
                "WEIGHTS_INIT": {"PARAMS_FILE": str(path)},
                "FEATURE_EVAL_SETTINGS": {"EVAL_MODE_ON": False},
            },
            "BARLOW": {"WEIGHTS_TRUNK": ""},
            "TEST_ONLY": False,
        }
    )
    for kind in (BarlowTask, SelfSupervisionTask):  # the plugin's way and VISSL's own
        task = kind.__new__(kind)
        task.config = config
        with pytest.raises((ck.CheckpointError, pickle.UnpicklingError), match="mkdir"):
            task._restore_model_weights(None)
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        CheckpointLoader.load_and_broadcast_checkpoint(
            str(tmp_path), str(path), torch.device("cpu")
        )


def test_a_checkpoint_to_resume_from_with_code_is_refused(tmp_path, ran):
    malicious(tmp_path / "model_phase3.torch", ran)
    with pytest.raises(ConfigError, match="every checkpoint there is damaged"):
        resolve(tmp_path, DIGITS)


def test_the_converter_runs_nothing(tmp_path, ran, capsys):
    source = malicious(tmp_path / "weights.pth", ran)
    for target in ("torchvision", "vissl", "detectron2"):
        assert main(["--to", target, str(source), str(tmp_path / "out.pth")]) == 1
        assert "mkdir" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


def test_a_config_runs_nothing(tmp_path, ran, monkeypatch):
    (tmp_path / "configs" / "config").mkdir(parents=True)
    malicious(tmp_path / "configs" / "config" / "evil.yaml", ran)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(yaml.YAMLError, match="python/object/apply"):
        resolve(tmp_path / "run", "evil")


# Copies of data to a local disk.


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "images"
    (folder / "cats").mkdir(parents=True)
    (folder / "cats" / "a.jpg").write_bytes(b"a cat")
    (folder / "b.jpg").write_bytes(b"b")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    return folder


def copied(source: Path, target: Path) -> Path:
    from vissl.utils.io import copy_data_to_local

    files, _ = copy_data_to_local([str(source)], str(target))
    return Path(files[0])


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_run_uses_the_copy_and_removes_that_alone(source, tmp_path):
    from vissl.config import AttrDict
    from vissl.data.dataset_catalog import get_data_files
    from vissl.utils import distributed_launcher

    local = tmp_path / "local disk; touch ran"
    local.mkdir()
    (local / "mine").write_text("precious")
    labels = tmp_path / "labels.npy"
    np.save(labels, np.arange(2))
    section = {
        "DATASET_NAMES": ["x"],
        "DATA_SOURCES": ["disk_folder"],
        "DATA_PATHS": [str(source)],
        "LABEL_PATHS": [str(labels)],
        "COPY_TO_LOCAL_DISK": True,
        "COPY_DESTINATION_DIR": str(local),
    }
    cfg = AttrDict({"DATA": {"TRAIN": section}})
    distributed_launcher._copy_to_local(cfg)
    data_files, label_files = get_data_files("TRAIN", cfg.DATA)
    assert data_files == [f"{local}/images"] and label_files == [f"{local}/labels.npy"]
    assert tree(local / "images") == {"cats/a.jpg", "b.jpg", untrusted_files._COMPLETE}
    assert (local / "images" / "cats" / "a.jpg").read_bytes() == b"a cat"

    distributed_launcher._cleanup_local_dir(cfg)
    assert tree(local) == {"mine"} and tree(source) == {"cats/a.jpg", "b.jpg"}


def test_a_second_run_takes_a_whole_copy_as_it_is_and_leaves_it(source, tmp_path):
    from vissl.utils.io import cleanup_dir

    copied(source, tmp_path / "local")
    untrusted_files._copied.clear()  # another process's
    (source / "new.jpg").write_bytes(b"new")
    assert "new.jpg" not in tree(copied(source, tmp_path / "local"))
    cleanup_dir(str(tmp_path / "local"))
    assert "b.jpg" in tree(tmp_path / "local" / "images")


def test_an_interrupted_copy_is_completed(source, tmp_path, monkeypatch):
    whole = untrusted_files.shutil.copyfile

    def interrupted(path, target):
        if path.name == "a.jpg":
            Path(target).write_bytes(b"a c")
            raise KeyboardInterrupt
        whole(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(untrusted_files.shutil, "copyfile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            copied(source, tmp_path / "local")
    assert "cats/a.jpg" not in tree(tmp_path / "local" / "images")
    assert (copied(source, tmp_path / "local") / "cats" / "a.jpg").read_bytes() == b"a cat"


@pytest.mark.parametrize(
    ("link", "to"),
    [
        ("images/cats/key", "secret/key"),  # a file outside, relative to it
        ("images/more", "secret"),  # a folder outside
        ("local/images", "secret"),  # the copy's own folder
        ("local/images/cats", "secret"),
        ("local/images/b.jpg", "secret/key"),
    ],
)
def test_no_link_leads_out(source, tmp_path, link, to):
    (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / link).symlink_to(tmp_path / to)
    with pytest.raises(ValueError, match="link"):
        copied(source, tmp_path / "local")
    assert tree(tmp_path / "secret") == {"key"}
    assert (tmp_path / "secret" / "key").read_text() == "secret"
    assert not any(
        "secret" in path.read_text()
        for path in (tmp_path / "local").rglob("*.jpg")
        if not path.is_symlink()
    )


def test_a_link_within_the_data_is_copied_as_its_file(source, tmp_path):
    (source / "again.jpg").symlink_to("cats/a.jpg")
    copy = copied(source, tmp_path / "local") / "again.jpg"
    assert copy.read_bytes() == b"a cat" and not copy.is_symlink()


def test_the_clean_up_follows_no_link(source, tmp_path):
    from vissl.utils.io import cleanup_dir

    copy = copied(source, tmp_path / "local")
    (copy / "out").symlink_to(tmp_path / "secret")
    cleanup_dir(str(tmp_path / "local"))
    assert tree(tmp_path / "local") == set() and tree(tmp_path / "secret") == {"key"}
