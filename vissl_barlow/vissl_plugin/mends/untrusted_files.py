"""vissl/utils/io.py: files that a run is given run no code, and its copies reach nothing outside."""

import os
import pickle
import secrets
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from sklearn.svm import LinearSVC
from vissl.utils import distributed_launcher, io
from vissl.utils.slurm import get_slurm_dir
from vissl.utils.svm_utils import svm_low_shot_trainer, svm_trainer

from vissl_barlow.vissl_plugin.wrap import in_barlow_run, overlay, wrap

# VISSL's mark of a folder that was copied to its end.
_COMPLETE = "copy_complete"

# What this process has copied and will remove again.
_copied: set[Path] = set()

# What a trained LinearSVC consists of: numbers, stored as numpy.savez does.
_SVM_ARRAYS = ("coef_", "intercept_", "classes_")


def store_svms_without_pickle() -> None:
    """vissl/utils/io.py:105: `pickle.load(fopen)`, for the SVMs and any `.pkl` a config names.

    A fault of VISSL 0.1.6: whatever the file holds is run. A list of allowed names does not help:
    numpy's own, called with a pickle's arguments, take its numbers for addresses. Under the same names
    SVMs are arrays now (svm_trainer.py:193 and svm_low_shot_trainer.py:138 write them), and pickles are
    refused.
    """

    def dump(obj, file, *args, **options):
        if in_barlow_run() and isinstance(obj, LinearSVC):
            np.savez(file, **{name: getattr(obj, name) for name in _SVM_ARRAYS})
        else:
            pickle.dump(obj, file, *args, **options)

    def load(file, **options):
        return _load_svm(file) if in_barlow_run() else pickle.load(file, **options)

    for module in (io, svm_trainer, svm_low_shot_trainer):
        overlay(module, "pickle", load=load, dump=dump)


def _load_svm(file: IO[bytes]) -> LinearSVC:
    svm = LinearSVC()
    try:
        with zipfile.ZipFile(file) as archive:
            for name in _SVM_ARRAYS:
                with archive.open(f"{name}.npy") as member:
                    array = np.lib.format.read_array(member, allow_pickle=False)
                if array.dtype.kind not in "fi":
                    raise ValueError(f"{name} is an array of {array.dtype}")
                setattr(svm, name, array)
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, MemoryError) as error:
        raise pickle.UnpicklingError(
            "refused: expected the arrays of an SVM; a pickle can run code, and none is loaded: "
            f"remove {file.name}, and what it was is trained anew ({error})"
        ) from None
    svm.n_features_in_ = svm.coef_.shape[-1]
    return svm


def keep_copies_inside() -> None:
    """vissl/utils/io.py:176, 234 and 278: `os.system` with paths from the config in its command.

    Faults of VISSL 0.1.6: a path with a space or a semicolon is taken for more of the command, links
    are followed out of the destination, and when the run ends the whole destination is removed,
    whatever else was in it. Now nothing is handed to a shell, a link that leads out of the source or
    lies in the destination is refused, and only what this process has copied is removed.
    """

    @wrap(io, "copy_file", applies=in_barlow_run)
    def copy_file(original, input_file, destination_dir, tmp_destination_dir):
        destination = Path(get_slurm_dir(destination_dir or tmp_destination_dir))
        destination.mkdir(parents=True, exist_ok=True)
        source = Path(io.g_pathmgr.get_local_path(input_file))
        _copy(source, source.parent, destination / source.name)
        return str(destination / source.name), str(destination)

    @wrap(io, "copy_dir", applies=in_barlow_run)
    def copy_dir(original, input_dir, destination_dir, num_threads):
        source = Path(input_dir)
        folder = destination_dir or tempfile.mkdtemp()
        # The name that VISSL looks for afterwards; `..` is no name.
        name = source.name if source.name != ".." else source.resolve().name
        destination = Path(get_slurm_dir(folder), name)
        _refuse_link(destination)
        if not (destination / _COMPLETE).exists():
            copy_tree(source, destination)
            (destination / _COMPLETE).touch()
        return str(destination), folder  # VISSL's second value is a level too deep to be found

    for module in (io, distributed_launcher):

        @wrap(module, "cleanup_dir", applies=in_barlow_run)
        def cleanup_dir(original, folder):
            for path in [path for path in _copied if path.is_relative_to(os.path.abspath(folder))]:
                path.unlink(missing_ok=True) if path.is_file() else shutil.rmtree(path)
                _copied.discard(path)


def copy_tree(source: Path, destination: Path) -> None:
    """Copies the files below `source`; a link inside it that stays inside is copied as its file.

    Raises:
        ValueError: a link in `source` leads out of it, or there is a link in `destination`.
    """
    fresh = not destination.exists()
    destination.mkdir(parents=True, exist_ok=True)
    if fresh:
        _copied.add(Path(os.path.abspath(destination)))
    for parent, folders, files in os.walk(source):
        target = destination / os.path.relpath(parent, source)
        for name in folders:
            if Path(parent, name).is_symlink():
                raise ValueError(
                    f"{parent}/{name}: a link to a folder is not copied; copy what it leads to into "
                    "its place, or set COPY_TO_LOCAL_DISK=false"
                )
            _refuse_link(target / name)
            (target / name).mkdir(exist_ok=True)
        for name in files:
            _copy(Path(parent, name), source, target / name)


def _copy(source: Path, root: Path, target: Path) -> None:
    """One file, under its name only when whole; a file that is there already stays."""
    if not source.resolve().is_relative_to(root.resolve()):
        raise ValueError(
            f"{source}: a link that leads out of {root} is not copied; put the file itself there, or "
            "set COPY_TO_LOCAL_DISK=false"
        )
    _refuse_link(target)
    if target.exists():
        return
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        shutil.copyfile(source, temporary)
        shutil.copymode(source, temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if not any(target.absolute().is_relative_to(path) for path in _copied):
        _copied.add(Path(os.path.abspath(target)))


def _refuse_link(target: Path) -> None:
    if target.is_symlink():
        raise ValueError(f"{target}: a link lies where a copy would go; remove it")
