"""Files that are no images, or odd ones, in a training run."""

import io
import json
import math

import numpy as np
from PIL import Image

from vissl_barlow.images import UnreadableImage, read_image

CORPUS = 16  # files of each kind; the kinds make a corpus of more than 200


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def bad_files(rng: np.random.Generator) -> dict[str, tuple[bytes, bool]]:
    """A file of each kind: its content, and whether it is an image after all."""
    side = int(rng.integers(20, 60))
    photo = Image.fromarray(rng.integers(0, 256, (side, side + 3, 3), dtype=np.uint8))
    jpeg, png = encoded(photo, "JPEG"), encoded(photo, "PNG")
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(2, 9))  # orientation
    levels = Image.fromarray(rng.integers(0, 65536, (side, side), dtype=np.uint16))
    return {
        "cmyk.jpg": (encoded(photo.convert("CMYK"), "JPEG"), True),
        "palette.png": (encoded(photo.convert("P"), "PNG"), True),
        "sixteen_bit.png": (encoded(levels, "PNG"), True),
        "grey_alpha.png": (encoded(photo.convert("LA"), "PNG"), True),
        "rotated.jpg": (encoded(photo, "JPEG", exif=exif), True),
        "pixel.png": (encoded(photo.resize((1, 1)), "PNG"), True),
        "line.png": (encoded(photo.resize((20_000, 1)), "PNG"), True),
        "png_by_name_only.jpg": (png, True),
        "truncated.jpg": (jpeg[: int(rng.integers(4, len(jpeg) - 2))], False),
        "truncated.png": (png[: int(rng.integers(8, len(png) // 2))], False),
        "empty.jpg": (b"", False),
        "page.jpg": (b"<html>404</html>" * side, False),
        "noise.png": (rng.bytes(500), False),
    }


VANISH = """
import os
from pathlib import Path
from vissl_barlow.vissl_plugin.components.data import BarlowImageFolder
init = BarlowImageFolder.__init__
def listed(source, *args, **kwargs):
    init(source, *args, **kwargs)
    for path in Path(os.environ["IMAGES"]).glob("vanishing*.jpg"):
        path.unlink()
BarlowImageFolder.__init__ = listed
"""


def test_a_corpus_of_bad_files_is_converted_or_skipped_and_counted(server, tmp_path):
    rng = np.random.default_rng(0)
    images = tmp_path / "images"
    images.mkdir()
    readable = {}
    for index in range(CORPUS):
        for name, (content, is_image) in bad_files(rng).items():
            (images / f"{index}_{name}").write_bytes(content)
            readable[f"{index}_{name}"] = is_image
    for index in range(4):
        (images / f"vanishing_{index}.jpg").write_bytes((images / "0_rotated.jpg").read_bytes())
        (images / f"folder_{index}.jpg").mkdir()
        (images / f"dangling_{index}.jpg").symlink_to("nowhere")
    assert len(list(images.iterdir())) > 200
    for name, is_image in readable.items():
        try:
            image = read_image(images / name)
        except UnreadableImage as error:
            assert not is_image, f"{name}: {error}"
        else:
            assert is_image and image.ndim == 3 and image.shape[2] == 3, name

    bad = sum(not is_image for is_image in readable.values()) + 8  # vanished, dangling
    run = server.finish(
        tmp_path / "run",
        "config.DATA.TRAIN.DATA_SOURCES=[barlow_folder]",
        f"config.DATA.TRAIN.DATA_PATHS=[{images}]",
        "config.DATA.TRAIN.DATA_LIMIT=-1",
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4",
        "config.BARLOW.CHECK_IMAGES=0",
        "config.OPTIMIZER.num_epochs=2",
        prepare=VANISH,
        IMAGES=str(images),
    )
    total = len(readable) + 8
    assert total % 4 == 0  # or the last batch, dropped, would take some of them along
    entries = [json.loads(line) for line in (run.folder / "barlow.jsonl").read_text().splitlines()]
    assert len(entries) == 2 * total // 4
    assert entries[-1]["unreadable_images"] == 2 * bad
    assert f"{2 * bad} unreadable images so far were replaced by their neighbours" in run.output
    assert all(math.isfinite(entry["loss"]) for entry in entries)
    for name in ("0_empty.jpg", "0_noise.png", "vanishing_0.jpg", "dangling_0.jpg"):
        assert f"{images}/{name}: " in run.output
