"""Crops of encoded images that decode and compute only what the crop needs, nearly the exact ones.

Of photographs they are within a grey level or two on average, of printed text and patterns of single pixels within five. They
are a function of the file and the box; another kind of processor may round one pixel in 100,000 otherwise (`exact`: none).

What is saved beside "decode everything, then resize" (docs/benchmarks.md has the figures):

- JPEG files are decoded at a half, a quarter or an eighth of their size where the crop is then still one and a half times as
  large as asked for: the inverse DCT does the first part of the resize;
- grey crops of colour files decode the luma alone;
- the antialiased resize is a three-tap blur and a bilinear interpolation, both vectorised, instead of a filter as
  wide as the reduction. For reductions by s = 1 to 2.5 the blur [a, 1 - 2a, a] with a = (s^2 - 1) / 10 comes nearest to the
  triangle filter of half width s that Pillow and torchvision use, measured on photographs;
- the result is written where it is wanted, and memory between the stages is used again.

Decoding a region alone would save about a tenth more; no library that can be installed with pip offers it.
"""

import io
import threading
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from ijepa_jax.data import images

Chooser = Callable[[int, int], Sequence[images.Box]]  # (height, width) of the image -> the boxes to cut out

_SPARE = 1.5  # how much larger than asked for a crop stays that is decoded at reduced size
_WIDEST = 2.5  # reduction up to which three taps stand in for the triangle filter
_LARGEST_TAP = 1 / 3
_EXIF_OR_XMP, _START_OF_SCAN = b"\xe1", b"\xda"  # markers of JPEG segments

_scratch = threading.local()

cv2.setNumThreads(1)  # the loader's own threads and processes keep the cores busy
cv2.ipp.setUseIPP(False)  # it picks code by processor, and is no faster here


def crop_into(out: np.ndarray, data: bytes | np.ndarray, choose: Callable[[int, int], images.Box], exact: bool = False) -> None:
    """Fills `out` (uint8 [h, w, C], contiguous) with the box that `choose` takes out of an image, resized.

    `data` is as `images.decode` takes it. With `exact`, and for pixel arrays, the result is that of `images.decode` and
    `images.crop_resize`; otherwise it differs by about one grey level on average of a photograph. Raises `images.BadImage`.
    """
    crops_into([out], data, lambda height, width: [choose(height, width)], exact)


def crops_into(
    outs: Sequence[np.ndarray], data: bytes | np.ndarray, choose: Chooser, exact: bool = False, bicubic: Sequence[bool] = ()
) -> None:
    """Likewise, of several crops of an image that is decoded once: `choose` gives a box for each.

    `bicubic` says for each whether it is resized so, by Pillow's filter, instead of bilinearly.
    """
    filters = [Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR for cubic in bicubic or [False] * len(outs)]
    if exact and not isinstance(data, np.ndarray):
        image = images.open_upright(data, outs[0].shape[-1])
        for out, (top, left, height, width), resample in zip(outs, choose(image.height, image.width), filters, strict=True):
            _fill(out, image.crop((left, top, left + width, top + height)).resize(out.shape[1::-1], resample))
    elif isinstance(data, np.ndarray):
        pixels = images.decode(data, outs[0].shape[-1])
        for out, box, resample in zip(outs, choose(*pixels.shape[:2]), filters, strict=True):
            out[:] = images.crop_resize(pixels, box, out.shape[:2], resample)
    elif not _crop_jpeg(outs, data, choose, filters):
        pixels = images.decode(data, outs[0].shape[-1])
        for out, (top, left, height, width), resample in zip(outs, choose(*pixels.shape[:2]), filters, strict=True):
            _resize(out, pixels[top : top + height, left : left + width], resample)


def _crop_jpeg(outs: Sequence[np.ndarray], data: bytes, choose: Chooser, filters: Sequence[Image.Resampling]) -> bool:
    """Does this for an upright grey or colour JPEG file, decoded no larger than need be; False: leave it to Pillow."""
    channels = outs[0].shape[-1]
    if data[:2] != b"\xff\xd8" or channels not in (1, 3) or not _upright(data):
        return False
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space not in ("YCbCr", "Gray", "RGB") or height * width > images.MAX_PIXELS:
            return False
        boxes = choose(height, width)
        pairs = [*zip(outs, boxes, strict=True)]
        spare = min(min(box[2] / out.shape[0], box[3] / out.shape[1]) for out, box in pairs) / _SPARE
        part = next((part for part in (8, 4, 2) if part <= spare), 1)
        size = {"min_height": -(-height // part), "min_width": -(-width // part), "min_factor": part, "fastupsample": True}
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if channels == 1 else "RGB", **size)
    except ValueError:  # damaged, or only odd: Pillow decides, and names what is wrong
        return False
    for (out, box), resample in zip(pairs, filters, strict=True):
        if part == 1:
            top, left, height, width = box
            _resize(out, pixels[top : top + height, left : left + width], resample)
        else:
            _resize_between(out, pixels, *(edge / part for edge in box), resample)
    return True


def _resize(out: np.ndarray, pixels: np.ndarray, resample: Image.Resampling) -> None:
    """Resizes nearly as `images.resize` does, and several times faster where it is bilinear."""
    reductions = [length / wanted for length, wanted in zip(pixels.shape[:2], out.shape[:2], strict=True)]
    plain = resample == Image.Resampling.BILINEAR and out.shape[-1] in (1, 3)
    if not plain or max(reductions) > _WIDEST or reductions == [1, 1]:
        out[:] = images.resize(pixels, out.shape[:2], resample)
        return
    if max(reductions) > 1:
        vertical, horizontal = map(_taps, reductions)
        border = cv2.BORDER_REPLICATE | cv2.BORDER_ISOLATED  # nothing from outside the box
        pixels = cv2.sepFilter2D(pixels, -1, horizontal, vertical, dst=_spare_memory(pixels.shape), borderType=border)
    cv2.resize(pixels, out.shape[1::-1], dst=_flat(out), interpolation=cv2.INTER_LINEAR)


def _taps(reduction: float) -> np.ndarray:
    """The blur before a reduction."""
    outer = min(max(reduction**2 - 1, 0.0) / 10, _LARGEST_TAP)
    return np.float32([outer, 1 - 2 * outer, outer])


def _resize_between(
    out: np.ndarray, pixels: np.ndarray, top: float, left: float, height: float, width: float, resample: Image.Resampling
) -> None:
    """Resizes a box that may begin and end between pixels."""
    first_row, first_column = int(top), int(left)
    part = pixels[first_row : int(np.ceil(top + height)), first_column : int(np.ceil(left + width))]
    top, left = top - first_row, left - first_column
    edges = (left, top, min(left + width, part.shape[1]), min(top + height, part.shape[0]))
    _fill(out, Image.fromarray(_flat(part)).resize(out.shape[1::-1], resample, box=edges))


def _fill(out: np.ndarray, image: Image.Image) -> None:
    _flat(out)[:] = np.asarray(image)


def _flat(pixels: np.ndarray) -> np.ndarray:
    """Grey images as [H, W], the way Pillow and OpenCV like them (a view)."""
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _spare_memory(shape: tuple[int, ...]) -> np.ndarray:
    """Memory of this thread to blur into: new memory for every image costs as much as half the blur."""
    size = int(np.prod(shape))
    if len(getattr(_scratch, "memory", ())) < size:
        _scratch.memory = np.empty(size, np.uint8)
    return _flat(_scratch.memory[:size].reshape(shape))


def _upright(data: bytes) -> bool:
    """Whether a JPEG file is to be shown as it is stored; most have no block that could say otherwise."""
    position, marker = 2, b""
    while data[position : position + 1] == b"\xff" and marker not in (_EXIF_OR_XMP, _START_OF_SCAN):
        marker = data[position + 1 : position + 2]
        # 0xFF before a marker fills up space
        position += 1 if marker == b"\xff" else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    if marker != _EXIF_OR_XMP:
        return True
    try:
        with Image.open(io.BytesIO(data), formats=images.FORMATS) as image:
            return images.is_upright(image)
    except Exception:  # Pillow will say what is wrong with it, or ignore it
        return False
