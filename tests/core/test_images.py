"""Decoding: Pillow's pixels, whatever decodes them, and one exception for whatever goes wrong."""

import io
import pickle
import struct
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from vissl_barlow import images
from vissl_barlow.images import UnreadableImage, decode_image

PHOTO = Image.fromarray(load_sample_images().images[0][:151, :203])


def encode(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


EXIF_ROTATED = Image.Exif()
EXIF_ROTATED[0x0112] = 6
FILES = {
    "jpeg 4:4:4": encode(PHOTO, "JPEG", subsampling=0),
    "jpeg 4:2:0": encode(PHOTO, "JPEG", subsampling=2),
    "jpeg progressive": encode(PHOTO, "JPEG", progressive=True),
    "jpeg rgb": encode(PHOTO, "JPEG", keep_rgb=True),
    "jpeg grey": encode(PHOTO.convert("L"), "JPEG"),
    "jpeg cmyk": encode(PHOTO.convert("CMYK"), "JPEG"),
    "jpeg rotated": encode(PHOTO, "JPEG", exif=EXIF_ROTATED),
    "jpeg stray bytes": encode(PHOTO, "JPEG") + b"stray",
    "png": encode(PHOTO, "PNG"),
    "png palette": encode(PHOTO.convert("P"), "PNG"),
    "png grey": encode(PHOTO.convert("L"), "PNG"),
    "png opaque alpha": encode(PHOTO.convert("RGBA"), "PNG"),
    "png grey opaque alpha": encode(PHOTO.convert("LA"), "PNG"),
    "png one bit": encode(PHOTO.convert("1"), "PNG"),
    "webp": encode(PHOTO, "WEBP"),
    "gif": encode(PHOTO, "GIF"),
    "bmp": encode(PHOTO, "BMP"),
    "tiff": encode(PHOTO, "TIFF", compression="tiff_lzw"),
    "ppm": encode(PHOTO, "PPM"),
    "jpeg of several pictures": encode(PHOTO, "MPO", save_all=True, append_images=[PHOTO]),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_pillows(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode_image(FILES[name])
    assert image.shape == (151, 203, 3)
    assert image.dtype == np.uint8 and image.flags.writeable and image.flags.c_contiguous
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(image, pillow(FILES[name]))


# From nothing to all, from left to right.
ALPHA = Image.fromarray(np.linspace(0, 255, 203).round().astype(np.uint8)[None].repeat(151, 0))


def with_alpha(mode):
    image = PHOTO.convert(mode.removesuffix("A"))
    image.putalpha(ALPHA)
    return image


PALETTE = PHOTO.convert("P")
TRANSPARENT = {
    "png": encode(with_alpha("RGBA"), "PNG"),
    "png grey": encode(with_alpha("LA"), "PNG"),
    "png palette": encode(PALETTE, "PNG", transparency=bytes(range(256))),
    "png one colour": encode(PHOTO, "PNG", transparency=PHOTO.getpixel((0, 0))),
    "png one grey": encode(PHOTO.convert("L"), "PNG", transparency=200),
    "gif": encode(PALETTE, "GIF", transparency=PALETTE.getpixel((0, 0))),
    "tiff": encode(with_alpha("RGBA"), "TIFF"),
    "webp": encode(with_alpha("RGBA"), "WEBP", lossless=True, exact=True),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_stands_on_white(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode_image(TRANSPARENT[name])
    rgba = np.asarray(Image.open(io.BytesIO(TRANSPARENT[name])).convert("RGBA")).astype(float)
    share = rgba[..., 3:] / 255
    assert share.min() == 0
    np.testing.assert_allclose(image, share * rgba[..., :3] + (1 - share) * 255, atol=0.51)


def test_a_transparent_level_of_sixteen_bits_is_white():
    levels = Image.fromarray(np.array([[0, 257, 32768]], dtype=np.uint16))
    image = decode_image(encode(levels, "PNG", transparency=257))
    assert image[0].tolist() == [[grey] * 3 for grey in (0, 255, 128)]


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("jpeg")])
def test_only_a_jpeg_that_needs_pillow_takes_its_slow_way(name, monkeypatch):
    asked = []
    monkeypatch.setattr(images, "_decode_with_pillow", asked.append)
    decode_image(FILES[name])
    assert bool(asked) == (name in ("jpeg cmyk", "jpeg stray bytes"))


def with_scans(number: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    data = encode(PHOTO.convert("L").resize(size), "JPEG", progressive=True)
    scans = data.count(b"\xff\xda")
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * (number - scans) + data[-2:]


def test_scans_are_bounded_and_those_that_are_not_decoded_do_not_count():
    assert decode_image(with_scans(100)).shape == (48, 64, 3)
    with pytest.raises(UnreadableImage, match="a JPEG of more than 100 scans"):
        decode_image(with_scans(101))
    thumbnail = b"\xff\xe1" + (2 + 4 * 200).to_bytes(2, "big") + b"\xff\xda\0\2" * 200
    for name in ("jpeg 4:2:0", "jpeg progressive"):
        data = FILES[name]
        behind = data + data * 50  # a camera's second image, or film
        inside = data[:2] + thumbnail + data[2:]
        for more in (behind, inside):
            np.testing.assert_array_equal(decode_image(more), decode_image(data))


def test_scans_of_an_ordinary_jpeg_are_bounded_too():
    data = FILES["jpeg grey"]
    header, scan = data[: data.find(b"\xff\xda")], data[data.find(b"\xff\xda") : -2]
    at = header.find(b"\xff\xc0")
    frame = header[at : at + 4] + header[at + 4 : at + 9] + b"\3" + b"\1\x11\0\2\x11\0\3\x11\0"
    frame = frame[:2] + (17).to_bytes(2, "big") + frame[4:]
    several = header[:at] + frame + header[at + 13 :] + scan * 101 + data[-2:]
    with pytest.raises(UnreadableImage, match="more than 100 scans"):
        decode_image(several)


def test_the_larger_the_image_the_fewer_its_scans(monkeypatch):
    monkeypatch.setattr(images, "MAX_SCANNED_PIXELS", 64 * 48 * 12)
    decode_image(with_scans(12))
    with pytest.raises(UnreadableImage, match="more than 12 scans"):
        decode_image(with_scans(13))


def test_an_ordinary_photograph_may_have_the_most_pixels():
    assert images.MAX_SCANNED_PIXELS >= 20 * images.MAX_PIXELS


def test_formats_that_no_data_set_holds_are_not_opened(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args: started.append(args))
    for file_format in ("EPS", "ICO", "TGA", "JPEG2000", "PCX", "SGI"):
        with pytest.raises(UnreadableImage, match=r"no image format that is read \(JPEG, PNG, "):
            decode_image(encode(PHOTO, file_format))
    assert not started


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(file_format):
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    image = decode_image(encode(Image.fromarray(levels), file_format))
    assert image[0].tolist() == [[grey] * 3 for grey in (0, 0, 1, 1, 128, 255)]


def test_grey_of_more_than_eight_bits_is_what_its_file_says():
    """White may be zero, the bits may be 12, and a PGM's greatest level is its own."""
    levels = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    inverted = encode(Image.fromarray(levels), "TIFF", tiffinfo={262: 0})
    assert decode_image(inverted)[0, :, 0].tolist() == [255, 254, 127, 0]
    for most in (4095, 65535):
        levels = np.array([[0, most // 3, most]], dtype=">u2")
        pgm = b"P5 3 1 %d\n" % most + levels.tobytes()
        assert decode_image(pgm)[0, :, 0].tolist() == [0, 85, 255]
    # As of an ordinary TIFF, two pixels in three bytes: 0xFFF, 0x800.
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    tiff = b"II*\0" + struct.pack("<I", 12) + b"\xff\xf8\x00\0" + struct.pack("<H", len(tags))
    assert decode_image(tiff + entries + bytes(4))[0, :, 0].tolist() == [255, 128]


def bomb(file_format):
    """A file of a few bytes whose header promises 65500 x 65500 pixels."""
    data = bytearray(encode(Image.new("L", (8, 8)), file_format))
    start, size = {"JPEG": (data.find(b"\xff\xc0") + 5, 2), "BMP": (18, 4)}[file_format]
    data[start : start + 2 * size] = 2 * (65500).to_bytes(
        size, "big" if file_format == "JPEG" else "little"
    )
    return bytes(data)


JPEG, PNG = FILES["jpeg 4:2:0"], FILES["png"]
UNREADABLE = {
    "empty": (b"", "empty"),
    "text": (b"<html>not found</html>", "no image format"),
    "jpeg header only": (JPEG[:100], "[Tt]runcated"),
    "jpeg half": (JPEG[: len(JPEG) // 2], "truncated"),
    "jpeg without its end": (JPEG[:-2], "truncated"),
    "png half": (PNG[: len(PNG) // 2], "truncated"),
    "png damaged": (PNG[:100] + bytes(100) + PNG[200:], "."),
    "gif header only": (FILES["gif"][:10], "."),
    "jpeg bomb": (bomb("JPEG"), "pixels"),
    "bmp bomb": (bomb("BMP"), "pixels"),
    "float": (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "mode F.*16 bits"),
    "32-bit": (encode(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"), "mode I.*16 bits"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_whatever_fails_is_an_unreadable_image_with_its_reason(name):
    data, reason = UNREADABLE[name]
    with pytest.raises(UnreadableImage, match=reason):
        decode_image(data)


def test_the_limit_holds_below_pillows_own(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 203 * 151 - 1)
    for data in (JPEG, PNG):
        with pytest.raises(UnreadableImage, match="203 x 151 pixels"):
            decode_image(data)


@settings(max_examples=150)
@given(
    name=st.sampled_from(sorted(FILES)),
    end=st.integers(0, 100_000),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
)
def test_damage_gives_an_image_or_an_unreadable_image(name, end, changes):
    data = bytearray(FILES[name][:end])
    for position, value in changes:
        if position < len(data):
            data[position] = value
    try:
        image = decode_image(bytes(data))
    except UnreadableImage as error:
        assert str(error)
    else:
        assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8


def test_the_exception_survives_a_loader_worker():
    error = pickle.loads(pickle.dumps(UnreadableImage("the file is empty")))
    assert isinstance(error, ValueError) and str(error) == "the file is empty"
