"""Masks and predictions as files: what is read from their bytes, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.imports import images
from pipelines.imports.images import Unfit


def png(values: np.ndarray, mode: str | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(values) if mode != "P" else Image.frombytes("P", values.shape[::-1], values.tobytes())
    if mode == "P":
        image.putpalette([channel for colour in range(256) for channel in (colour, 0, 255 - colour)])
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def grey(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of few bits, as other programs write them: made by hand, as Pillow writes 8 bits or 1."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape
    shifts = np.arange(bits)[::-1]
    rows = [np.packbits((row[:, None] >> shifts & 1).astype(np.uint8).ravel()).tobytes() for row in values]
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def npz(compressed: bool = True, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


IDS = np.arange(7 * 5).reshape(7, 5)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_masks_of_few_bits_keep_their_class_ids(bits):
    ids = IDS % 2**bits
    assert (images.read_mask(grey(ids, bits)) == ids).all()


def test_masks_of_8_and_16_bits_and_palettes_keep_their_class_ids():
    assert images.read_mask(png(IDS.astype(np.uint8))).dtype == np.uint8
    assert (images.read_mask(png(IDS.astype(np.uint8))) == IDS).all()
    wide = (IDS * 1000).astype(np.uint16)
    assert images.read_mask(png(wide)).dtype == np.uint16
    assert (images.read_mask(png(wide)) == wide).all()
    assert (images.read_mask(png(IDS.astype(np.uint8), "P")) == IDS).all()
    assert (images.read_mask(png((IDS % 4).astype(np.uint8), "P", bits=2)) == IDS % 4).all()
    assert (images.read_mask(png(IDS % 2 == 1)) == IDS % 2).all()


@pytest.mark.parametrize(("channels", "name"), [(2, "transparency"), (3, "an RGB image"), (4, "RGB image with transp")])
def test_colours_are_refused_with_a_way_to_mend_it(channels, name):
    with pytest.raises(Unfit, match=rf"is .*{name}.*getchannel"):
        images.read_mask(png(np.zeros((4, 4, channels), np.uint8)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"GIF89a" + bytes(100), "is not a PNG file"),
        (png(np.zeros((300, 300), np.uint16))[:-40], "cannot be read as PNG"),
        (png(IDS.astype(np.uint8))[:45] + bytes(30), "cannot be read as PNG"),
    ],
)
def test_damaged_masks_are_refused(content, message):
    with pytest.raises(Unfit, match=message):
        images.read_mask(content)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "u1", "u2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_predictions_are_read_as_they_were_saved(dtype, order):
    values = np.asarray(np.arange(60).reshape(3, 4, 5), dtype, order=order)
    for content, zipped in (
        (npy(values), False),
        (npz(values=values), True),
        (npz(False, pred_probs=values, other=IDS), True),
    ):
        shape, stored = images.prediction_header(io.BytesIO(content), len(content), zipped=zipped)
        assert (shape, stored) == ((3, 4, 5), values.dtype)
        read = images.read_prediction(content, zipped=zipped)
        assert read.dtype == values.dtype
        assert (read == values).all()


def test_damaged_predictions_are_refused():
    whole = npy(np.zeros((3, 4, 5)))
    for content, zipped, message in (
        (whole[:-8], False, "was it copied whole"),
        (whole + b"x", False, "was it copied whole"),
        (b"", False, "cannot be read as .npy"),
        (b"hello" * 30, False, "cannot be read as .npy"),
        (npz(a=IDS)[:-30], True, "cannot be read as .npz"),
        (npz(a=IDS, b=IDS), True, r"holds 2 arrays \(a, b\), none of them pred_probs"),
        (npz(), True, "holds no array|cannot be read"),
        (npy(np.array([{}])), False, "holds Python objects"),
    ):
        with pytest.raises(Unfit, match=message):
            images.prediction_header(io.BytesIO(content), len(content), zipped=zipped)
    compressed = bytearray(npz(a=np.random.default_rng(0).random((3, 40, 50))))
    compressed[len(compressed) // 2] ^= 255
    with pytest.raises(Unfit, match=r"cannot be read as \.npz"):
        images.read_prediction(bytes(compressed), zipped=True)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((3, 4, 5), "i8", "holds int64, but probabilities are float16"),
        ((3, 4, 5), "?", "holds bool"),
        ((4, 5), "f4", r"is 4 × 5, but \(classes, height, width\)"),
        ((1, 4, 5), "f4", "two classes or more"),
        ((4, 5, 3), "f4", r"np\.moveaxis\(prediction, -1, 0\)"),
        ((3, 5, 4), "f4", "but its mask is 4 × 5"),
        ((), "f4", "is a single number"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(shape, dtype, message):
    images.check_prediction((3, 4, 5), np.dtype("f2"), (4, 5))
    with pytest.raises(Unfit, match=message):
        images.check_prediction(shape, np.dtype(dtype), (4, 5))


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN"), (np.inf, "NaN"), (1.1, "logits"), (-0.5, "logits")])
def test_values_that_are_no_probabilities_are_refused(value, message):
    images.check_probabilities(np.array([0.0, 1.0 + 1e-7]))
    images.check_probabilities(np.array([0, 255], np.uint8))
    with pytest.raises(Unfit, match=message):
        images.check_probabilities(np.array([0.5, value], np.float32))
