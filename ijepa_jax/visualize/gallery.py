"""Images of a data set as pictures show them: as an evaluation sees them, with their masks, and with their neighbours."""

import dataclasses

import numpy as np

from ijepa_jax.data import changes
from ijepa_jax.data.source import Source
from ijepa_jax.data.views import View
from ijepa_jax.methods import Method
from ijepa_jax.visualize.canvas import Canvas
from ijepa_jax.visualize.features import draw_neighbours, nearest_others
from ijepa_jax.visualize.masks import draw_masks
from ijepa_jax.visualize.sheet import save_grid

_MASKS = ("context", "target", "target_length", "context_length")  # arrays of examples that can be drawn; the last is optional
_NEIGHBOURS = 6  # drawn beside an image
_VIEW_PIXELS = 96  # that images with their views are enlarged to, at least
_VIEWS = 6  # of a kind


@dataclasses.dataclass(frozen=True)
class Gallery:
    """A bank of images, those of a source at `rows` (int64 [N], all readable), some of which are drawn: `chosen`, int [n].

    `view` says how images are prepared, `method` is what is trained of them.
    """

    view: View
    method: Method
    source: Source
    rows: np.ndarray
    chosen: np.ndarray

    @property
    def patch(self) -> int | tuple[int, ...]:
        """The sides of a patch, one for all axes or one for each."""
        return self.method.backbone().network.patch

    def images(self, places: np.ndarray) -> np.ndarray:
        """The examples at some places of the bank as an evaluation gives them to the encoder: images uint8 [n, H, W, C]; videos
        and signals as batches have them.
        """
        return np.stack([self.view.shown(self.source[int(row)]) for row in self.rows[places]])

    def masks(self, count: int, seed: int = 0) -> dict[str, np.ndarray]:
        """The method's masks of so many images, see `MaskSampler`; empty where it has none."""
        arrays = self.method.prepare()(np.arange(count) + seed * count)
        return {name: arrays[name] for name in _MASKS if name in arrays} if arrays.keys() >= {*_MASKS[:3]} else {}

    def draw_masks(self, path, masks: dict[str, np.ndarray]) -> None:
        """Draws the chosen images with their contexts and targets, the first rows of `masks`."""
        first = {name: values[: len(self.chosen)] for name, values in masks.items()}
        draw_masks(path, self.images(self.chosen), **first, patch=self.patch)

    def draw_views(self, path, seed: int = 0) -> None:
        """Draws the chosen images with the views that training would compare of them, enlarged alike, the first of each."""
        rows, of = [], self.method.views()
        for image, place in zip(self.images(self.chosen), self.chosen, strict=True):
            found = changes.shown(of, self.source[int(self.rows[place])], seed, int(place))
            views = [view for room, kind in zip(found, of, strict=True) for view in room[kind.name][:_VIEWS]]
            pictures = [Canvas.of(picture[None]).pictures(picture[None])[0, 0] for picture in (image, *views)]
            times = -(-_VIEW_PIXELS // min(image.shape[:2]))
            size, larger = times * np.array(image.shape[:2]), np.ones((times, times, 1), np.uint8)
            rows.append([_amid(np.kron(picture, larger), size) for picture in pictures])
        save_grid(path, rows, ["image", *(kind.name for kind in of for _ in range(min(kind.count, _VIEWS)))], gap_after=1)

    def draw_nearest(self, path, pooled: np.ndarray, captions: list[str] | None = None) -> None:
        """Draws the chosen images, each with those of the bank that are nearest by pooled features, float [N, D].

        `captions`: text to be written below each image of the bank.
        """
        found = nearest_others(pooled, self.chosen, _NEIGHBOURS)
        shown = None if captions is None else [
            [captions[place] for place in (query, *near)] for query, near in zip(self.chosen, found, strict=True)
        ]  # fmt: skip
        near = np.unique(found)
        images = self.images(self.chosen)
        draw_neighbours(path, images, self.images(near), np.searchsorted(near, found), captions=shown)


def _amid(picture: np.ndarray, size: np.ndarray) -> np.ndarray:
    """A picture in the middle of a white one of at least this size."""
    height, width = np.maximum(size, picture.shape[:2])
    room = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    room[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return room
