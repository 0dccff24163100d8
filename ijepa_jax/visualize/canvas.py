"""Examples of any modality as pictures, which are divided into cells as the examples are into patches.

A picture is uint8 [frames, H, W, 3]: an image and the lines of a signal are one frame, a video is a film strip of several.
Each frame has the same grid of cells, (rows, columns), and `Canvas.patches` says which patch a cell shows: so what draws on
pictures need not know what they are of.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from PIL import Image, ImageDraw

from ijepa_jax.settings.axes import by, modality

PATCH_PIXELS = 24  # at least so many pixels a patch, so that outlines are sharp
STRIP_PIXELS = 1200  # that the longest pictures are wide on a page
_WIDE = 2.5  # times its height, past which a picture is too wide to have others beside it
_FRAMES = 8  # shown of a video
_PAPER = np.array([236, 238, 241], np.float32)  # what hidden patches are drawn as
_LANES = 6  # channels of a signal that are drawn
_LINES_HEIGHT = 120  # pixels of all lanes
_FINER = 2  # times as fine as they are shown lines are drawn, so that they become smooth
_LEAST = 2.0  # deviations from 0 that a lane reaches to at least
_INK, _FAINT = (31, 41, 55), (208, 212, 216)
EXPLAINED = {
    "video": f"Videos are shown as film strips: the first frame of each step of patches, of more than {_FRAMES} steps "
    f"{_FRAMES} evenly spread ones. Each picture has as many videos as it has room for.",
    "signal": f"Signals are shown as lines, one for each channel, the first {_LANES} where there are more; a patch is a band "
    "of the picture. Each picture has as many signals as it has room for.",
    "wide": "Images this wide are drawn below each other. Each picture has as many as it has room for.",
}


@dataclasses.dataclass(frozen=True)
class Canvas:
    """How examples of some `sizes`, one for each axis, and their `grid` of patches lie in pictures."""

    sizes: tuple[int, ...]
    grid: tuple[int, ...]

    @classmethod
    def of(cls, examples, grid: Sequence[int] = ()) -> Self:
        """The canvas of examples [n, *sizes, C]; without a grid each frame is one cell.

        Raises ValueError for a grid of other axes.
        """
        sizes = np.shape(examples)[1:-1]
        whole = {"signal": (1,), "image": (1, 1), "video": (*sizes[:1], 1, 1)}
        kind, grid = modality(sizes), tuple(grid)
        if grid and len(grid) != len(sizes):
            raise ValueError(f"{kind}s of {by(sizes)} do not lie on a grid of {by(grid)} patches")
        return cls(sizes, grid or whole[kind])

    @property
    def kind(self) -> str:
        """What the examples are: image, video or signal."""
        return modality(self.sizes)

    @property
    def patches(self) -> np.ndarray:
        """The index of the patch that each cell shows: int [frames, rows, columns], of the frames that are shown."""
        places = np.arange(math.prod(self.grid)).reshape((1,) * (3 - len(self.grid)) + self.grid)
        return places[_shown(len(places))]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame that is not enlarged, in pixels."""
        if self.kind == "signal":
            return _LINES_HEIGHT, self.grid[0] * max(1, STRIP_PIXELS // self.grid[0])
        return self.sizes[-2:]

    def pictures(self, examples, patch_pixels: int = 1) -> np.ndarray:
        """Examples as pictures, uint8 [n, frames, H, W, 3], of frames whose patches have at least so many pixels a side.

        A video is shown by the first frame of each step of its grid, of more than eight steps by eight evenly spread ones. It
        is not enlarged beyond what a page has room for. A signal, float [n, L, C], is always of the same size.

        Raises:
          ValueError: images or videos that are not uint8.
        """
        examples = np.asarray(examples)
        if self.kind == "signal":
            return _lines(examples, self.size)[:, None]
        if self.kind == "image":
            examples = examples[:, None]
        steps = self.grid[0] if self.kind == "video" else 1
        frames = as_rgb(examples[:, _shown(steps) * examples.shape[1] // steps])
        scale = -(-patch_pixels // min(self.size[0] // self.grid[-2], self.size[1] // self.grid[-1]))
        if frames.shape[1] > 1:
            scale = max(1, min(scale, STRIP_PIXELS // (frames.shape[1] * self.size[1])))
        return frames.repeat(scale, axis=2).repeat(scale, axis=3)

    @property
    def wide(self) -> bool:
        """Whether pictures are too wide to lie side by side."""
        return is_wide(np.empty((len(self.patches), *self.size, 0)))

    def seen(self, indices, length) -> np.ndarray:
        """The cells of the first `length` of a block's patch indices: bool [frames, rows, columns]."""
        return seen_patches(indices, length, self.grid).ravel()[self.patches]


def explained(found: dict[str, Any]) -> str:
    """What a reader must know of the pictures of a page, which tells `modality` and `wide`; empty for most images."""
    kind = found.get("modality", "image")
    return EXPLAINED.get("wide" if kind == "image" and found.get("wide") else kind, "")


def as_rgb(images) -> np.ndarray:
    """Makes uint8 images [n, ..., H, W, channels] drawable: three channels; grey is repeated, more than three are cut.

    Raises:
      ValueError: images of another type or shape.
    """
    images = np.asarray(images)
    if images.ndim < 4 or images.dtype != np.uint8:
        raise ValueError(f"images to draw must be uint8 [n, H, W, channels], got {images.dtype} {list(images.shape)}")
    return images[..., :3] if images.shape[-1] >= 3 else images[..., :1].repeat(3, axis=-1)


def is_wide(picture: np.ndarray) -> bool:
    """Whether a picture, its frames side by side, is too wide to have others beside it."""
    height, width = picture.shape[-3:-1]
    return math.prod(picture.shape[:-3]) * width > _WIDE * height


def joined(picture: np.ndarray) -> np.ndarray:
    """A picture as one of a single frame, uint8 [H, W, 3]: its frames side by side, with gaps between them."""
    frames = picture.reshape(-1, *picture.shape[-3:])
    gap = max(1, frames.shape[2] // 24)
    return np.concatenate([*np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)], axis=1)[:, :-gap]


def seen_patches(indices, length, grid: Sequence[int]) -> np.ndarray:
    """Marks the first `length` of a block's patch indices (in row-major order) on a grid of any axes: bool [*grid]."""
    indices = np.asarray(indices)[: int(length)]
    seen = np.zeros(math.prod(grid), bool)
    if indices.size and not 0 <= indices.min() <= indices.max() < seen.size:
        raise ValueError(f"patch indices run from {indices.min()} to {indices.max()}, outside the {by(grid)} grid")
    seen[indices] = True
    return seen.reshape(grid)


def over_pixels(cells: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Gives each pixel of frames of `size` (height, width) its cell's values: [..., rows, columns, K] -> [..., H, W, K]."""
    rows, columns = (np.arange(pixels) * count // pixels for pixels, count in zip(size, cells.shape[-3:-1], strict=True))
    return cells[..., rows[:, None], columns, :]


def reveal(picture, seen, *, faintness: float, outline: str | None = None) -> np.ndarray:
    """Fades a picture [..., H, W, 3] to paper where `seen` (bool [..., rows, columns]) is false; outlines what is seen."""
    seen = over_pixels(seen[..., None], picture.shape[-3:-1])
    faded = picture + faintness * (_PAPER - picture)
    shown = np.where(seen, picture, faded)
    if outline is not None:
        shown[edge(seen[..., 0], width=3)] = [int(outline[i : i + 2], 16) for i in (1, 3, 5)]
    return shown.astype(np.uint8)


def edge(seen, width: int) -> np.ndarray:
    """The pixels of a region (bool [..., H, W]) that lie within `width` of its border or of the frame's."""
    inside = np.pad(seen, [(0, 0)] * (seen.ndim - 2) + [(width, width)] * 2)
    for axis in (-2, -1):  # one after the other: a square neighbourhood
        inside = np.logical_and.reduce([np.roll(inside, step, axis) for step in range(-width, width + 1)])
    return seen & ~inside[..., width:-width, width:-width]


def _shown(steps: int) -> np.ndarray:
    """Those of the steps of a grid that are shown, int [frames]: the first of equal parts, whatever the steps are."""
    frames = min(steps, _FRAMES)
    return np.arange(frames) * steps // frames


def _lines(signals: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Signals float [n, L, C] as lines, a lane for each of the first channels: uint8 [n, H, W, 3].

    The lanes of an example reach as far from 0 as its greatest value.
    """
    height, width = (_FINER * side for side in size)
    values = np.moveaxis(np.asarray(signals, np.float32)[..., :_LANES], -1, 1)
    reach = np.maximum(_LEAST, np.abs(values).max(axis=(1, 2), initial=0, keepdims=True))
    lane = height / values.shape[1]
    middles = lane * (np.arange(values.shape[1]) + 0.5)
    down = middles[:, None] - 0.46 * lane * values / reach
    across = (np.arange(values.shape[2]) + 0.5) * width / values.shape[2]  # each value within its patch
    pictures = []
    for of_example in down:
        image = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(image)
        for middle, points in zip(middles, of_example, strict=True):
            draw.line([(0, middle), (width, middle)], fill=_FAINT, width=_FINER)
            draw.line(np.stack([across, points], axis=1).ravel().tolist(), fill=_INK, width=_FINER + 1, joint="curve")
        pictures.append(np.asarray(image.reduce(_FINER)))
    return np.stack(pictures)
