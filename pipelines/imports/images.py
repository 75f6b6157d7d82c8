"""Files of image data: masks of class ids, and predictions of one image each. Pure: bytes in, arrays out."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from labelqa_dask.core.kernels import PROBABILITY_TOLERANCE, Array

PREDICTIONS = (".npy", ".npz")
MASKS = (".png",)
PRED_PROBS = "pred_probs"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = {2: "an RGB image", 4: "a grey image with transparency", 6: "an RGB image with transparency"}
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, KeyError, NotImplementedError)
_DAMAGE_INSIDE = (struct.error, zlib.error, zipfile.BadZipFile, OverflowError, MemoryError)
_UNREADABLE = _DAMAGE + _DAMAGE_INSIDE


class Unfit(Exception):
    """A file that cannot be imported, and why."""


def read_mask(content: bytes) -> NDArray[np.integer[Any]]:
    """Class ids of a PNG mask.

    Parameters
    ----------
    content : bytes
        A grey image of 1 to 16 bits, whose values are the class ids, or an image with a palette, whose indices are.

    Returns
    -------
    (h, w) uint8 or uint16 array

    Raises
    ------
    Unfit
        For a file that is damaged, or has colours instead of class ids.
    """
    if content[:8] != _SIGNATURE or len(content) < 33:
        raise Unfit("is not a PNG file" if content else "is empty")
    if b"IEND" not in content:
        raise Unfit("cannot be read as PNG: its end is missing")
    bits, kind = content[24], content[25]
    if kind in _COLOURS:
        raise Unfit(
            f"is {_COLOURS[kind]}, but class ids are expected: one grey value or palette index per pixel. Where the "
            "channels are equal, keep one (Pillow: image.getchannel(0)); else map each colour to its class id first"
        )
    try:
        with PngImageFile(io.BytesIO(content)) as image:
            values = np.asarray(image)
    except _UNREADABLE as error:
        raise Unfit(f"cannot be read as PNG: {_text(error)}") from None
    if kind == 0 and bits in (2, 4):  # these are spread over 0..255 in decoding
        return values // np.uint8(255 // (2**bits - 1))
    return values.astype(np.uint16 if bits == 16 else np.uint8)


def prediction_header(file: IO[bytes], size: int, *, zipped: bool) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array of an .npy or .npz file of some bytes, read from its ends only.

    Raises
    ------
    Unfit
        For a file that is damaged or cut short, or holds something else.
    """
    try:
        if not zipped:
            return _check_header(file, size)[:2]
        with zipfile.ZipFile(file) as archive:
            member = _member(archive)
            with archive.open(member) as inner:
                return _check_header(inner, member.file_size)[:2]
    except _UNREADABLE as error:
        raise Unfit(f"cannot be read as {'.npz' if zipped else '.npy'}: {_text(error)}") from None


def read_prediction(content: bytes, *, zipped: bool) -> Array:
    """Array of the bytes of an .npy file, without a copy, or of an .npz file."""
    try:
        if zipped:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                content = archive.read(_member(archive))
        shape, dtype, fortran, start = _check_header(io.BytesIO(content), len(content))
        count = math.prod(shape)
        flat: Array = np.frombuffer(content, dtype, count, start)
    except _UNREADABLE as error:
        raise Unfit(f"cannot be read as {'.npz' if zipped else '.npy'}: {_text(error)}") from None
    return flat.reshape(shape[::-1]).transpose() if fortran else flat.reshape(shape)


def check_prediction(shape: tuple[int, ...], dtype: np.dtype[Any], mask: tuple[int, int]) -> None:
    """Refuse a prediction that does not fit the mask (h, w) of its image, or is not of probabilities."""
    if not (dtype.kind == "f" and dtype.itemsize <= 8) and not (dtype.kind == "u" and dtype.itemsize <= 2):
        raise Unfit(
            f"holds {dtype}, but probabilities are float16, float32 or float64, or quantised uint8 (1 is 255) or "
            "uint16 (1 is 65535)"
        )
    said = " × ".join(str(size) for size in shape) or "a single number"
    if len(shape) != 3 or shape[0] < 2:
        raise Unfit(f"is {said}, but (classes, height, width) is expected, with two classes or more")
    if shape[1:] == mask:
        return
    if shape[:2] == mask:
        raise Unfit(f"is {said}, but classes come first: np.moveaxis(prediction, -1, 0) mends it")
    raise Unfit(f"is {said} (classes × height × width), but its mask is {mask[0]} × {mask[1]}")


def check_probabilities(values: Array) -> None:
    """Refuse floats that are not probabilities."""
    if values.dtype.kind != "f" or not values.size:
        return
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Unfit("holds NaN or infinite values")
    if low < -PROBABILITY_TOLERANCE or high > 1 + PROBABILITY_TOLERANCE:
        raise Unfit(f"holds values from {low:.4g} to {high:.4g}, outside [0, 1]: are these logits? Apply softmax first")


def _member(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The array of an archive: the only one, or the one named pred_probs."""
    arrays = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    named = [info for info in arrays if info.filename == f"{PRED_PROBS}.npy"]
    if len(arrays) == 1 or len(named) == 1:
        return named[0] if named else arrays[0]
    names = ", ".join(info.filename.removesuffix(".npy") for info in arrays[:5])
    raise Unfit(f"holds {len(arrays)} arrays ({names}), none of them {PRED_PROBS}" if arrays else "holds no array")


def _check_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Shape, type, whether in Fortran order, and where the values start, in a file of some bytes."""
    major, _ = np.lib.format.read_magic(file)
    if major not in (1, 2):
        raise Unfit(f"is of version {major} of the format, which is for records only")
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise Unfit("holds Python objects, not numbers")
    start = file.tell()
    expected = start + math.prod(shape) * dtype.itemsize
    if size != expected:
        raise Unfit(f"has {size:,} bytes where its header says {expected:,}: was it copied whole?")
    return shape, dtype, fortran, start


def _text(error: BaseException) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__
