"""The ensemble of two models on real pictures. (That which reads text is in `test_python_served.py`.)"""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import classify_file


def encoded(picture: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, form)
    return file.getvalue()


def test_the_photo_classifier_is_its_two_models(server, images):
    """Bit for bit, for one file and for several in a batch."""
    clock, sign = (Image.open(images / name).convert("RGB") for name in ("clock.png", "sign.png"))
    files = [encoded(clock, "PNG"), encoded(sign, "JPEG"), encoded(clock.resize((90, 70)), "JPEG")]
    tensor = classify_file.as_tensor(files)
    prepared = server.infer("image_preprocess", {"file": tensor}, "image")
    expected = server.infer("image_classifier", {"image": prepared}, "probabilities")
    got = server.infer(classify_file.MODEL, {"file": tensor}, "probabilities")
    np.testing.assert_array_equal(got, expected)
    [[best, *_]] = classify_file.classify(server, files[:1], count=2)
    assert best.name in ("wall clock", "analog clock")


def test_a_file_that_is_no_picture_is_told_by_its_step(server):
    with pytest.raises(Exception, match="expected a JPEG or PNG file"):
        server.infer(classify_file.MODEL, {"file": classify_file.as_tensor([b"text"])}, "probabilities")
