"""Single images on the host: decoding, crops, resizing and colour jitter; uint8 in, uint8 out, nothing drawn at random.

What varies from image to image (the crop, the flip, the jitter) is a function of uniform numbers that the caller hands in,
so that an example is the same whichever worker makes it. Boxes are (top, left, height, width) in pixels, sizes are
(height, width), and images are uint8 [H, W, C].
"""

import io
import math
import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError

from ijepa_jax.host.errors import one_line

Box = tuple[int, int, int, int]
Size = tuple[int, int]

_TRIES = 10  # of a crop inside the image, as in torchvision
CROP_UNIFORMS = 2 * _TRIES + 2
JITTER_UNIFORMS = 8
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow's readers; that of JPEG reads MPO too
MAX_PIXELS = 110_000_000  # of an encoded image, some telephones' 108 and more: files of some kilobytes can ask for gigabytes
MAX_BYTES = 1 << 30  # of a file
_EXIF_ORIENTATION = 0x0112
_TURNED = range(2, 9)  # its values for pixels that are not upright
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_STRIP = 1 << 20  # pixels at a time
_LONGEST = 16  # of an enlarged image, as a multiple of what the crop needs, before the crop alone is computed
_DARKEST = 3  # level up to which floats of 0 .. 255 would be black, and are rather those of another range
_BY_WAY_OF = {"LAB": "RGB", "La": "LA"}  # of modes that Pillow converts to few others
_TAP_BITS = 22  # of Pillow's filter weights for 8-bit pixels


class BadImage(ValueError):
    """The data are no readable image. The message is one line; the caller knows the name and adds it."""


def read(path: str | os.PathLike) -> bytes:
    """An image file's bytes. Raises OSError, and `BadImage` for folders, devices, pipes, and more than `MAX_BYTES`."""
    path = Path(path)
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise BadImage(f"a {'folder' if stat.S_ISDIR(found.st_mode) else 'device or pipe'} is no image file")
    if found.st_size > MAX_BYTES:
        raise BadImage(f"a file of {found.st_size:,} bytes is no image: up to {MAX_BYTES:,} are read")
    return path.read_bytes()


def decode(data: bytes | Image.Image | np.ndarray, channels: int) -> np.ndarray:
    """Turns an encoded image (of `FORMATS`), a Pillow image or a pixel array into uint8 [H, W, channels].

    Images come out upright (EXIF orientation), on white where they are transparent, with 16 bits scaled to 8; animations
    as their first picture. Grey is repeated to RGB, and RGB becomes grey by ITU-R 601 luma, as `channels` (1 or 3) asks.
    An array is uint8 [H, W] or [H, W, C]; one that has the right number of channels already, whatever that is, passes
    through uncopied.

    Raises `BadImage` for other formats, undecodable or truncated data, more than `MAX_PIXELS`, and pixels or channels that
    cannot be converted.
    """
    if isinstance(data, np.ndarray):
        return _convert_array(data, channels)
    return _as_array(open_upright(data, channels))


def open_upright(data: bytes | Image.Image, channels: int) -> Image.Image:
    """The same for encoded and Pillow images, as a Pillow image of mode L or RGB."""
    is_pillow = isinstance(data, Image.Image)
    name = "the Pillow image" if is_pillow else f"the image ({len(data)} bytes)"
    try:
        if is_pillow:
            return _load(data, channels)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _load(image, channels)
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(f"cannot decode {name}: it is none of {', '.join(FORMATS)}, or its beginning is damaged") from error
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error, ValueError and more
        reason = re.sub(r" <[^<>]* at 0x[0-9a-f]+>", "", one_line(error)) or type(error).__name__
        raise BadImage(f"cannot decode {name}: {reason}") from error


def random_resized_crop_box(
    height: int, width: int, u: Sequence[float], scale: tuple[float, float], aspect: tuple[float, float]
) -> Box:
    """The box of torchvision's RandomResizedCrop: area uniform in `scale`, width / height log-uniform in `aspect`.

    `u` holds an even number of uniforms in [0, 1): an (area, aspect) pair for each try, then the vertical and the horizontal
    position; `CROP_UNIFORMS` of them give torchvision's 10 tries. If no try fits into the image, the answer is the
    largest central crop whose aspect lies within `aspect`.
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for k in range(0, len(u) - 2, 2):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u[k])
        ratio = math.exp(low + (high - low) * u[k + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u[-2] * (height - h + 1)), int(u[-1] * (width - w + 1)), h, w
    return _central_box(height, width, aspect)


def crop_resize(image: np.ndarray, box: Box, size: Size, resample: Image.Resampling = Image.Resampling.BILINEAR) -> np.ndarray:
    """Cuts `box` out of `image` and resizes it to `size` as `resize` does: Pillow's and torchvision's pixels.

    The cut comes first: a resize that is given a box reads pixels around it, and differs along the edges.
    """
    top, left, height, width = box
    return resize(image[top : top + height, left : left + width], size, resample)


def resize(image: np.ndarray, size: Size, resample: Image.Resampling = Image.Resampling.BILINEAR) -> np.ndarray:
    """Resizes [H, W, C] to `size`, bilinear with antialiasing, or by another of Pillow's filters; the image itself if it has
    that size already.
    """
    height, width, channels = image.shape
    if (height, width) == tuple(size):
        return image
    if channels not in (1, 3):  # Pillow would take two channels for grey with alpha, and four for RGB with alpha
        return np.concatenate([resize(image[..., c : c + 1], size, resample) for c in range(channels)], axis=-1)
    return _as_array(_as_pillow(image).resize(size[::-1], resample))


def center_crop(image: np.ndarray, size: Size, fraction: float = 1.0) -> np.ndarray:
    """The evaluation crop: resize so that `size / fraction` is just covered, then cut `size` from the centre.

    With a square size that is torchvision's Resize(size / fraction) and CenterCrop(size), so that 224 at 0.875 resizes the
    short side to 256. An image of the right aspect at fraction 1 is only resized, and of the right size left alone. Of an
    image so thin that it would be enlarged to much more than the crop, the crop alone is computed.
    """
    height, width = image.shape[:2]
    cover_h, cover_w = round(size[0] / fraction), round(size[1] / fraction)
    if height * cover_w <= width * cover_h:
        whole = cover_h, int(width * cover_h / height)
    else:
        whole = int(height * cover_w / width), cover_w
    top, left = round((whole[0] - size[0]) / 2), round((whole[1] - size[1]) / 2)
    if math.prod(whole) > max(height * width, _LONGEST * math.prod(size)):
        return _resize_part(image, whole, (top, left, *size))
    return resize(image, whole)[top : top + size[0], left : left + size[1]]


def flip(image: np.ndarray) -> np.ndarray:
    """Mirrors left and right (a view)."""
    return image[:, ::-1]


def color_jitter(
    image: np.ndarray, u: Sequence[float], brightness: float, contrast: float, saturation: float, hue: float
) -> np.ndarray:
    """torchvision's ColorJitter: four changes in random order, each of a strength given as there.

    Brightness, contrast and saturation are multiplied by a factor in [max(0, 1 - strength), 1 + strength], the hue turns by
    up to `hue` (at most 0.5) of the circle. `u` holds `JITTER_UNIFORMS` uniforms: four factors, then four that rank the
    order. Grey images [H, W, 1] have neither saturation nor hue to change. Raises ValueError for other channel counts.
    """
    return jitter(image, *drawn_jitter(u, (brightness, contrast, saturation, hue)))


def drawn_jitter(u: Sequence[float], strengths: Sequence[float]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """What `color_jitter` does by these uniforms: three factors and a turn of the hue, and in which order."""
    lows = [max(0.0, 1 - strength) for strength in strengths[:3]]
    factors = [low + (1 + strength - low) * v for strength, low, v in zip(strengths, lows, u, strict=False)]
    return (*factors, strengths[3] * (2 * u[3] - 1)), tuple(np.argsort(u[4:8], kind="stable").tolist())


def jitter(image: np.ndarray, changes: Sequence[float], order: Sequence[int]) -> np.ndarray:
    """Brightness, contrast and saturation times three factors, and a turn of the hue, in this order: torchvision's pixels.

    Factors of 1 and a turn of 0 change nothing. Raises ValueError for images that are neither grey nor RGB.
    """
    if image.shape[-1] not in (1, 3):
        raise ValueError(f"colour jitter needs grey or RGB images, got {image.shape[-1]} channels")
    return _as_array(in_order(_as_pillow(image), _JITTER, changes, order, image.shape[-1] == 3))


def in_order(image: Any, jitter: Sequence[Callable], changes: Sequence[float], order: Sequence[int], coloured: bool) -> Any:
    """An image after the four changes that `jitter` makes of it, those left out that change nothing."""
    for k in order:
        if changes[k] != (0 if k == 3 else 1) and (coloured or k < 2):
            image = jitter[k](image, changes[k])
    return image


def grey(image: np.ndarray) -> np.ndarray:
    """The luma of an RGB image (ITU-R 601), in all three channels."""
    return np.repeat(np.asarray(_as_pillow(image).convert("L"))[..., None], 3, axis=-1)


def _resize_part(image: np.ndarray, whole: Size, box: Box) -> np.ndarray:
    """`box` of the image resized to `whole`, to the bit, of what the box needs alone: Pillow's passes in whole numbers."""
    top, left, height, width = box
    rows, vertical = _taps(image.shape[0], whole[0], top, height)
    columns, horizontal = _taps(image.shape[1], whole[1], left, width)
    pixels = image[rows, columns].astype(np.int64)
    for equation, taps in (("xk,ykc->yxc", horizontal), ("yk,kxc->yxc", vertical)):
        pixels = (np.einsum(equation, taps, pixels) + (1 << _TAP_BITS - 1) >> _TAP_BITS).clip(0, 255)
    return pixels.astype(np.uint8)


def _taps(length: int, resized: int, start: int, count: int) -> tuple[slice, np.ndarray]:
    """What `count` pixels from `start` of a side of `length`, resized, are made of: a part of it, and weights [count, part]."""
    scale = length / resized
    reach = max(scale, 1.0)
    centres = (np.arange(start, start + count) + 0.5) * scale
    first, last = (centres - reach + 0.5).astype(int).clip(0), (centres + reach + 0.5).astype(int).clip(None, length)
    near = np.arange(first[0], last[-1])
    weights = (1 - np.abs((near + 0.5 - centres[:, None]) / reach)).clip(0)
    weights[(near < first[:, None]) | (near >= last[:, None])] = 0
    weights /= weights.sum(1, keepdims=True)
    return slice(first[0], last[-1]), (weights * (1 << _TAP_BITS) + 0.5).astype(np.int64)


def _central_box(height: int, width: int, aspect: tuple[float, float]) -> Box:
    """The largest central box with an aspect (width / height) clamped to the range."""
    h, w = height, width
    if width / height < aspect[0]:
        h = min(height, max(1, round(width / aspect[0])))
    elif width / height > aspect[1]:
        w = min(width, max(1, round(height * aspect[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation. A damaged EXIF block is ignored: the pixels are still good."""
    try:
        return image if is_upright(image) else ImageOps.exif_transpose(image)
    except Exception:
        return image


def is_upright(image: Image.Image) -> bool:
    """Whether an image is to be shown as it is stored, by its EXIF block; one that is damaged says nothing."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1) not in _TURNED
    except Exception:
        return True


def _load(image: Image.Image, channels: int) -> Image.Image:
    """Reads the pixels of an opened image, and makes them L or RGB."""
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"an image of {image.width}x{image.height} pixels is too large: up to {MAX_PIXELS:,} pixels are read")
    stored = image.tile[0][3] if getattr(image, "tile", None) else ""  # unknown once they are read
    image.load()
    return _flatten(_upright(image), channels, stored)


def _flatten(image: Image.Image, channels: int, stored: str = "") -> Image.Image:
    """Converts any Pillow mode to L (one channel) or RGB (three); `stored` is the mode in the file, in Pillow's words."""
    if channels not in (1, 3):
        raise BadImage(f"an encoded image can become 1 or 3 channels, not {channels}")
    mode = "L" if channels == 1 else "RGB"
    key = image.info.get("transparency")
    if image.mode in _BY_WAY_OF:
        image = image.convert(_BY_WAY_OF[image.mode])
    if image.mode == "F":
        image = _from_float(image)
    elif image.mode.startswith("I"):
        image = _from_deep(image, key)
    elif image.mode in ("1", "L", "RGB") and key is not None:
        image = _without_key(image, key, stored)
    elif image.has_transparency_data:
        image = _on_white(image)
    return image if image.mode == mode else image.convert(mode)


def _on_white(image: Image.Image) -> Image.Image:
    """What Pillow composes of the image and a white one, in strips: each of its steps takes four bytes a pixel."""
    width, height = image.size
    opaque = Image.new("RGB", image.size)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(height, top + rows))).convert("RGBA")
        opaque.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip), (0, top))
    return opaque


def _from_deep(image: Image.Image, key: int | None) -> Image.Image:
    """Grey of 16 bits (Pillow's own conversion clips at 255) on white where it is `key`; other depths are refused."""
    pixels = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    white = 4095 if tags.get(_TIFF_BITS) == (12,) else 65535
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > white:
        raise BadImage(f"whole numbers of {low} .. {high} are no pixels: scale them to 0 .. {white}")
    if 0 < high <= 255:  # of 16 bits, black
        raise BadImage(f"whole numbers of up to {high} may be of 8 bits or of 16: make them 8-bit pixels, or 0 .. 65535")
    levels = ((np.arange(white + 1) * 255 + white // 2) // white).astype(np.uint8)
    if tags.get(_TIFF_PHOTOMETRIC) == 0:
        levels = levels[::-1]
    if key is not None:
        levels[key] = 255
    return Image.fromarray(levels[pixels])


def _from_float(image: Image.Image) -> Image.Image:
    """Float pixels as Pillow takes them, 0 .. 255; those of another range, or of one that cannot be told, are refused."""
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    if not 0 <= low <= high <= 255 or 0 < high <= _DARKEST:
        raise BadImage(f"float pixels of {low:.4g} .. {high:.4g} have no certain range: make them 8-bit pixels, 0 .. 255")
    return image.convert("L")


def _without_key(image: Image.Image, key: int | tuple[int, ...], stored: str) -> Image.Image:
    """White where the image has the colour that its PNG file calls transparent, in the bits that the file has."""
    pixels = np.array(image.convert("L") if image.mode == "1" else image)
    levels = {"L;2": 85, "L;4": 17}.get(stored, 1)
    if not stored and image.mode == "L":  # fewer bits show in the pixels, and 8 bits of such would have none of the key
        levels = next((step for step, most in ((85, 3), (17, 15)) if key <= most and not (pixels % step).any()), 1)
    colour = np.array(key) * levels
    if stored == "RGB;16B" or colour.max() > 255:  # of which Pillow keeps the upper half
        colour >>= 8
    rows = max(1, _STRIP // pixels.shape[1])
    for strip in (pixels[top : top + rows] for top in range(0, len(pixels), rows)):
        strip[(strip == colour).all(-1) if strip.ndim == 3 else strip == colour] = 255
    return Image.fromarray(pixels)


def _convert_array(pixels: np.ndarray, channels: int) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        got = f"an image array must be uint8 (0 .. 255) [H, W] or [H, W, C], got {pixels.dtype} {list(pixels.shape)}"
        advice = {"f": "scale and round them", "b": "multiply them by 255", "i": "cast them", "u": "cast them"}.get(
            pixels.dtype.kind
        )
        raise BadImage(f"{got}: {advice} first" if advice and pixels.dtype != np.uint8 else got)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[-1] == channels:
        return pixels
    if pixels.shape[-1] not in (1, 3, 4) or channels not in (1, 3):
        first = pixels.shape[0] in (1, 3, 4)
        shape = f"{list(pixels.shape)} must be [H, W, C]" + (", as transpose or permute(1, 2, 0) makes it" if first else "")
        raise BadImage(f"an image array of {pixels.shape[-1]} channels cannot become one of {channels}: {shape}")
    return _as_array(_flatten(_as_pillow(pixels), channels))


def _turn_hue(image: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    # Hue is stored in 256 steps around the circle, so that the sum may wrap.
    turned = (np.asarray(hue).astype(np.int16) + int(turn * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
_JITTER = (*(lambda image, factor, of=of: of(image).enhance(factor) for of in _ENHANCERS), _turn_hue)


def _as_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _as_array(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
