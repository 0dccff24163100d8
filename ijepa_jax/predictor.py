"""The predictor: a narrow ViT that guesses, from context tokens, what the target encoder sees in each target block."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ijepa_jax.layers import Dense, LayerNorm
from ijepa_jax.vit import Blocks, position_table, take_tokens


class Predictor(nn.Module):
    """Narrow ViT with one learned mask token (paper, section 3 and appendix A). Its heads are the encoder's."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    attention: str = "xla"
    scan: bool = False
    remat: str = "none"
    positions: str = "sincos"  # or table, see ViT

    @nn.compact
    def __call__(
        self,
        context: jax.Array,
        context_index: jax.Array,
        target_index: jax.Array,
        grid: tuple[int, int],
        context_length: jax.Array | None = None,
        target_length: jax.Array | None = None,
    ) -> jax.Array:
        """Predicts every target block from every context block, each pair by itself.

        Args:
            context: [B, C, K, D] context encoder's output.
            context_index: int [B, C, K] patch indices of the context tokens.
            target_index: int [B, M, T] patch indices to predict.
            grid: (rows, columns) of the patch grid that the indices refer to.
            context_length: int [B, C] valid context tokens, all where None.
            target_length: int [B, M] valid target tokens, all where None.

        Returns:
            [B, M, C, T, D] predictions; those past `target_length` mean nothing.
        """
        (b, c, k, d), (m, t) = context.shape, target_index.shape[1:]
        positions = jnp.asarray(position_table(self, self.positions, self.width, grid), self.dtype)
        context = Dense(self.width, self.dtype, name="embed")(context) + positions[context_index]
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.width,))
        # added in float32, so that its gradient, a sum over all target tokens of the batch, is summed in float32 too
        queries = (mask_token + positions[target_index]).astype(self.dtype)
        pair = (b, m, c)
        tokens = jnp.concatenate(
            [
                jnp.broadcast_to(context[:, None], (*pair, k, self.width)),
                jnp.broadcast_to(queries[:, :, None], (*pair, t, self.width)),
            ],
            axis=3,
        ).reshape(b * m * c, k + t, self.width)
        order, lengths = _padding_last(pair, k, t, context_length, target_length)
        tokens = tokens if order is None else take_tokens(tokens, order)
        stack = Blocks(
            self.depth,
            self.heads,
            self.mlp_ratio,
            self.epsilon,
            self.dtype,
            self.attention,
            self.scan,
            self.remat,
            name="blocks",
        )
        # What the last block makes of context tokens nobody reads.
        tokens = stack(tokens, lengths, tail=t if order is None else 0)[-1]
        tokens = tokens[:, -t:] if order is None else take_tokens(tokens, jnp.argsort(order, axis=1)[:, k:])
        tokens = LayerNorm(self.epsilon, self.dtype, name="norm")(tokens)
        return Dense(d, self.dtype, name="proj")(tokens).reshape(b, m, c, t, d)


def _padding_last(pair, k, t, context_length, target_length) -> tuple[jax.Array | None, jax.Array | None]:
    """The order that moves padding tokens to the tail of each sequence, and the number of valid ones there.

    Context padding lies in the middle of [context, target]; attention knows padding at the tail only. The order is
    None where no context token is padded: target padding is at the tail already.
    """
    if target_length is None and context_length is None:
        return None, None
    target_length = jnp.full(pair[:2], t) if target_length is None else target_length
    targets = jnp.broadcast_to(target_length[:, :, None], pair).reshape(-1)
    if context_length is None:
        return None, k + targets
    contexts = jnp.broadcast_to(context_length[:, None, :], pair).reshape(-1)
    place = jnp.arange(k + t)
    padded = jnp.where(place < k, place >= contexts[:, None], place - k >= targets[:, None])
    return jnp.argsort(padded, axis=1, stable=True), contexts + targets
