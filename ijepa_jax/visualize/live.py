"""Pictures while a run trains: a few test images above their patch features as colours, without matplotlib."""

import dataclasses

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from ijepa_jax.data.loader import Loader
from ijepa_jax.data.source import Source
from ijepa_jax.devices.sharding import all_rows
from ijepa_jax.evaluate import features as features_lib
from ijepa_jax.visualize.features import as_colours
from ijepa_jax.visualize.masks import as_rgb

_IMAGES = 8
_SIDE = 96  # at least so many pixels an image


def feature_strip(loader: Loader, test: Source, extract: features_lib.Extract, grid: tuple[int, int], mesh: Mesh) -> np.ndarray:
    """Some test images and, below each, its patches' first three principal components as colours: uint8 [2 H, n W, 3].

    `extract` gives `patches` of images, which lie on `grid` (rows, columns). With several processes all must call this
    and get the picture.
    """
    few = dataclasses.replace(loader, eval_batch_size=_IMAGES, loading=dataclasses.replace(loader.loading, workers=0))
    rows = features_lib.sample(len(test), _IMAGES)

    def with_images(images: np.ndarray) -> features_lib.Features:
        return {**extract(images), **all_rows({"image": images}, mesh)}

    found, _ = features_lib.collect(few.eval_batches(test, rows, mesh.size), with_images, mesh)
    return side_by_side(found["image"], found["patches"], grid)


def side_by_side(images: np.ndarray, patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The picture of images uint8 [n, H, W, C] and patch features [n, rows * columns, D]; small images are enlarged."""
    images = as_rgb(images)
    scale = -(-_SIDE // images.shape[1])
    strips = [np.concatenate([*row], axis=1) for row in (images, as_colours(patches, images, grid))]
    return np.concatenate(strips).repeat(scale, axis=0).repeat(scale, axis=1)


def read_picture(path) -> np.ndarray:
    """A PNG file on white ground: uint8 [H, W, 3]."""
    with path.open("rb") as file, Image.open(file) as image:
        ground = Image.new("RGBA", image.size, "white")
        return np.asarray(Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB"))
