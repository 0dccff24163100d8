"""Pixels as targets: of patches, normalised or not; and I-JEPA with these in place of representations (paper, table 7)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ijepa_jax.methods import ijepa
from ijepa_jax.methods.contract import Batch, Method
from ijepa_jax.model.shapes import Array, Bool, Float, Int
from ijepa_jax.model.vit import normalise, patchify, unpatchify
from ijepa_jax.settings.axes import modality
from ijepa_jax.settings.ranges import flag

EPSILON = 1e-6  # beside a patch's variance


@dataclasses.dataclass(frozen=True)
class Pixels(ijepa.IJepa):
    """I-JEPA's masks, context encoder, predictor and loss; what is predicted are the pixels of target blocks.

    There is no target encoder: what is used is the encoder that is trained. The paper does not say whether pixels were
    normalised patch by patch, nor which loss they had.
    """

    title = "pixel prediction"
    about = "I-JEPA's prediction of masked blocks, of pixels instead of representations (Assran et al., CVPR 2023, table 7)"
    additive = True

    normalised: bool = True  # whether pixels are those of a patch less its mean, over its deviation

    def __post_init__(self):
        super().__post_init__()
        predictor = dataclasses.replace(self.predictor, outputs=self.backbone().patch_values)
        object.__setattr__(self, "predictor", predictor)

    @classmethod
    def settings(cls) -> dict[str, Mapping[str, Any]]:
        """Predictor, masks and pixels, and what a class of one's own adds."""
        own = {name: ijepa.SETTINGS[name] for name in ("predictor", "masks")}
        return {**own, "pixels": {"normalised": flag(True, fixed=True)}, **Method.settings.__func__(cls)}

    @classmethod
    def targets(cls, config: Any) -> dict[str, Any]:
        """The fields that say what is predicted, of a run's settings."""
        return {"normalised": config.pixels.normalised}

    @property
    def target_network(self) -> None:
        """There is none."""
        return None

    def target(self, params: dict[str, dict]) -> None:
        """Nothing follows the encoder."""
        return None

    def encode_target(
        self, target: None, images: Float[Array, "b *sizes c"], wanted: Int[Array, "b q"] | None = None
    ) -> Float[Array, "b n v"]:
        """The pixels of all patches, see `pixel_goals`."""
        return pixel_goals(images, self.network.patch, self.normalised)

    def reconstruct(self, params: dict[str, dict], batch: Batch) -> jax.Array:
        """The examples with target blocks as they are guessed, on average where blocks overlap, see `filled_in`."""
        images = normalise(batch[modality(self.image_size)], self.mean, self.std)
        still = dataclasses.replace(self, network=dataclasses.replace(self.network, drop_path=0.0))
        context = still.encode_context(params["encoder"], images, batch, jax.random.key(0))
        guess_bmtv = still.predict(params["predictor"], context, batch).mean(axis=2)
        b, m, t, values = guess_bmtv.shape
        count = patchify(images, self.network.patch).shape[1]
        valid = (jnp.arange(t)[None, None] < batch["target_length"][..., None]).reshape(b, m * t, 1)
        add = jax.vmap(lambda index, values: jnp.zeros((count, values.shape[-1])).at[index].add(values))
        index = batch["target"].reshape(b, m * t)
        total, times = add(index, valid * guess_bmtv.reshape(b, m * t, values)), add(index, valid.astype(jnp.float32))
        lengths = batch["context_length"][:, 0] if "context_length" in batch else None
        seen = places(batch["context"][:, 0], count, lengths)
        guesses, guessed = total / jnp.maximum(times, 1), times[..., 0] > 0
        return filled_in(images, guesses, guessed, seen, self.network.patch, self.normalised)


def pixel_goals(images: Float[Array, "b *sizes c"], patch: int | tuple[int, ...], normalised: bool) -> Float[Array, "b n v"]:
    """The pixels of every patch, [B, N, values]; `normalised`: less their mean, over their (unbiased) deviation."""
    pixels = patchify(images, patch)
    if not normalised:
        return pixels
    mean, deviation = _moments(pixels)
    centred = pixels - mean
    return (centred - centred.mean(-1, keepdims=True)) / deviation  # of a patch of one colour exactly 0, as rounding is not


def filled_in(
    images: Float[Array, "b *sizes c"],
    guesses: Float[Array, "b n v"],
    guessed: Bool[Array, "b n"],
    seen: Bool[Array, "b n"],
    patch: int | tuple[int, ...],
    normalised: bool,
) -> Float[Array, "b *sizes c"]:
    """Examples with guesses where there are any, 0 where nothing is seen either; guesses of normalised pixels get the mean and
    the deviation that their patch has, as they tell neither."""
    pixels = patchify(images, patch)
    if normalised:
        mean, deviation = _moments(pixels)
        guesses = guesses * deviation + mean
    shown = jnp.where(guessed[..., None], guesses, jnp.where(seen[..., None], pixels, 0))
    return unpatchify(shown, patch, images.shape[1:-1])


def places(index: Int[Array, "b k"], count: int, lengths: Int[Array, " b"] | None = None) -> Bool[Array, "b n"]:
    """Which of `count` patches are among those of an index; of padded ones the first `lengths` of each."""
    valid = jnp.ones(index.shape, bool) if lengths is None else jnp.arange(index.shape[1])[None] < lengths[:, None]
    return jax.vmap(lambda where, there: jnp.zeros(count, bool).at[where].max(there))(index, valid)


def _moments(pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation of each patch's values, [B, N, 1]."""
    return pixels.mean(-1, keepdims=True), jnp.sqrt(pixels.var(-1, keepdims=True, ddof=1) + EPSILON)
