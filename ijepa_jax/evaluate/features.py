"""Frozen features of images: representations of an encoder, or raw pixels, collected over a data set."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from einops import rearrange
from jax.sharding import Mesh

from ijepa_jax.data.images import resize
from ijepa_jax.data.loader import Loader
from ijepa_jax.data.source import Arrays, DataError, Source, Subset
from ijepa_jax.devices.sharding import all_rows, place_batch, replicated
from ijepa_jax.model.encoder import Encoder

PIXEL_SIZE = (32, 32)

Features = dict[str, np.ndarray]  # by kind, see `Encoder.represent`
Extract = Callable[[np.ndarray], Features]  # this process's images uint8 [b, H, W, C] -> features of all processes' images


def extractor(encoder: Encoder, mesh: Mesh, kinds: Sequence[str] = ("last",)) -> Callable[[Any, np.ndarray], Features]:
    """A function (encoder parameters, this process's rows of a batch of images) -> features of the whole batch.

    The batch is split over `mesh`, whose size must divide it; the function is compiled once for each size. With several
    processes all must call it, and all get all features.
    """
    represent = jax.jit(lambda params, images: encoder.represent(params, images, kinds), out_shardings=replicated(mesh))

    def extract(params, images: np.ndarray) -> Features:
        return jax.device_get(represent(params, place_batch({"image": images}, mesh)["image"]))

    return extract


def pixels(mesh: Mesh, patch: int = 1, kinds: Sequence[str] = ("last",)) -> Extract:
    """Raw pixels as features, in 0..1, of uint8 [b, H, W, C].

    `last`: float32 [B, 32 * 32 * C], resized with antialiasing; `patches`: float32 [B, N, patch * patch * C].
    """

    return lambda images: all_rows(pixel_features(images, patch, kinds), mesh)


def pixel_features(images: np.ndarray, patch: int, kinds: Sequence[str]) -> Features:
    """Those of some images, by the kinds of `pixels`."""
    found = {}
    if "last" in kinds:
        small = np.stack([resize(image, PIXEL_SIZE) for image in images])
        found["last"] = small.reshape(len(small), -1)
    if "patches" in kinds:
        found["patches"] = rearrange(images, "b (r p) (c q) ch -> b (r c) (p q ch)", p=patch, q=patch)
    return {kind: values.astype(np.float32) / 255 for kind, values in found.items()}


def collect(batches: Iterable[Arrays], extract: Extract, mesh: Mesh) -> tuple[Features, np.ndarray]:
    """Features [N, ...] by kind, and source indices int64 [N], of all valid rows of evaluation batches, each example once.

    Each process gives its own rows of the batches; all get all features, in the order of the examples.
    """
    parts, indices = [], []
    for batch in batches:
        features = extract(batch["image"])
        rows = all_rows({name: batch[name].astype(np.int32) for name in ("index", "valid")}, mesh)
        valid = rows["valid"].astype(bool)
        parts.append({kind: values[valid] for kind, values in features.items()})
        indices.append(rows["index"][valid])
    if not sum(map(len, indices)):
        raise DataError("no readable image to evaluate on")
    order = np.argsort(np.concatenate(indices), kind="stable")
    joined = {kind: np.concatenate([part[kind] for part in parts])[order] for kind in parts[0]}
    for kind, values in joined.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{kind} features hold NaN or infinite values: the encoder has diverged")
    return joined, np.concatenate(indices)[order].astype(np.int64)


def collect_views(loader: Loader, source: Source, images: int, views: int, extract: Extract, mesh: Mesh) -> np.ndarray:
    """Features [n, views, D] of random crops of images of a source, spread evenly over it, as `loader` makes them.

    `n` is `images`, or as many as there are, rounded down to what makes whole batches of about its `batch_size` crops. An
    image that cannot be read is left out. Raises DataError where there are not two.
    """
    count = min(images, len(source))
    each = max(1, min(loader.batch_size // views, count) // mesh.size) * mesh.size  # images a batch
    count = count // each * each
    if count < 2:
        raise DataError(f"LiDAR needs two images, and one for each of {mesh.size} devices: there are {len(source)}")
    rows = np.repeat(sample(len(source), count), views)
    found, whole = None, np.ones(count, bool)
    for batch in dataclasses.replace(loader, batch_size=each * views).crops(Subset(source, rows), count // each):
        features = extract(batch["image"])["last"]
        position = np.where(batch["bad"] < 0, batch["source"], batch["bad"])  # what should have been shown
        given = all_rows({"position": position.astype(np.int32), "bad": batch["bad"].astype(np.int32)}, mesh)
        found = np.zeros((len(rows), features.shape[1]), np.float32) if found is None else found
        found[given["position"]] = features
        whole[given["position"][given["bad"] >= 0] // views] = False
    return found.reshape(count, views, -1)[whole]


def sample(count: int, wanted: int) -> np.ndarray:
    """`wanted` of `count` examples (all, if there are fewer), evenly spread, so that sorted folders give every class."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))
