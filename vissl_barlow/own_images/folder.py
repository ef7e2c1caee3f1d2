"""What a folder of images is: which are trained on, which are held out, and what labels they have."""

import difflib
import functools
import hashlib
import os
import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from vissl_barlow.images import FORMATS, MAX_BYTES, grouped_parts, image_listing, part_of_data_set
from vissl_barlow.messages import listed
from vissl_barlow.regular_files import open_regular, read_regular, regular_size

# Images that are compared with one another: those held out, and trained on.
COMPARED_TEST, COMPARED_TRAINING = 2000, 100_000
# Of each class, one image in so many is held out where nothing else is there to test on.
HELD_OUT_ONE_IN = 10
# Enough for a median.
SAMPLED_SIZES = 256
# Torchvision's, and others of the same formats.
_ENDINGS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe", ".apng", ".pbm", ".pnm")
# Of pictures that are not read. What else lies beside images (texts, videos) is not missed.
_UNREAD_ENDINGS = frozenset(
    [
        *(
            ".heic",
            ".heif",
            ".avif",
            ".jxl",
            ".jp2",
            ".j2k",
            ".psd",
            ".tga",
            ".eps",
            ".svg",
            ".ico",
        ),
        *(".dcm", ".nii", ".npy", ".exr", ".hdr", ".pfm", ".raw", ".dng", ".cr2", ".cr3", ".nef"),
        *(".arw", ".orf", ".rw2", ".raf"),
    ]
)
# Formats whose files may be films, or stacks of pages.
_OF_FRAMES = ("TIFF", "GIF", "WEBP", "PNG")
# Where systems put copies and scraps of images, beside what is hidden by a dot.
_HIDDEN_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})
_SHOWN_ENDINGS = 3
# Ends what is said of a folder that has none, before any note.
WITHOUT_LABELS = "without labels"


class FolderRefused(ValueError):
    """A path that is no folder of images; the message says why.

    Attributes:
        instead: a path that may have been meant, or None.
    """

    def __init__(self, why: str, instead: str | None = None) -> None:
        super().__init__(why)
        self.instead = instead


@dataclass(frozen=True)
class OwnFolder:
    """The images below a folder.

    Attributes:
        root: the folder, as it was given.
        train: paths, relative to `root`, of the images to pretrain on.
        test: those of the images that are held out; none without labels.
        classes: names of the classes, sorted; none without labels.
        train_labels, test_labels: (N,) int64, places in `classes`, of `train` and `test`; None without
            labels.
        test_from: whence `test` is, such as "val/" or "1 in 10 of each class"; "" without labels.
        note: why there are no labels, or what is left out; "" where there is nothing to say.
    """

    root: str
    train: list[str]
    test: list[str]
    classes: list[str]
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    test_from: str
    note: str

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """(N, 2) heights and widths in pixels of at most 256 images of `train`, drawn at random but
        always the same; without those whose header cannot be read."""
        sizes = [header.size for _, header in self._headers]
        return np.array(sizes, dtype=np.int64).reshape(-1, 2)

    @functools.cached_property
    def _headers(self) -> list[tuple[str, "_Header"]]:
        chosen = random.Random(0).sample(self.train, min(SAMPLED_SIZES, len(self.train)))
        found = ((name, _header_of(os.path.join(self.root, name))) for name in chosen)
        return [(name, header) for name, header in found if header]

    @functools.cached_property
    def trained_on(self) -> list[tuple[str, str]]:
        """Images of `test`, of at most 2000, that equal one of `train` byte for byte, and that one.

        Of more than 100,000 training images none are looked at: it would take minutes.
        """
        if len(self.train) > COMPARED_TRAINING:
            return []
        count = min(COMPARED_TEST, len(self.test))
        tested = {name: self._bytes(name) for name in random.Random(0).sample(self.test, count)}
        sizes = set(tested.values()) - {0}
        of_digest: dict[bytes, str] = {}
        for name in self.train:
            if self._bytes(name) in sizes:
                of_digest.setdefault(self._digest(name), name)
        known = ((name, of_digest.get(self._digest(name))) for name, size in tested.items() if size)
        return [(name, twin) for name, twin in known if twin]

    def _bytes(self, name: str) -> int:
        try:
            return regular_size(os.path.join(self.root, name))
        except OSError:
            return 0

    def _digest(self, name: str) -> bytes:
        try:
            data = read_regular(os.path.join(self.root, name), MAX_BYTES)
        except OSError:
            data = os.fsencode(name)
        return hashlib.blake2b(data, digest_size=16).digest()

    @property
    def warnings(self) -> list[str]:
        """What makes numbers on the images held out too good, and what is not read, in a line each."""
        lines = []
        if found := self.trained_on:
            pairs = listed(f"{name} is {twin}" for name, twin in found)
            compared = min(len(self.test), COMPARED_TEST)
            lines.append(
                f"{len(found)} of {compared} images held out are trained on as well, byte for byte "
                f"({pairs}): numbers on them are too good; remove one of each"
            )
        if several := [
            f"{name}: {header.frames}" for name, header in self._headers if header.frames > 1
        ]:
            lines.append(
                f"{len(several)} of {len(self._headers)} images looked at have several frames or pages "
                f"({listed(several)}), of which the first is read; write others into files of their own"
            )
        return lines

    @property
    def description(self) -> str:
        """What was found, in one line."""
        images = len(self.train) + len(self.test)
        if not self.classes:
            found = f"{images} images {WITHOUT_LABELS}"
            return f"{found}: {self.note}" if self.note else found
        line = (
            f"{images} images in {len(self.classes)} classes; {len(self.test)} of them "
            f"({self.test_from}) are held out: they test, and are not pretrained on"
        )
        return f"{line}; {self.note}" if self.note else line


def read_folder(path: str | os.PathLike[str]) -> OwnFolder:
    """Says what images `path` has, by the names of its folders alone.

    What is hidden is left out, and said: names that begin with a dot, and where systems keep scraps.

    Folders of images are classes, named by the topmost that tell images apart, unless there is but one
    or images lie beside them. `train/` beside `val/` (or `valid/`, `validation/`, `test/`, the first
    whose classes are train's) gives the images to train and to test on. Otherwise 1 in 10 of each class
    of at least two images is held out, at least one, chosen by the images' names alone. Without labels
    nothing is held out.

    Raises:
        FolderRefused: no folder, none with images, or one with others beside `train/` and `val/`.
        UnreadableFolder: a folder below it cannot be read, or a link there leads nowhere.
    """
    root = os.fspath(path)
    if not os.path.isdir(root):
        raise _no_folder(root)
    unread: Counter[str] = Counter()
    listed_names = image_listing(root, functools.partial(_is_image, unread=unread)).images
    names = [name for name in listed_names if not _hidden(name)]
    # Of a million images, mostly none.
    some = len(names) < len(listed_names)
    hidden = dict.fromkeys(filter(None, map(_hidden, listed_names))) if some else {}
    if not names:
        if hidden:
            first = next(iter(hidden))
            inside = os.path.isdir(os.path.join(root, first))
            raise FolderRefused(
                f"all of its {len(listed_names)} images are hidden ({listed(hidden)})",
                os.path.join(root, first) if inside else None,
            )
        raise FolderRefused(_what_else(root))
    left_out = []
    if hidden:
        count = len(listed_names) - len(names)
        left_out.append(f"{count} hidden images ({listed(hidden)}) left out")
    if unread:
        endings = (f"{count} {ending}" for ending, count in unread.most_common())
        left_out.append(f"no format that is read, and left out: {listed(endings)}")
    found = _read(root, names)
    return replace(found, note="; ".join(filter(None, [found.note, *left_out])))


def _is_image(name: str, unread: Counter[str]) -> bool:
    """Whether a file is listed; counts in `unread` the pictures that are not."""
    ending = os.path.splitext(name)[1].lower()
    if ending in _UNREAD_ENDINGS and not _hidden(name):
        unread[ending] += 1
    return ending in _ENDINGS


def _hidden(name: str) -> str:
    """What of a path hides it: the path up to there; "" where nothing does."""
    parts = name.split(os.sep)
    for place, part in enumerate(parts):
        if part.startswith(".") or part in _HIDDEN_FOLDERS:
            return os.path.join(*parts[: place + 1])
    return ""


def _read(root: str, names: Sequence[str]) -> OwnFolder:
    base = _base(names)
    tops = _tops(names, base)
    if parts := _parts(tops):
        if others := [top or "images" for top in tops if top not in parts]:
            raise FolderRefused(
                f"found {listed(others)} beside {listed(parts)}, parts of a data set; name one folder",
                os.path.join(root, base, parts[0]),
            )
        return _of_parts(root, names, base, parts)
    labels, note = _labels(names, base)
    return _with_held_out(root, names, labels, note)


def _no_folder(path: str) -> FolderRefused:
    absolute = Path(path).absolute()
    if absolute.is_file():
        return FolderRefused("this is a file, and not a folder of images", str(absolute.parent))
    if os.path.lexists(absolute):
        return FolderRefused("this is no folder")
    parent = absolute.parent
    try:
        beside = sorted(entry.name for entry in os.scandir(parent) if entry.is_dir())
    except OSError:
        beside = []
    near = difflib.get_close_matches(absolute.name, beside, n=1)
    return FolderRefused("there is no such folder", str(parent / near[0]) if near else None)


def _what_else(root: str) -> str:
    """Why a folder without images is refused."""
    endings: Counter[str] = Counter()
    for _, _, files in os.walk(root):
        endings.update(Path(name).suffix.lower() for name in files)
    expected = f"no image is in or below it: expected {', '.join(FORMATS)} files"
    if not endings:
        return f"{expected}, and found no file at all"
    common = [ending for ending, _ in endings.most_common(_SHOWN_ENDINGS)]
    found = f"{expected}, and found {listed(common)}"
    unread = [ending for ending in common if ending in _UNREAD_ENDINGS]
    return f"{found}; convert the {listed(unread)} files, to JPEG or PNG" if unread else found


def _base(names: Sequence[str]) -> str:
    """The folder, relative to the root, where the names of the images part: "" for the root itself."""
    # Of names in their folders' order the first and the last part soonest.
    folders = [os.path.dirname(name) for name in (names[0], names[-1])]
    return os.path.commonpath(folders) if all(folders) else ""


def _tops(names: Sequence[str], base: str) -> list[str]:
    """The first folders below `base`, sorted; "" stands for images right in it."""
    return sorted(set(_firsts(names, base)))


def _firsts(names: Sequence[str], base: str) -> list[str]:
    """Of each image, the first folder below `base`: "" if it is right in it, or not below it."""
    start = base + os.sep if base else ""
    firsts = []
    for name in names:
        top, separator, _ = name.removeprefix(start).partition(os.sep)
        firsts.append(top if separator and name.startswith(start) else "")
    return firsts


def _parts(tops: Iterable[str]) -> list[str]:
    """train/ and what is to be tested on beside it, as they are spelt; none if it is not such a data
    set."""
    train, test = grouped_parts(tops)
    return [*train[:1], *test]


def _labels(names: Sequence[str], base: str) -> tuple[list[str] | None, str]:
    """The class of each image, or None and why there is none."""
    tops = _tops(names, base)
    if len(tops) == 1:
        return None, ""
    if "" in tops:
        return None, "images lie beside folders of images, so these are taken for no classes"
    kinds = [part_of_data_set(top) for top in tops]
    if None not in kinds and len({kind[1] for kind in kinds if kind}) == 1:
        return None, f"{listed(tops)} are parts of a data set, and no classes"
    return _firsts(names, base), ""


def _of_parts(root: str, names: Sequence[str], base: str, parts: Sequence[str]) -> OwnFolder:
    train, *tests = parts
    train_folder = os.path.join(base, train)
    own = _below(names, train_folder)
    labels, note = _labels(own, _base(own))
    if labels is None:
        left_out = f"{listed(tests)} left out"
        return _with_held_out(root, own, None, f"{note}; {left_out}" if note else left_out)
    inside = os.path.relpath(_base(own), train_folder)
    strangers: list[str] = []
    for part in tests:
        folder = os.path.join(base, part)
        test = _below(names, folder)
        # Deeper ones may be named after the parts: seg_train/seg_train/CLASS.
        for above in (os.path.normpath(os.path.join(folder, inside)), _base(test)):
            theirs = _firsts(test, above)
            strangers = sorted(set(theirs) - set(labels))
            if not strangers:
                others = [other for other in tests if other != part]
                note = f"{listed(others)} left out" if others else ""
                return _labelled(root, own, labels, test, theirs, f"{part}/", note)
    note = (
        f"{listed(tests)} left out, since its classes are not those of {train}: {listed(strangers)}"
    )
    return _with_held_out(root, own, labels, note)


def _below(names: Sequence[str], folder: str) -> list[str]:
    return [name for name in names if name.startswith(folder + os.sep)]


def _with_held_out(
    root: str, names: Sequence[str], labels: Sequence[str] | None, note: str
) -> OwnFolder:
    held_out = _held_out(names, labels) if labels else set()
    if labels and not held_out:
        labels, note = None, "no class has two images"
    if not labels:
        return OwnFolder(root, list(names), [], [], None, None, "", note)
    train, test = (
        [pair for pair in zip(names, labels) if (pair[0] in held_out) is wanted]
        for wanted in (False, True)
    )
    return _labelled(
        root,
        *([each[0] for each in train], [each[1] for each in train]),
        *([each[0] for each in test], [each[1] for each in test]),
        f"1 in {HELD_OUT_ONE_IN} of each class",
        note,
    )


def _held_out(names: Sequence[str], labels: Sequence[str]) -> set[str]:
    """Of each class those whose names hash to the smallest numbers: images that come or go later
    leave the others where they are."""
    of_class: dict[str, list[str]] = {}
    for name, label in zip(names, labels):
        of_class.setdefault(label, []).append(name)
    held_out: set[str] = set()
    for members in of_class.values():
        if len(members) > 1:
            count = max(1, len(members) // HELD_OUT_ONE_IN)
            held_out.update(sorted(members, key=_draw)[:count])
    return held_out


def _draw(name: str) -> bytes:
    # The last two parts: the folder's own place, or one around it, may change.
    tail = "/".join(name.split(os.sep)[-2:])
    return hashlib.blake2b(os.fsencode(tail), digest_size=8).digest()


def _labelled(
    root: str,
    train: list[str],
    train_classes: list[str],
    test: list[str],
    test_classes: list[str],
    test_from: str,
    note: str,
) -> OwnFolder:
    classes = sorted(set(train_classes))
    spelt: dict[str, list[str]] = {}
    for name in classes:
        spelt.setdefault(unicodedata.normalize("NFC", name).casefold().strip(), []).append(name)
    for names in spelt.values():
        if len(names) > 1:
            alike = f"{listed(names)} are {len(names)} classes, though spelt alike"
            note = f"{note}; {alike}" if note else alike
    index = {name: label for label, name in enumerate(classes)}
    train_labels, test_labels = (
        np.array([index[name] for name in names], dtype=np.int64)
        for names in (train_classes, test_classes)
    )
    return OwnFolder(root, train, test, classes, train_labels, test_labels, test_from, note)


class _Header(NamedTuple):
    """`size`: height and width in pixels."""

    size: tuple[int, int]
    frames: int


def _header_of(path: str) -> _Header | None:
    """None where it cannot be read."""
    try:
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
            # A camera's JPEG may have a preview as its second.
            frames = getattr(image, "n_frames", 1) if image.format in _OF_FRAMES else 1
            return _Header((image.height, image.width), frames)
    except Exception:  # whatever Pillow's parsers raise
        return None
