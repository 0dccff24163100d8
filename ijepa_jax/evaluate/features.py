"""Frozen features of images: average-pooled patch tokens of an encoder, or raw pixels."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ijepa_jax.data.images import resize
from ijepa_jax.data.sources import DataError
from ijepa_jax.methods import IJepa
from ijepa_jax.sharding import place_rows, replicated
from ijepa_jax.vit import normalise

PIXEL_SIZE = (32, 32)

Batch = dict[str, np.ndarray]


def extractor(method: IJepa, mesh: Mesh, pooled: bool = True) -> Callable[[Any, np.ndarray], np.ndarray]:
    """A function (encoder parameters, uint8 images [B, H, W, C]) -> float32 [B, D], or [B, N, D] if not `pooled`.

    It is compiled once for each B, and splits the batch over `mesh`. With several processes all must call it, with the same
    images, and all get all features.
    """

    def encode(params, images):
        tokens_bnd = method.encoder.apply({"params": params}, normalise(images, method.mean, method.std)).astype("float32")
        return tokens_bnd.mean(axis=1) if pooled else tokens_bnd

    compiled = jax.jit(encode, out_shardings=replicated(mesh))

    def extract(params, images: np.ndarray) -> np.ndarray:
        rows = -(-len(images) // mesh.size) * mesh.size
        padded = np.pad(images, ((0, rows - len(images)), *((0, 0),) * 3))
        return jax.device_get(compiled(params, place_rows(padded, mesh)))[: len(images)]

    return extract


def pixels(images: np.ndarray) -> np.ndarray:
    """Raw pixels as features: uint8 [B, H, W, C] -> float32 [B, 32 * 32 * C], antialiased, in 0..1."""
    small = np.stack([resize(image, PIXEL_SIZE) for image in images])
    return small.reshape(len(small), -1).astype(np.float32) / 255


def collect(batches: Iterable[Batch], extract: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] and source indices int64 [N] of all valid rows of evaluation batches, each example once."""
    features, indices = [], []
    for batch in batches:
        valid = batch["valid"]
        features.append(extract(batch["image"])[valid])
        indices.append(batch["index"][valid])
    features, indices = np.concatenate(features or [np.zeros((0, 0))]), np.concatenate(indices or [[]])
    if not len(features):
        raise DataError("no readable image to evaluate on")
    return features, indices


def sample(count: int, wanted: int) -> np.ndarray:
    """`wanted` of `count` examples (all, if there are fewer), evenly spread, so that sorted folders give every class."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))


def images_of(batches: Iterator[Batch]) -> np.ndarray:
    """The valid images of evaluation batches: uint8 [N, H, W, C]."""
    return np.concatenate([batch["image"][batch["valid"]] for batch in batches])
