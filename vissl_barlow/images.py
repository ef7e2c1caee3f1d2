"""Image files: those below a folder, to RGB arrays, and which of them cannot be read.

libjpeg-turbo decodes the common JPEG, Pillow everything else.
"""

import io
import os
import random
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION
from torchvision.datasets.folder import IMG_EXTENSIONS

from vissl_barlow.regular_files import read_regular

# Pillow's own limit for an outright refusal, here for JPEG as well: 512 MiB of RGB.
MAX_PIXELS = 178_956_970
# As many as the largest image has in RGB.
MAX_BYTES = 3 * MAX_PIXELS
# libtiff's own limit. A progressive JPEG has about 10, and each goes over all pixels, however few
# bytes it has; so the largest images may have fewer.
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 20 * MAX_PIXELS
# Those that data sets hold, whatever their files are called. Pillow knows fifty more, some of which
# start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
JPEG_COLORSPACES = ("YCbCr", "RGB", "Gray")


class UnreadableImage(ValueError):
    """The bytes are not an image that can be decoded; the message says why."""


def decode_image(data: bytes) -> np.ndarray:
    """Decodes one image file.

    What `PIL.Image.open(...).convert("RGB")` gives (VISSL's and torchvision's loader), within a
    grey level: the first frame of several is taken, the EXIF orientation is ignored. Two departures:
    what is transparent stands on white, and greyscale of 12 or 16 bits is scaled to 8, where Pillow
    clips everything above 255 to white (`rgb_on_white`).

    Args:
        data: the bytes of the file.

    Returns:
        uint8 array (H, W, 3), RGB, contiguous and writable.

    Raises:
        UnreadableImage: empty, truncated or damaged data, none of `FORMATS`, 32-bit pixels of unknown
            range, more than `MAX_PIXELS` pixels, or a JPEG of more than `MAX_SCANS` scans, or of
            scans that go over more than `MAX_SCANNED_PIXELS` pixels.
    """
    if len(data) == 0:
        raise UnreadableImage("the file is empty")
    image = _decode_jpeg(data)
    return _decode_with_pillow(data) if image is None else image


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """The image, or None where Pillow has to decide: no JPEG, CMYK, or one with a defect."""
    if not simplejpeg.is_jpeg(data):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in JPEG_COLORSPACES:
            return None
        _check_cost(data, width, height)
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except UnreadableImage:
        raise
    except ValueError:
        # Strict: also raised for a defect that Pillow forgives, such as stray bytes at the end.
        return None


def _decode_with_pillow(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_cost(data, *image.size)
            return np.array(rgb_on_white(image))
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"no image format that is read ({', '.join(FORMATS)})") from error
    # Pillow's decoders raise whatever their format's parser trips over (OSError, SyntaxError,
    # struct.error, DecompressionBombError, ...).
    except Exception as error:
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _check_cost(data: bytes, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImage(
            f"{width} x {height} pixels, more than {MAX_PIXELS}: scale the file down"
        )
    most = min(MAX_SCANS, MAX_SCANNED_PIXELS // max(width * height, 1))
    if data.startswith(b"\xff\xd8") and _jpeg_scans(data, most) > most:
        raise UnreadableImage(f"a JPEG of more than {most} scans: encode it anew")


# What ends a scan's data: no escaped byte, restart marker or filling.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def _jpeg_scans(data: bytes, most: int) -> int:
    """Through how many scans of a JPEG its decoder goes, counted to one more than `most`."""

    def number(begin: int, size: int) -> int:
        return int.from_bytes(data[begin : begin + size], "big")

    at, scans, components, progressive = 2, 0, 0, False
    while scans <= most and (found := _JPEG_MARKER.search(data, at)):
        at = found.end()
        marker = data[at - 1]
        if marker == 0xD9:  # the end
            break
        if marker in _JPEG_FRAMES:
            progressive, components = marker % 4 == 2, number(at + 7, 1)
        elif marker == 0xDA:
            scans += 1
            if not progressive and number(at + 2, 1) == components:
                break  # all there is to an ordinary JPEG: what follows is not decoded
        if marker not in (0x01, 0xD8):  # which have no length
            at += number(at, 2)
    return scans


def rgb_on_white(image: Image.Image) -> Image.Image:
    """A PIL image of any mode in RGB: on white, where it is transparent.

    Pillow's own conversion drops alpha, and shows what a program has left below it. Greyscale of 12 or
    16 bits is scaled to 8 by its range.

    Raises:
        UnreadableImage: 32-bit pixels of unknown range.
    """
    # Pillow calls a 16-bit PGM "I", and before 11 a 16-bit PNG too.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = np.asarray(image)
        tags = getattr(image, "tag_v2", {})
        (bits,) = tags.get(BITSPERSAMPLE, (16,))
        levels = np.round(grey / ((2**bits - 1) / 255)).astype(np.uint8)
        if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero; Pillow heeds it up to 8 bits
            levels = 255 - levels
        levels[grey == image.info.get("transparency", -1)] = 255
        return Image.fromarray(levels).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnreadableImage(
            f"pixels of 32 bits or with a sign (mode {image.mode}) have no range to scale to 8 bits: "
            "convert the file to 8 or 16 bits"
        )
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads and decodes one image file, as `decode_image` does.

    Raises:
        UnreadableImage: no regular file of at most `MAX_BYTES`, or it cannot be opened or decoded;
            the message starts with its path.
    """
    try:
        return decode_image(read_regular(path, MAX_BYTES))
    except OSError as error:
        raise UnreadableImage(f"{path}: {error.strerror}") from None
    except UnreadableImage as error:
        raise UnreadableImage(f"{path}: {error}") from None


class UnreadableFolder(OSError):
    """A folder of images that cannot be listed in full; the message names what is in the way."""


class ImageListing(NamedTuple):
    """`images`: paths relative to the folder; `repeated`: links to folders that are listed already."""

    images: list[str]
    repeated: list[str]


def list_images(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of the images below `folder`, relative to it, in torchvision's ImageFolder order.

    Sub-folders are optional: pretraining needs no classes. Links are followed, and every folder is
    listed once, however many links lead to it.

    Raises:
        FileNotFoundError: `folder` is not a folder.
        UnreadableFolder: a folder below it cannot be read, or a link there leads nowhere.
    """
    return image_listing(folder).images


def _is_image_to_torchvision(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)


def image_listing(
    folder: str | os.PathLike[str], is_image: Callable[[str], bool] = _is_image_to_torchvision
) -> ImageListing:
    """As `list_images`, with the links that were not followed, since their images are listed already.

    A folder's own place goes before a link to it, and the first link in the order before the next.

    Args:
        folder: the folder.
        is_image: whether a file of this name is listed. Default: of those that torchvision lists.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder} is not a folder")
    listed: dict[tuple[str, ...], list[str]] = {}
    visited: set[tuple[int, int]] = set()
    waiting: list[tuple[str, ...]] = [()]
    repeated = []
    while waiting:
        links: list[tuple[str, ...]] = []
        for start in sorted(waiting):
            if not _list_tree(folder, start, listed, visited, links, is_image):
                repeated.append(os.path.join(*start))
        waiting = links
    images = [os.path.join(*parts, name) for parts in sorted(listed) for name in listed[parts]]
    return ImageListing(images, sorted(repeated))


def _list_tree(
    root: str | os.PathLike[str],
    start: tuple[str, ...],
    listed: dict[tuple[str, ...], list[str]],
    visited: set[tuple[int, int]],
    links: list[tuple[str, ...]],
    is_image: Callable[[str], bool],
) -> bool:
    """Adds to `listed` the images of the folder `start` and of those in it, to `links` the links.

    Returns False where `start` was visited before.
    """
    stack = [start]
    while stack:
        parts = stack.pop()
        path = os.path.join(root, *parts)
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in visited:
                # Within a tree of real folders this happens for its start alone.
                if parts == start:
                    return False
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                images = []
                for entry in entries:
                    if entry.is_dir():
                        (links if entry.is_symlink() else stack).append((*parts, entry.name))
                    elif is_image(entry.name):
                        images.append(entry.name)
                    elif entry.is_symlink() and not os.path.exists(entry.path):
                        raise UnreadableFolder(f"{entry.path} is a link that leads nowhere")
        except UnreadableFolder:
            raise
        except OSError as error:
            raise UnreadableFolder(f"{error.filename or path}: {error.strerror}") from None
        listed[parts] = sorted(images)
    return True


# A data set's parts as people name their folders: train, training_set, val2017, seg_test.
_PART = re.compile(
    r"(?P<before>(?:.*[^a-z])?)"
    r"(?:(?P<train>train(?:ing)?)|(?P<val>val(?:id(?:ation)?)?|dev|eval)|(?P<test>test(?:ing)?))"
    r"(?:[ _.-]?(?:set|split|data|images|imgs|\d+))*",
    re.IGNORECASE,
)


def part_of_data_set(name: str) -> tuple[str, str] | None:
    """Of the name of a part's folder: "train", "val" or "test", and what stands before; else None."""
    match = _PART.fullmatch(name)
    if match is None:
        return None
    kind = next(kind for kind in ("train", "val", "test") if match[kind])
    return kind, match["before"].lower()


def grouped_parts(tops: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of folders those that are parts of one data set: to train on, and to test on, val before test.

    Both are empty where one is, or where what stands before the parts' names is not the same.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for top in sorted(tops):
        if found := part_of_data_set(top):
            groups.setdefault(found[1], []).append((found[0], top))
    for group in groups.values():
        train, val, test = (
            [top for kind, top in group if kind == wanted] for wanted in ("train", "val", "test")
        )
        if train and (val or test):
            return train, val + test
    return [], []


def parts_of_data_set(images: Sequence[str]) -> list[str]:
    """The folders at the top, if they are parts of a data set (train/ and others) and nothing else.

    Args:
        images: as `list_images` gives them.
    """
    tops = {name.partition(os.sep)[0] for name in images}
    train, test = grouped_parts(tops)
    return sorted(tops) if tops == {*train, *test} else []


class ImageCheck(NamedTuple):
    """`checked`: how many images were decoded; `unreadable`: those of them that could not be."""

    checked: int
    unreadable: list[str]


def unreadable_images(
    paths: Sequence[str],
    wanted: int,
    *,
    seed: int = 0,
    locate: Callable[[str], str | os.PathLike] = str,
    see: Callable[[np.ndarray], object] = id,
) -> ImageCheck:
    """Decodes a random selection of images, or all, and collects those that cannot be read.

    Args:
        paths: the images, a million or more: only those selected are touched.
        wanted: how many to decode, at most all; a negative number: all.
        seed: of the selection; the same seed, number and `wanted` select the same ones.
        locate: from an entry of `paths` to the path to open. Default: the entry itself.
        see: called with each image that can be read. Default: nothing looks at it.

    Returns:
        How many were decoded, and the entries of `paths` that cannot be read, in their order there.
    """
    if 0 <= wanted < len(paths):
        chosen: Iterable[int] = sorted(random.Random(seed).sample(range(len(paths)), wanted))
        checked = wanted
    else:
        chosen, checked = range(len(paths)), len(paths)
    unreadable = []
    for index in chosen:
        path = str(paths[index])
        try:
            see(read_image(locate(path)))
        except UnreadableImage:
            unreadable.append(path)
    return ImageCheck(checked, unreadable)
