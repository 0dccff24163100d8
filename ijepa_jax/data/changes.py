"""Several views of an image, made: crops of it, decoded once, each changed as `multiview.Views` has it.

A view is a pure function of the image and of uniforms in [0, 1), which the pipeline draws by (seed, index, view); of JPEG files
its last grey levels depend on how small all views together let the file be decoded, unless they are `exact`. Crops are those of
`crops.crops_into`. Of the changes flips, brightness, contrast, grey and solarisation are torchvision's to the level,
the others within one or two on average; with `exact`, all but the blur are its to the bit.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ijepa_jax.data import counter, crops, images
from ijepa_jax.data.multiview import Views

_AT = images.CROP_UNIFORMS
_FLIP, _JITTERED, _GREY, _BLURRED, _SIGMA, _SOLARISED = range(_AT, _AT + 6)
_JITTER = slice(_AT + 6, _AT + 6 + images.JITTER_UNIFORMS)
UNIFORMS = _JITTER.stop  # that a view takes
_PURPOSE = 0x1DA7A06  # of these random numbers; pipeline.py has its own, below it
_REACH = 4  # sigmas, past which a blur's kernel has weights of less than 1 in 10,000


class Drawn(NamedTuple):
    """What a view is of an image: a box, and changes."""

    box: images.Box
    flip: bool
    jitter: tuple[float, ...]  # factors of brightness, contrast and saturation, and a turn of the hue
    order: tuple[int, ...]  # of the four
    grey: bool
    sigma: float
    solarised: bool


def draw(of: Views, height: int, width: int, u: Sequence[float]) -> Drawn:
    """What the view of an image of this size is, by `UNIFORMS` uniforms."""
    aspect = tuple(ratio * of.size[1] / of.size[0] for ratio in of.aspect)
    box = images.random_resized_crop_box(height, width, u[:_AT], of.scale, aspect)
    strengths = of.strengths if u[_JITTERED] < of.jitter else (0.0,) * 4
    if of.channels == 1:  # there is no colour to change
        strengths = (*strengths[:2], 0.0, 0.0)
    jitter = images.drawn_jitter(u[_JITTER], strengths)
    sigma = of.sigma[0] + (of.sigma[1] - of.sigma[0]) * u[_SIGMA] if u[_BLURRED] < of.blur else 0.0
    return Drawn(
        box, u[_FLIP] < of.flip, *jitter, of.channels == 3 and u[_GREY] < of.grey, sigma, u[_SOLARISED] < of.solarise,
    )  # fmt: skip


def change(of: Views, view: np.ndarray, drawn: Drawn) -> np.ndarray:
    """The changes of a crop, uint8 [H, W, C]; the crop itself where there are none."""
    if drawn.flip:
        view = cv2.flip(view, 1).reshape(view.shape)
    if of.exact:
        view = images.jitter(view, drawn.jitter, drawn.order)
    else:
        view = images.in_order(view, _FAST_JITTER, drawn.jitter, drawn.order, of.channels == 3)
    if drawn.grey:
        view = images.grey(view)
    if drawn.sigma:
        view = _blur(view, of.kernel, drawn.sigma)
    return solarised(view, of.threshold) if drawn.solarised else view


def uniforms(views: Sequence[Views], seed: int, index: int) -> np.ndarray:
    """What draws the views of an example, float64 [views, UNIFORMS]; no view's depend on how many others there are."""
    number = np.concatenate([place << 16 | np.arange(of.count) for place, of in enumerate(views)])
    return counter.uniform(seed, _PURPOSE, index, number[:, None], np.arange(UNIFORMS))


def shown(views: Sequence[Views], data: bytes | np.ndarray, seed: int, index: int) -> list[dict[str, np.ndarray]]:
    """The views of an image as training with this seed shows them of the global example `index`, for each of `views`."""
    rooms = [{name: room[0] for name, room in of.blank(1).items()} for of in views]
    show(rooms, data, views, uniforms(views, seed, index))
    return rooms


def show(rooms: Sequence[dict[str, np.ndarray]], data: bytes | np.ndarray, views: Sequence[Views], u: np.ndarray) -> None:
    """Fills a row's rooms, one for each of `views` and as its `blank` has them, with views of an image, decoded once.

    `u`: `UNIFORMS` uniforms for each view, [views, UNIFORMS]. `data` is as `images.decode` takes it. Raises `images.BadImage`.
    """
    places = [(of, room, number) for of, room in zip(views, rooms, strict=True) for number in range(of.count)]
    drawn, sizes = [], []

    def choose(height: int, width: int) -> list[images.Box]:
        sizes[:] = height, width
        drawn[:] = [draw(of, height, width, row) for (of, _, _), row in zip(places, u.tolist(), strict=True)]
        return [of.box for of in drawn]

    outs = [room[of.name][number] for of, room, number in places]
    crops.crops_into(outs, data, choose, views[0].exact, [of.bicubic for of, _, _ in places])
    for out, (of, room, number), chosen in zip(outs, places, drawn, strict=True):
        changed = change(of, out, chosen)
        if changed is not out:
            out[:] = changed
        if of.keep_drawn:
            height, width = sizes
            box = np.divide(chosen.box, (height, width, height, width))
            told = (*box, chosen.flip, *chosen.jitter, chosen.grey, chosen.sigma, chosen.solarised)
            room[f"{of.name}_drawn"][number] = told


def solarised(image: np.ndarray, threshold: int) -> np.ndarray:
    """Pixels of `threshold` and brighter ones inverted."""
    levels = np.arange(256)
    return _mapped(image, np.where(levels < threshold, levels, 255 - levels))


_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


def _luma(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[-1] == 3 else image


def _mapped(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Each pixel's level replaced by another, rounded down."""
    return cv2.LUT(image, levels.astype(np.uint8)).reshape(image.shape)


def _brighter(image: np.ndarray, factor: float) -> np.ndarray:
    return _stretched(image, factor, 0)


def _contrasted(image: np.ndarray, factor: float) -> np.ndarray:
    return _stretched(image, factor, int(_luma(image).mean() + 0.5))


def _stretched(image: np.ndarray, factor: float, middle: int) -> np.ndarray:
    levels = np.arange(256, dtype=np.float32)
    return _mapped(image, np.clip(np.float32(middle) + np.float32(factor) * (levels - np.float32(middle)), 0, 255))


def _saturated(image: np.ndarray, factor: float) -> np.ndarray:
    luma = (1 - factor) * np.float32(_LUMA)
    return cv2.transform(image, np.eye(3, dtype=np.float32) * np.float32(factor) + luma)


def _turned(image: np.ndarray, turn: float) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(255 * turn) % 256)  # as torchvision rounds it
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


# `images.jitter`'s, several times faster: saturation without rounding in between, hue by OpenCV's circle of 256 steps
_FAST_JITTER = (_brighter, _contrasted, _saturated, _turned)


def _blur(image: np.ndarray, kernel: int, sigma: float) -> np.ndarray:
    """torchvision's Gaussian blur, mirrored at the edges, without what of the kernel is nearly 0."""
    reach = min(kernel // 2, math.ceil(_REACH * sigma))
    blurred = cv2.GaussianBlur(image, (2 * reach + 1,) * 2, sigma, borderType=cv2.BORDER_REFLECT_101)
    return blurred.reshape(image.shape)
