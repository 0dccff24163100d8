"""How well the predictor of a checkpoint predicts: cosines of its output with the target encoder's, beside what chance gives.

A raw cosine can be high for no merit: tokens of all images share a mean, and those at one position share more. So it is also
taken after the mean target at the same position is subtracted from both, and with the target of another image.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ijepa_jax.data.views import examples
from ijepa_jax.devices.sharding import place_batch, place_rows, replicated
from ijepa_jax.methods import Arrays, Batch, Method
from ijepa_jax.model.vit import normalise
from ijepa_jax.settings.axes import AXES, modality

MEASURES = ("cosine", "centred", "other", "other_centred", "position_mean")
_IMAGES = 32  # at a time


@runtime_checkable
class Predicting(Protocol):
    """A method that predicts blocks of tokens from contexts, as I-JEPA does, whatever the tokens are; see methods/ijepa.py."""

    def encode_target(self, target: Any, images: jax.Array) -> jax.Array:
        """All tokens that there are to predict: [B, N, D]."""

    def gather_targets(self, encoded: jax.Array, index: jax.Array) -> jax.Array:
        """Those of target blocks [B, M, T]: [B, M, T, D]."""

    def encode_context(self, encoder: Any, images: jax.Array, batch: Batch, key: jax.Array) -> jax.Array:
        """What is predicted from: [B, C, K, E]."""

    def predict(self, predictor: Any, context: jax.Array, batch: Batch) -> jax.Array:
        """Predictions of every target block from every context block: [B, M, C, T, D]."""


def position_means(
    method: Predicting, target: Any, batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
) -> tuple[np.ndarray, Any]:
    """The mean at each position of what predictions are compared with, over evaluation batches: float32 [N, D].

    Also, of a method that whitens its targets, the whitening of the first batch, which these means and `measure` have in place
    of each training batch's own; else None. With several processes all must call this, each with its rows of the batches.
    """

    @partial(jax.jit, out_shardings=replicated(mesh))
    def summed(target, batch, whitening):
        encoded = method.encode_target(target, normalise(examples(batch), method.mean, method.std))
        if whitening is None and hasattr(method, "whitening"):
            whitening = method.whitening(encoded, batch["valid"])
        goals = _goals(method, encoded, whitening)
        return jnp.where(batch["valid"][:, None, None], goals, 0).sum(axis=0), batch["valid"].sum(), whitening

    total, count, whitening = 0.0, 0, None
    for batch in batches:
        placed = place_batch({name: batch[name] for name in batch.keys() & {*AXES, "valid"}}, mesh)
        *found, whitening = summed(target, placed, whitening)
        part, images = jax.device_get(found)
        total, count = total + part.astype(np.float64), count + int(images)
    return np.asarray(total / count, np.float32), jax.device_get(whitening)


def _goals(method: Predicting, encoded: jax.Array, whitening: Any) -> jax.Array:
    return encoded if whitening is None else method.goals(encoded, whitening)


def measure(
    method: Predicting,
    params: Any,
    target: Any,
    means: np.ndarray,
    images: np.ndarray,
    masks: Arrays,
    mesh: Mesh,
    whitening: Any = None,
) -> dict[str, np.ndarray]:
    """Cosines of every target token's prediction: float32 [n, M, T] each, averaged over contexts; padding's mean nothing.

    - `cosine`: with its target; `centred`: likewise, with the position's mean taken off both;
    - `other`, `other_centred`: with the next image's target at the same position;
    - `position_mean`: of the position's mean itself with the target, which takes no prediction.

    Args:
      method: the objective; nothing is dropped at random.
      params: {"encoder": tree, "predictor": tree}, the context encoder's and the predictor's.
      target: the target encoder's parameters.
      means: float32 [N, D], from `position_means`, and from there `whitening`.
      images: uint8 [n, H, W, C] (or videos, signals), all of them in every process.
      masks: of these images, as `MaskSampler` gives them.
      mesh: devices, among which images are divided.
    """
    return _in_batches(partial(_cosines, method), (params, target, means, whitening), images, masks, mesh)


def reconstructions(method: Method, params: Any, images: np.ndarray, masks: Arrays, mesh: Mesh) -> np.ndarray | None:
    """Examples (see `measure`, as are the masks) as a method fills in what it does not see; None where it guesses no pixels."""
    if not guesses_pixels(method):
        return None
    found = _in_batches(method.reconstruct, (params,), images, masks, mesh)
    if images.dtype != np.uint8:
        return found
    pixels = found * np.asarray(method.std, np.float32) + np.asarray(method.mean, np.float32)
    return np.round(255 * pixels.clip(0, 1)).astype(np.uint8)


def guesses_pixels(method: Method) -> bool:
    """Whether there are reconstructions."""
    return type(method).reconstruct is not Method.reconstruct


def _in_batches(function: Callable[..., Any], given: tuple, images: np.ndarray, masks: Arrays, mesh: Mesh) -> Any:
    """What a function makes of `given` and each batch of images with masks, put together on the host of every process."""
    size = max(2, min(_IMAGES, len(images)))  # with one image alone there would be no other
    size = -(-size // mesh.size) * mesh.size
    compiled = jax.jit(function, out_shardings=replicated(mesh))
    parts = []
    for start in range(0, len(images), size):
        rows = (start + np.arange(size)) % len(images)  # the last batch is filled up from the beginning
        batch = {modality(images.shape[1:-1]): images[rows], **{name: values[rows] for name, values in masks.items()}}
        placed = {name: place_rows(values, mesh) for name, values in batch.items()}
        parts.append(jax.device_get(compiled(*given, placed)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(images)], *parts)


def check(method: Predicting, params: Any, target: Any, images: np.ndarray, masks: Arrays) -> None:
    """Raises what keeps a method's predictions from being compared with their targets; computes nothing."""
    batch = {modality(images.shape[1:-1]): images, **{name: values[: len(images)] for name, values in masks.items()}}
    tokens = jax.eval_shape(method.encode_target, target, jax.ShapeDtypeStruct(images.shape, jnp.float32))
    means = jax.ShapeDtypeStruct(tokens.shape[1:], jnp.float32)
    jax.eval_shape(partial(_cosines, method), params, target, means, None, batch)


def _cosines(method: Predicting, params: Any, target: Any, means: jax.Array, whitening: Any, batch: Batch) -> Batch:
    images = normalise(examples(batch), method.mean, method.std)
    encoded = _goals(method, method.encode_target(target, images), whitening)
    goal, other = (method.gather_targets(tokens, batch["target"])[:, :, None] for tokens in (encoded, jnp.roll(encoded, -1, 0)))
    usual = means[batch["target"]][:, :, None]
    context = method.encode_context(params["encoder"], images, batch, jax.random.key(0))
    prediction = method.predict(params["predictor"], context, batch)
    found = {
        "cosine": cosine(prediction, goal),
        "centred": cosine(prediction - usual, goal - usual),
        "other": cosine(prediction, other),
        "other_centred": cosine(prediction - usual, other - usual),
        "position_mean": cosine(usual, goal),
    }
    return {name: values.mean(axis=2) for name, values in found.items()}


def cosine(first: jax.Array, second: jax.Array) -> jax.Array:
    """Cosine of vectors [..., D]: [...]; 0 where one of them is zero."""
    lengths = jnp.linalg.norm(first, axis=-1) * jnp.linalg.norm(second, axis=-1)
    return jnp.where(lengths > 0, (first * second).sum(axis=-1) / jnp.where(lengths > 0, lengths, 1), 0)
