"""Pictures while a run trains: a few test examples above their patch features as colours, without matplotlib."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from ijepa_jax.data.loader import Loader
from ijepa_jax.data.source import Source
from ijepa_jax.devices.sharding import all_rows
from ijepa_jax.evaluate import features as features_lib
from ijepa_jax.visualize.canvas import Canvas, is_wide, joined
from ijepa_jax.visualize.features import as_colours

_IMAGES = 8
_STACKED = 4  # of wide ones
_GAP = 4  # pixels between them
_SIDE = 96  # at least so many pixels an example


def feature_strip(loader: Loader, test: Source, extract: features_lib.Extract, grid: Sequence[int], mesh: Mesh) -> np.ndarray:
    """Some test examples and, below each, its patches' first three principal components as colours, see `side_by_side`.

    `extract` gives `patches` of examples, which lie on `grid`. With several processes all must call this and get the picture.
    """
    few = dataclasses.replace(loader, eval_batch_size=_IMAGES, loading=dataclasses.replace(loader.loading, workers=0))
    rows = features_lib.sample(len(test), _IMAGES)

    def with_images(images: np.ndarray) -> features_lib.Features:
        return {**extract(images), **all_rows({"image": images}, mesh)}

    found, _ = features_lib.collect(few.eval_batches(test, rows, mesh.size), rows, with_images, mesh)
    return side_by_side(found["image"], found["patches"], grid)


def side_by_side(images: np.ndarray, patches: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """The picture of examples [n, *sizes, C] (see `Canvas`) and features [n, N, D] of their patches: uint8 [H, W, 3].

    Below each example are its features. Small examples are enlarged; of wide ones the first few are drawn, below each other.
    """
    examples = Canvas.of(images, grid).pictures(images)
    lines = [[joined(picture) for picture in pictures] for pictures in (examples, as_colours(patches, images, grid))]
    scale = -(-_SIDE // len(lines[0][0]))
    if is_wide(examples[0]):
        gap = np.full_like(lines[0][0][:_GAP], 255)
        parts = [part for pair in zip(*lines, strict=True) for part in (*pair, gap)]
        picture = np.concatenate(parts[: 3 * _STACKED])[:-_GAP]
    else:
        picture = np.concatenate([np.concatenate(line, axis=1) for line in lines])
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def read_picture(path) -> np.ndarray:
    """A PNG file on white ground: uint8 [H, W, 3]."""
    with path.open("rb") as file, Image.open(file) as image:
        ground = Image.new("RGBA", image.size, "white")
        return np.asarray(Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB"))
