"""Weighted k-nearest-neighbour classification by cosine similarity, exact for any size of the bank.

The protocol of Wu et al. 2018 (arXiv 1805.01978) that self-supervised encoders are compared with: k = 20 neighbours, each
voting for its class with weight exp(similarity / temperature), temperature 0.07.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_QUERIES = 256  # queries compared at a time,
_BANK_BYTES = 2**30  # of the bank that are on the device at a time
_BANK = 16384  # with so many bank rows at a time: 16 MiB of similarities, whatever the sizes given


def predict(bank, labels, queries, *, classes: int, k: int = 20, temperature: float = 0.07) -> np.ndarray:
    """Classifies each query by the weighted vote of its k nearest bank features.

    Args:
      bank: float [N, D], features of the labelled images.
      labels: int [N], in 0 .. classes - 1.
      queries: float [Q, D].
      classes: number of classes.
      k: neighbours that vote; all N where the bank is smaller.
      temperature: weight of a neighbour is exp(cosine similarity / temperature).

    Returns:
      int32 [Q]. Of classes with equal votes the lowest wins, of equally near neighbours the first in the bank. A feature
      vector of zeros has similarity 0 to everything.

    Raises:
      ValueError: wrong shapes, NaN or infinite features, labels out of range, k < 1 or temperature <= 0.
    """
    labels = checked_labels(labels, len(bank), classes, "bank")
    return vote(neighbours(bank, queries, k), labels, classes=classes, temperature=temperature)


def vote(nearest: tuple[np.ndarray, np.ndarray], labels, *, classes: int, temperature: float = 0.07) -> np.ndarray:
    """The second half of `predict`, for several tasks on the same features: `nearest` is what `neighbours` finds.

    labels, classes and temperature are as there, and so is what is returned and raised.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    indices, similarities = nearest
    labels = checked_labels(labels, len(labels), classes, "bank")
    return jax.device_get(_vote(*jax.device_put((labels[indices], similarities, np.float32(temperature))), classes=classes))


def accuracy(bank, labels, queries, query_labels, *, classes: int, k: int = 20, temperature: float = 0.07) -> float:
    """The share of queries that `predict` gives their label (int [Q]), in per cent. Raises as `predict`."""
    query_labels = checked_labels(query_labels, len(queries), classes, "query")
    predicted = predict(bank, labels, queries, classes=classes, k=k, temperature=temperature)
    return 100.0 * float(np.mean(predicted == query_labels))


def neighbours(bank, queries, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest bank rows (float [N, D]) of each query (float [Q, D]) by cosine similarity, nearest first.

    Returns:
      (indices int32 [Q, K], similarities float32 [Q, K]) with K = min(k, N). Equally near rows come in bank order.

    Raises:
      ValueError: wrong shapes, NaN or infinite features, an empty array, or k < 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    bank, queries = checked_features(bank, "bank"), checked_features(queries, "query")
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(f"bank features have {bank.shape[1]} dimensions, query features {queries.shape[1]}")
    found, start = None, 0
    for part in np.array_split(bank, -(-bank.nbytes // (_BANK_BYTES * jax.local_device_count()))):
        for indices, similarities in _neighbours_in(part, queries, min(k, len(bank))):
            nearest = indices + np.int32(start), similarities
            found = nearest if found is None else _nearer(found, nearest, min(k, len(bank)))
        start += len(part)
    return found


def _nearer(first, second, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of two sets of (indices, similarities) [Q, ...], nearest first; of equals those of the first."""
    indices, similarities = (np.concatenate(arrays, axis=1) for arrays in zip(first, second, strict=True))
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(similarities, order, axis=1)


def _neighbours_in(bank: np.ndarray, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """`neighbours` in what each of this process's devices has of a bank that they can hold, in the order of its rows.

    Where a device has fewer than k rows, similarities of -inf fill up.
    """
    devices = Mesh(jax.local_devices(), "rows")
    size, rows = min(_QUERIES, len(queries)), -(-len(bank) // devices.size)

    def rows_of(index: tuple[slice, ...]) -> np.ndarray:
        own = bank[index[0]]
        return np.pad(own, ((0, rows - len(own)), (0, 0)))

    split = NamedSharding(devices, PartitionSpec("rows"))
    banks = jax.make_array_from_callback((devices.size * rows, bank.shape[1]), split, rows_of)
    counts = np.clip(len(bank) - rows * np.arange(devices.size), 0, rows).astype(np.int32)
    nearest_on = _nearest_on(devices, k)
    found = []
    with jax.default_matmul_precision("float32"):  # else accelerators round features to 8 or 10 bits, which reorders neighbours
        for start in range(0, len(queries), size):
            batch = queries[start : start + size]
            padded = np.pad(batch, ((0, size - len(batch)), (0, 0)))  # one shape, so one compilation
            found.append([array[:, : len(batch)] for array in jax.device_get(nearest_on(banks, counts, padded))])
    indices, similarities = (np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True))
    return list(zip(indices + (rows * np.arange(devices.size, dtype=np.int32))[:, None, None], similarities, strict=True))


@functools.cache
def _nearest_on(devices: Mesh, k: int):
    """`_nearest` on each device, among its own rows of the bank: (indices, similarities), [devices, Q, k]."""
    rows, all_of_them = PartitionSpec("rows"), PartitionSpec()

    def nearest(bank, count, queries):
        return jax.tree.map(lambda found: found[None], _nearest(bank, count[0], queries, k))

    return jax.jit(jax.shard_map(nearest, mesh=devices, in_specs=(rows, rows, all_of_them), out_specs=rows, check_vma=False))


def checked_features(features, name: str) -> np.ndarray:
    """Returns `features` as float32 [N, D]; ValueError, naming them, where they are not finite, two-dimensional and some."""
    features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"{name} features must have shape [images, dimensions], none of them 0; got {list(features.shape)}")
    features = features.astype(np.float32, copy=False)
    bad = np.count_nonzero(~np.isfinite(features).all(axis=1))
    if bad:
        raise ValueError(f"{name} features of {bad} of {len(features)} images hold NaN or infinite values")
    return features


def checked_labels(labels, count: int, classes: int, name: str) -> np.ndarray:
    """Returns `labels` as int32 [count]; ValueError, naming them, where they are not whole numbers in 0 .. classes - 1."""
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise ValueError(f"{name} labels must have shape [{count}], one for each feature vector; got {list(labels.shape)}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} labels must be integers, got {labels.dtype}")
    if count and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"{name} labels run from {labels.min()} to {labels.max()}, outside 0 .. {classes - 1}")
    return labels.astype(np.int32)


def _nearest(bank, count, queries, k: int):
    """The k nearest of the first `count` of bank [N, D] for queries [Q, D], in pieces: (indices, similarities), [Q, k]."""
    rows, piece = len(bank), min(_BANK, len(bank))
    queries = _unit(queries)

    def merge(best, start):
        first = jnp.minimum(start, rows - piece)  # the last piece reaches back, so that all have one size
        index = first + jnp.arange(piece)[None]
        similarity = queries @ _unit(jax.lax.dynamic_slice_in_dim(bank, first, piece)).T
        similarity = jnp.where((index >= start) & (index < count), similarity, -jnp.inf)  # or else seen in the piece before
        # top_k keeps the order of equals, and what was found earlier comes first.
        similarity = jnp.concatenate([best[1], similarity], axis=1)
        index = jnp.concatenate([best[0], jnp.broadcast_to(index, (len(queries), piece))], axis=1)
        similarity, chosen = jax.lax.top_k(similarity, k)
        return (jnp.take_along_axis(index, chosen, axis=1), similarity), None

    none_yet = jnp.zeros((len(queries), k), jnp.int32), jnp.full((len(queries), k), -jnp.inf)
    return jax.lax.scan(merge, none_yet, jnp.arange(0, rows, piece))[0]


@functools.partial(jax.jit, static_argnames="classes")
def _vote(labels, similarities, temperature, *, classes: int):
    """Adds up the neighbours' weights by class: labels, similarities [Q, k] -> int32 [Q]."""
    weights = jnp.exp((similarities - similarities.max(axis=1, keepdims=True)) / temperature)  # relative: cannot overflow
    votes = jnp.einsum("qk,qkc->qc", weights, jax.nn.one_hot(labels, classes), precision="highest")
    return jnp.argmax(votes, axis=1).astype(jnp.int32)


def _unit(features):
    """Scales rows [N, D] to length 1; rows of zeros stay zero."""
    # Dividing by the largest entry first keeps the squares of very large and very small features in range.
    features = features / jnp.maximum(jnp.abs(features).max(axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), 0.5)
