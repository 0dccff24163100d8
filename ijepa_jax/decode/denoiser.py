"""The network of the diffusion decoder: a ViT that tells a block's clean patches from noisy ones, given a representation."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ijepa_jax.model import positions
from ijepa_jax.model.layers import Dense, LayerNorm, gelu
from ijepa_jax.model.vit import Blocks

_FREQUENCIES = 64  # that a time is shown in


class Denoiser(nn.Module):
    """Guesses the clean pixels of a block of patches. Of the rest of the image it sees nothing.

    What it is given besides noisy pixels and their places, a time and a representation, is added to every patch.
    """

    width: int
    depth: int
    heads: int
    dtype: jnp.dtype = jnp.float32
    automatic: bool = False  # whether gradients are JAX's, see layers.py

    @nn.compact
    def __call__(
        self,
        noisy: jax.Array,
        index: jax.Array,
        lengths: jax.Array,
        times: jax.Array,
        condition: jax.Array,
        grid: tuple[int, int],
    ) -> jax.Array:
        """The clean patches of n blocks.

        Args:
            noisy: [n, T, P], the P pixel values of each patch.
            index: int [n, T], where the patches lie on `grid` (rows, columns).
            lengths: int [n], how many of the T are valid; the rest pads the tail.
            times: [n], 0 (clean) to 1 (noise).
            condition: [n, D], what is known of each block.

        Returns:
            float32 [n, T, P]; patches past `lengths` mean nothing.
        """
        table = jnp.asarray(positions.sincos(self.width, grid), self.dtype)
        told = self._embedded("time", _waves(times)) + self._embedded("condition", condition)
        tokens = self._dense(self.width, "patch_embed")(noisy) + table[index] + told[:, None]
        stack = Blocks(self.depth, self.heads, 4.0, dtype=self.dtype, automatic=self.automatic, name="blocks")
        tokens = stack(tokens, lengths)[-1]
        tokens = LayerNorm(1e-6, self.dtype, self.automatic, name="norm")(tokens)
        return self._dense(noisy.shape[-1], "proj")(tokens).astype(jnp.float32)

    def _embedded(self, name: str, x: jax.Array) -> jax.Array:
        """Two linear layers, [n, F] -> [n, width]."""
        return self._dense(self.width, f"{name}_out")(gelu(self._dense(self.width, f"{name}_in")(x)))

    def _dense(self, width: int, name: str) -> Dense:
        return Dense(width, self.dtype, automatic=self.automatic, name=name)


def _waves(times: jax.Array) -> jax.Array:
    """Times [n] as sines and cosines [n, 2 * _FREQUENCIES], of wavelengths from 1/160 to 54, in equal ratios."""
    frequencies = 10000.0 ** (-jnp.arange(_FREQUENCIES) / _FREQUENCIES)
    angles = times[:, None] * 1000.0 * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
