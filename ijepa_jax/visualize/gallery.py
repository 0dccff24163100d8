"""Images of a data set as pictures show them: as an evaluation sees them, with their masks, and with their neighbours."""

import dataclasses

import numpy as np

from ijepa_jax.data.source import Source
from ijepa_jax.data.views import View
from ijepa_jax.methods import Method
from ijepa_jax.visualize.features import draw_neighbours, nearest_others
from ijepa_jax.visualize.masks import draw_masks

_MASKS = ("context", "target", "target_length", "context_length")  # arrays of examples that can be drawn; the last is optional
_NEIGHBOURS = 6  # drawn beside an image


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
