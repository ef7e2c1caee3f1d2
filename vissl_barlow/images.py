"""Image files: those below a folder, to RGB arrays, and which of them cannot be read.

libjpeg-turbo decodes the common JPEG, Pillow everything else.
"""

import io
import os
import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

# Pillow's own limit for an outright refusal, here for JPEG as well: 512 MiB of RGB.
MAX_PIXELS = 178_956_970
JPEG_COLORSPACES = ("YCbCr", "RGB", "Gray")


class UnreadableImage(ValueError):
    """The bytes are not an image that can be decoded; the message says why."""


def decode_image(data: bytes) -> np.ndarray:
    """Decodes one image file.

    What `PIL.Image.open(...).convert("RGB")` gives (VISSL's and torchvision's loader), within a
    grey level: alpha is dropped, the first frame of several is taken, the EXIF
    orientation is ignored. One departure: 16-bit greyscale is scaled to 8 bits, where Pillow clips
    everything above 255 to white.

    Args:
        data: the bytes of the file.

    Returns:
        uint8 array (H, W, 3), RGB, contiguous and writable.

    Raises:
        UnreadableImage: empty, truncated, damaged or unknown data, 32-bit pixels of unknown range,
            or more than `MAX_PIXELS` pixels.
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
        if colorspace not in JPEG_COLORSPACES or height * width > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
        # Strict: also raised for a defect that Pillow forgives, such as stray bytes at the end.
        return None


def _decode_with_pillow(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(
                    f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}: "
                    "scale the file down"
                )
            return _to_rgb(image)
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage("no image format that Pillow knows") from error
    # Pillow's decoders raise whatever their format's parser trips over (OSError, SyntaxError,
    # struct.error, DecompressionBombError, ...).
    except Exception as error:
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    # Pillow before 11 calls a 16-bit PNG "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = np.asarray(image)
        return np.repeat(np.round(grey / 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise UnreadableImage(
            f"32-bit pixels (mode {image.mode}) have no range to scale to 8 bits: "
            "convert the file to 8 or 16 bits"
        )
    if image.mode == "P":
        # By way of RGBA: straight to RGB, Pillow warns of every palette with transparency.
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads and decodes one image file, as `decode_image` does.

    Raises:
        UnreadableImage: the file cannot be opened or decoded; the message starts with its path.
    """
    try:
        with open(path, "rb") as file:
            return decode_image(file.read())
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


def image_listing(folder: str | os.PathLike[str]) -> ImageListing:
    """As `list_images`, with the links that were not followed, since their images are listed already.

    A folder's own place goes before a link to it, and the first link in the order before the next.
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
            if not _list_tree(folder, start, listed, visited, links):
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
                    elif entry.name.lower().endswith(IMG_EXTENSIONS):
                        images.append(entry.name)
                    elif entry.is_symlink() and not os.path.exists(entry.path):
                        raise UnreadableFolder(f"{entry.path} is a link that leads nowhere")
        except UnreadableFolder:
            raise
        except OSError as error:
            raise UnreadableFolder(f"{error.filename or path}: {error.strerror}") from None
        listed[parts] = sorted(images)
    return True


# Names of a data set's parts, each a folder of images of its own.
PARTS = ("train", "val", "valid", "validation", "test")


def parts_of_data_set(images: Sequence[str]) -> list[str]:
    """The folders at the top, if they are parts of a data set (train/ and others) and nothing else.

    Args:
        images: as `list_images` gives them.
    """
    tops = {name.partition(os.sep)[0] for name in images}
    names = {top.lower() for top in tops}
    is_root = "train" in names and len(names) > 1 and names <= set(PARTS)
    return sorted(tops) if is_root else []


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
) -> ImageCheck:
    """Decodes a random selection of images, or all, and collects those that cannot be read.

    Args:
        paths: the images, a million or more: only those selected are touched.
        wanted: how many to decode, at most all; a negative number: all.
        seed: of the selection; the same seed, number and `wanted` select the same ones.
        locate: from an entry of `paths` to the path to open. Default: the entry itself.

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
            read_image(locate(path))
        except UnreadableImage:
            unreadable.append(path)
    return ImageCheck(checked, unreadable)
