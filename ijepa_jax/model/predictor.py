"""The predictor: a narrow ViT that guesses, from context tokens, what the target encoder sees in each target block."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.model.layers import Dense, LayerNorm, along_last
from ijepa_jax.model.shapes import Array, Float, Int
from ijepa_jax.model.vit import Blocks, position_table, take_tokens

# What a context token attends to: the context and the mask tokens of one target block, as in the paper, so that it is computed
# for every target block anew; or the context alone, so that it is computed once for all of them.
CONTEXTS = ("joint", "alone")


class Predictor(nn.Module):
    """Narrow ViT with one learned mask token (paper, section 3 and appendix A). Its heads are the encoder's."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    positions: str = "sincos"  # or table, see ViT
    context_mode: str = "joint"  # a name of CONTEXTS
    automatic: bool = False  # whether gradients are JAX's, see layers.py
    outputs: int | None = None  # values of a prediction; None: as many as an encoded token has

    @nn.compact
    def __call__(
        self,
        context: Float[Array, "b c k d"],
        context_index: Int[Array, "b c k"],
        target_index: Int[Array, "b m t"],
        grid: tuple[int, ...],
        context_length: Int[Array, "b c"] | None = None,
        target_length: Int[Array, "b m"] | None = None,
    ) -> Float[Array, "b m c t o"]:
        """Predicts every target block from every context block, each pair by itself.

        Args:
            context: [B, C, K, D] context encoder's output.
            context_index: int [B, C, K] patch indices of the context tokens.
            target_index: int [B, M, T] patch indices to predict.
            grid: patches along each axis of the grid that the indices refer to.
            context_length: int [B, C] valid context tokens, all where None.
            target_length: int [B, M] valid target tokens, all where None.

        Returns:
            [B, M, C, T, `outputs`] predictions; those past `target_length` mean nothing.
        """
        if self.context_mode not in CONTEXTS:
            raise ValueError(f"predictor.context {self.context_mode!r} must be one of {', '.join(CONTEXTS)}")
        positions = jnp.asarray(position_table(self, self.positions, self.width, grid), self.dtype)
        width = context.shape[-1]
        context = Dense(self.width, self.dtype, automatic=self.automatic, name="embed")(context) + positions[context_index]
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.width,))
        # added in float32, so that its gradient, a sum over all target tokens of the batch, is summed in float32 too
        places = positions[target_index]
        queries = (along_last(mask_token, places) + places).astype(self.dtype)
        stack = Blocks(
            self.depth,
            self.heads,
            self.mlp_ratio,
            self.epsilon,
            self.dtype,
            self.attention,
            self.scan,
            self.remat,
            automatic=self.automatic,
            name="blocks",
        )
        lengths = (context_length, target_length)
        tokens_bmct = (_together if self.context_mode == "joint" else _context_alone)(stack, context, queries, *lengths)
        tokens_bmct = LayerNorm(self.epsilon, self.dtype, self.automatic, name="norm")(tokens_bmct)
        outputs = self.outputs or width
        return Dense(outputs, self.dtype, automatic=self.automatic, name="proj")(tokens_bmct)


def _together(stack: Blocks, context: jax.Array, queries: jax.Array, context_length, target_length) -> jax.Array:
    """Every pair of a context [B, C, K, D] and a target block's mask tokens [B, M, T, D] by itself: [B, M, C, T, D]."""
    (b, c, k, width), (m, t) = context.shape, queries.shape[1:3]
    pair = (b, m, c)
    tokens = jnp.concatenate(
        [
            jnp.broadcast_to(context[:, None], (*pair, k, width)),
            jnp.broadcast_to(queries[:, :, None], (*pair, t, width)),
        ],
        axis=3,
    ).reshape(b * m * c, k + t, width)
    order, lengths = _padding_last(pair, k, t, context_length, target_length)
    if order is None:
        tokens = stack(tokens, lengths, select=lambda x: x[:, -t:])[-1]  # nobody reads what becomes of context tokens
    else:
        tokens = take_tokens(stack(take_tokens(tokens, order), lengths)[-1], jnp.argsort(order, axis=1)[:, k:])
    return tokens.reshape(*pair, t, width)


def _context_alone(stack: Blocks, context: jax.Array, queries: jax.Array, context_length, target_length) -> jax.Array:
    """The same in one sequence for each context, whose tokens see each other only; mask tokens see them and their own block."""
    (b, c, k, width), (m, t) = context.shape, queries.shape[1:3]
    queries = jnp.broadcast_to(queries.reshape(b, 1, m * t, width), (b, c, m * t, width))
    tokens = jnp.concatenate([context, queries], axis=2).reshape(b * c, k + m * t, width)
    block = np.concatenate([np.full(k, -1), np.repeat(np.arange(m), t)])  # -1: the context
    visible = jnp.asarray((block == -1) | (block[:, None] == block), jnp.float32)[None]
    if target_length is not None or context_length is not None:
        contexts = jnp.full((b, c), k) if context_length is None else context_length
        targets = jnp.full((b, m), t) if target_length is None else target_length
        valid_k = jnp.arange(k)[None, None] < contexts[..., None]
        valid_t = jnp.broadcast_to((jnp.arange(t)[None, None] < targets[..., None]).reshape(b, 1, m * t), (b, c, m * t))
        valid = jnp.concatenate([valid_k, valid_t], axis=2).reshape(b * c, 1, k + m * t)
        visible = visible * valid
    tokens = stack(tokens, visible=visible, select=lambda x: x[:, k:])[-1]
    return tokens.reshape(b, c, m, t, width).swapaxes(1, 2)


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
    place = jnp.arange(k + t)[None]
    padded = jnp.where(place < k, place >= contexts[:, None], place - k >= targets[:, None])
    return jnp.argsort(padded, axis=1, stable=True), contexts + targets
