"""The example of the back end `ops` beside Pillow and a plain float64 reference."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import classify_file

PREPROCESS = "image_preprocess"
SIDE = 224
SHARE = 0.875
# A level of 255 is this much after `(x - 127) / 128`.
LEVEL = 1 / 128


def middle(picture: Image.Image) -> Image.Image:
    side = int(min(picture.size) * SHARE)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.convert("RGB").crop((left, top, left + side, top + side))


def weights(source: int, target: int) -> np.ndarray:
    """[target, source]: how much of each pixel goes into each, by nearness, as far as a target pixel reaches."""
    ratio = source / target
    centres = (np.arange(target)[:, None] + 0.5) * ratio
    distance = np.abs(np.arange(source)[None] + 0.5 - centres) / max(ratio, 1)
    nearness = np.maximum(1 - distance, 0)
    return nearness / nearness.sum(axis=1, keepdims=True)


def exact(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(middle(picture), np.float64)
    down, across = weights(pixels.shape[0], SIDE), weights(pixels.shape[1], SIDE)
    resized = np.einsum("yj,xi,jic->cyx", down, across, pixels, optimize=True)
    return (resized - 127) / 128


def with_pillow(picture: Image.Image) -> np.ndarray:
    resized = middle(picture).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return ((np.asarray(resized, np.float64) - 127) / 128).transpose(2, 0, 1)


def encoded(picture: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def preprocess(server, files: list[bytes]) -> np.ndarray:
    return server.infer(PREPROCESS, {"file": classify_file.as_tensor(files)}, "image")


@pytest.fixture
def pictures(images) -> list[Image.Image]:
    """A square one, a wide one and one that is enlarged."""
    names = [images / "clock.png", images / "sign.png", images / "clock.png"]
    square, wide, small = (Image.open(name).convert("RGB") for name in names)
    return [square, wide, small.resize((100, 120))]


def test_png_files(server, pictures):
    answers = preprocess(server, [encoded(picture, "PNG") for picture in pictures])
    assert (answers.shape, answers.dtype) == ((3, 3, SIDE, SIDE), np.float32)
    for answer, picture in zip(answers, pictures, strict=True):
        # The server computes in float32, and its values are up to about 1.
        np.testing.assert_allclose(answer, exact(picture), rtol=0, atol=1e-5)
        # Pillow rounds to whole levels after each direction, by half a level at most, with weights of 8 bits more.
        np.testing.assert_allclose(answer, with_pillow(picture), rtol=0, atol=1.1 * LEVEL)


@pytest.mark.parametrize(
    "options", [{"quality": 90}, {"quality": 85, "progressive": True}, {"subsampling": 0}], ids=str
)
def test_jpeg_files(server, pictures, options):
    files = [encoded(picture, "JPEG", **options) for picture in pictures]
    for answer, file in zip(preprocess(server, files), files, strict=True):
        difference = np.abs(answer - exact(Image.open(io.BytesIO(file))))
        # JPEG leaves the rounding of its transform to the decoder: single pixels differ from libjpeg's by up to 4
        # levels, at strong edges of colour, and on average by far less than one.
        assert difference.max() <= 4 * LEVEL
        assert difference.mean() <= 0.2 * LEVEL


def test_grey_and_palette_files(server, pictures):
    grey, palette = pictures[0].convert("L"), pictures[0].convert("P")
    files = [encoded(grey, "PNG"), encoded(grey, "JPEG"), encoded(palette, "PNG")]
    for answer, file in zip(preprocess(server, files), files, strict=True):
        np.testing.assert_allclose(answer, exact(Image.open(io.BytesIO(file))), rtol=0, atol=2 * LEVEL)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file: b"", "expected a JPEG or PNG file, got 0 bytes"),
        (lambda file: b"GIF89a", "expected a JPEG or PNG file"),
        (lambda file: file[: len(file) // 2], "the JPEG file cannot be decoded"),
    ],
    ids=["empty", "another", "cut"],
)
def test_a_bad_file_is_named_and_the_server_lives(server, pictures, spoil, reason):
    good = encoded(pictures[0], "JPEG")
    # Each protocol's client has an exception of its own.
    with pytest.raises(Exception, match=rf"row 1: {reason}"):
        preprocess(server, [good, spoil(good)])
    assert preprocess(server, [good]).shape == (1, 3, SIDE, SIDE)


def test_the_classifier_names_a_file(server, images):
    [[best, *_]] = classify_file.classify(server, [(images / "clock.png").read_bytes()], count=2)
    assert best.name in ("wall clock", "analog clock")
