"""Frozen features of examples: representations of an encoder, or raw pixels, collected over a data set."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ijepa_jax.data.images import resize
from ijepa_jax.data.loader import Loader
from ijepa_jax.data.source import Arrays, DataError, Source, Subset
from ijepa_jax.data.views import examples
from ijepa_jax.devices.sharding import all_rows, place_batch, replicated
from ijepa_jax.host import memory
from ijepa_jax.model.encoder import Encoder
from ijepa_jax.model.vit import patchify

# What raw examples are reduced to, so that a linear classifier of them has some thousand inputs a channel at most.
PIXEL_SIZE = (32, 32)
_FRAMES, _FRAME_SIZE, _VALUES = 8, (16, 16), 1024

Features = dict[str, np.ndarray]  # by kind, see `Encoder.represent`
Extract = Callable[[np.ndarray], Features]  # this process's examples, [b, H, W, C] say -> features of all processes' examples


def extractor(encoder: Encoder, mesh: Mesh, kinds: Sequence[str] = ("last",)) -> Callable[[Any, np.ndarray], Features]:
    """A function (encoder parameters, this process's rows of a batch of images) -> features of the whole batch.

    The batch is split over `mesh`, whose size must divide it; the function is compiled once for each size. With several
    processes all must call it, and all get all features.
    """
    represent = jax.jit(lambda params, images: encoder.represent(params, images, kinds), out_shardings=replicated(mesh))

    def extract(params, images: np.ndarray) -> Features:
        return jax.device_get(represent(params, place_batch({"examples": images}, mesh)["examples"]))

    return extract


def pixels(mesh: Mesh, patch: int | tuple[int, ...] = 1, kinds: Sequence[str] = ("last",)) -> Extract:
    """Raw pixels as features, in 0..1, of uint8 [b, H, W, C] or [b, T, H, W, C]; of signals, float [b, L, C], their values.

    `last`: float32 [B, 32 * 32 * C], resized with antialiasing; of a video's frames at most 8 means, of 16 * 16 * C each; of a
    signal's values at most 1,024 means a channel. `patches`: float32 [B, N, values of a patch].
    """

    return lambda images: all_rows(pixel_features(images, patch, kinds), mesh)


def pixel_features(shown: np.ndarray, patch: int | tuple[int, ...], kinds: Sequence[str]) -> Features:
    """Those of some examples, by the kinds of `pixels`."""
    found = {}
    if "last" in kinds:
        small = np.stack([_REDUCED[shown.ndim - 2](example) for example in shown])
        found["last"] = small.reshape(len(small), -1)
    if "patches" in kinds:
        found["patches"] = patchify(shown, patch)
    full = 255 if shown.dtype == np.uint8 else 1
    return {kind: values.astype(np.float32) / full for kind, values in found.items()}


def _means(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many means of consecutive values along the first axis."""
    return np.stack([part.mean(axis=0) for part in np.array_split(values, most)]) if len(values) > most else values


_REDUCED = {  # by the number of axes
    1: lambda signal: _means(signal, _VALUES),
    2: lambda image: resize(image, PIXEL_SIZE),
    3: lambda video: _means(np.stack([resize(frame, _FRAME_SIZE) for frame in video]), _FRAMES),
}


def collect(batches: Iterable[Arrays], wanted: np.ndarray, extract: Extract, mesh: Mesh) -> tuple[Features, np.ndarray]:
    """Features [N, ...] by kind, and source indices int64 [N], of the valid rows of evaluation batches of the images `wanted`.

    Each process gives its own rows of the batches; all get all features, in the order of the indices.

    Raises:
        DataError: no image is readable.
        ValueError: features are not finite.
        MemoryError: they would not fit, which is told after the first batch.
    """
    wanted = np.unique(wanted)
    found, there = {}, np.zeros(len(wanted), bool)
    for batch in batches:
        features = extract(examples(batch))
        rows = all_rows({name: batch[name].astype(np.int32) for name in ("index", "valid")}, mesh)
        valid = rows["valid"].astype(bool)
        places = np.searchsorted(wanted, rows["index"][valid])
        there[places] = True
        if not found:
            _check_room(features, len(wanted))
            found = {kind: np.empty((len(wanted), *values.shape[1:]), values.dtype) for kind, values in features.items()}
        for kind, values in features.items():
            if not np.isfinite(values[valid]).all():
                raise ValueError(f"{kind} features hold NaN or infinite values: the encoder has diverged")
            found[kind][places] = values[valid]
    if not there.any():
        raise DataError("no readable image to evaluate on")
    return {kind: _compacted(values, there) for kind, values in found.items()}, wanted[there]


def _compacted(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The rows that are there, moved to the front: a copy of them would take as much memory again."""
    if there.all():
        return values
    end = 0
    for rows in np.array_split(np.arange(len(values)), max(1, len(values) // 4096)):
        kept = values[rows[there[rows]]]
        values[end : end + len(kept)] = kept
        end += len(kept)
    return values[:end]


def _check_room(features: Features, count: int) -> None:
    """Raises MemoryError where features of so many images like these would take more memory than there is."""
    needed, free = count * sum(values[:1].nbytes for values in features.values()), memory.available()
    if free is not None and needed > free:
        raise MemoryError(
            f"features of {count:,} images ({', '.join(features)}) take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
            "give fewer images (data.train_images), or heads that compute them anew (linear.augment, attentive.augment=True)"
        )


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
        features = extract(examples(batch))["last"]
        position = np.where(batch["bad"] < 0, batch["source"], batch["bad"])  # what should have been shown
        given = all_rows({"position": position.astype(np.int32), "bad": batch["bad"].astype(np.int32)}, mesh)
        found = np.zeros((len(rows), features.shape[1]), np.float32) if found is None else found
        found[given["position"]] = features
        whole[given["position"][given["bad"] >= 0] // views] = False
    return found.reshape(count, views, -1)[whole]


def sample(count: int, wanted: int) -> np.ndarray:
    """`wanted` of `count` examples (all, if there are fewer), evenly spread, so that sorted folders give every class."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))
