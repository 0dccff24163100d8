"""The Vision Transformer that I-JEPA trains: no class token, fixed sine-cosine positions, pre-norm blocks.

The same module is the context encoder (given `keep`, it sees only those patches) and the target encoder (it sees all).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from ijepa_jax.model import positions as tables
from ijepa_jax.model.attention import attend
from ijepa_jax.model.layers import INITIAL_STD, Dense, LayerNorm, along_last, gelu
from ijepa_jax.model.shapes import Array, Float, Int, Shaped
from ijepa_jax.settings.architectures import SIZES
from ijepa_jax.settings.axes import each_axis, patch_grid

# What the backward pass of a block finds kept of the forward pass, by the names of REMAT; keeping less takes less memory.
POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # linear layers' outputs; norms, GELU, attention again
    "full": jax.checkpoint_policies.nothing_saveable,  # the block's input
}


_PATCHES = {  # by the number of axes
    1: "b (c q) ch -> b c (q ch)",
    2: "b (r p) (c q) ch -> b (r c) (p q ch)",
    3: "b (t o) (r p) (c q) ch -> b (t r c) (o p q ch)",
}


def patchify(x: Shaped[Array, "b *sizes c"], patch: int | Sequence[int]) -> Shaped[Array, "b n d"]:
    """The values of each patch, of examples of one, two or three axes: [B, *sizes, C] -> [B, N, D], in raster order."""
    axes = x.ndim - 2
    return rearrange(x, _PATCHES[axes], **dict(zip("opq"[-axes:], each_axis(patch, axes), strict=True)))


def unpatchify(
    patches: Shaped[Array, "b n d"], patch: int | Sequence[int], sizes: Sequence[int]
) -> Shaped[Array, "b *sizes c"]:
    """The inverse of `patchify`: examples of these sizes, [B, N, D] -> [B, *sizes, C]."""
    axes = len(sizes)
    sides = each_axis(patch, axes)
    counts = (size // side for size, side in zip(sizes, sides, strict=True))
    to, of = _PATCHES[axes].split(" -> ")
    named = dict(zip("opq"[-axes:], sides, strict=True)) | dict(zip("trc"[-axes:], counts, strict=True))
    return rearrange(patches, f"{of} -> {to}", **named)


def normalise(images: Shaped[Array, "*b c"], mean: Sequence[float], std: Sequence[float]) -> Float[Array, "*b c"]:
    """[..., C] examples as float32: uint8 is scaled to 0..1 and normalised, float is taken as already normalised."""
    if images.dtype != jnp.uint8:
        return images.astype(jnp.float32)
    mean, std = (along_last(jnp.asarray(values, jnp.float32), images) for values in (mean, std))
    return (images.astype(jnp.float32) / 255 - mean) / std


def position_table(module: nn.Module, kind: str, width: int, grid: tuple[int, ...]) -> np.ndarray | jax.Array:
    """The position table [N, width] of a module: computed, or its parameter `positions`, which gets no gradient."""
    if kind == "sincos":
        return tables.sincos(width, grid)
    if kind != "table":
        raise ValueError(f"positions {kind!r} must be 'sincos' or 'table'")
    return jax.lax.stop_gradient(module.param("positions", lambda _: jnp.asarray(tables.sincos(width, grid))))


Select = Callable[[jax.Array], jax.Array]  # picks tokens: [B, S, ...] -> [B, Q, ...]


def take_tokens(x: Shaped[Array, "b n ..."], index: Int[Array, "b k"]) -> Shaped[Array, "b k ..."]:
    """Selects tokens: [B, N, ...], int [B, K] -> [B, K, ...]."""
    return jnp.take_along_axis(x, jnp.expand_dims(index, tuple(range(2, x.ndim))), axis=1)


def drop_path(x: jax.Array, rate: jax.Array | float, key: jax.Array) -> jax.Array:
    """Stochastic depth (Huang et al. 2016): drops the residual branch of whole examples, scaling the kept ones."""
    kept = 1 - jnp.asarray(rate, jnp.float32)
    keep = jax.random.bernoulli(key, kept, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / kept.astype(x.dtype), 0)


class Block(nn.Module):
    """Pre-norm transformer block: fused qkv with bias, exact (erf) GELU."""

    heads: int
    mlp_hidden: int
    epsilon: float
    dtype: jnp.dtype
    attention: str
    stochastic: bool  # whether drop path acts; it then needs a "drop_path" key
    float8: bool = False  # whether linear layers multiply in eight bits, see Dense
    automatic: bool = False  # whether gradients are JAX's, see layers.py
    select: Select | None = None  # picks the tokens that an output is wanted for; None: all

    @nn.compact
    def __call__(
        self, x_bsd: jax.Array, drop_rate: jax.Array, lengths: jax.Array | None, visible: jax.Array | None
    ) -> jax.Array:
        width, dense = x_bsd.shape[-1], partial(Dense, dtype=self.dtype, float8=self.float8, automatic=self.automatic)
        norm = partial(LayerNorm, self.epsilon, self.dtype, self.automatic)
        # Of three products TPUs need not take an output of tiles apart; float32 is summed as in the reference, of one.
        parts = 1 if self.dtype == jnp.float32 else 3
        y = dense(3 * width, parts=parts, name="qkv")(norm(name="norm1")(x_bsd))
        q, k, v = jnp.split(y, 3, axis=-1) if parts == 1 else y
        if self.select:
            q, x_bsd, visible = (None if x is None else self.select(x) for x in (q, x_bsd, visible))
        y = dense(width, name="proj")(attend(q, k, v, self.heads, lengths, self.attention, visible, self.automatic))
        x_bsd = x_bsd + self._drop(y, drop_rate)
        y = dense(self.mlp_hidden, name="fc1")(norm(name="norm2")(x_bsd))
        y = dense(width, name="fc2")(gelu(y))
        return x_bsd + self._drop(y, drop_rate)

    def _drop(self, y: jax.Array, rate: jax.Array) -> jax.Array:
        return drop_path(y, rate, self.make_rng("drop_path")) if self.stochastic else y


class Blocks(nn.Module):
    """A stack of blocks, unrolled (parameters `0`, `1`, ...) or scanned (one stacked tree, `scanned`)."""

    depth: int
    heads: int
    mlp_ratio: float
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"  # a name of REMAT
    drop_path: float = 0.0
    float8: bool = False
    automatic: bool = False

    @nn.compact
    def __call__(
        self,
        x_bsd: jax.Array,
        lengths: jax.Array | None = None,
        *,
        train: bool = False,
        select: Select | None = None,
        visible: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Every block's output [B, S, D], first to last; with `select`, which picks Q tokens, the last one's [B, Q, D].

        The last block then computes no others, unless the stack is scanned, whose blocks are all alike. `lengths` and
        `visible` are attention's (see `attend`).
        """
        width = x_bsd.shape[-1]
        if width % self.heads:
            raise ValueError(f"width {width} does not divide into {self.heads} heads")
        # prevent_cse is only needed outside scan, where XLA would otherwise undo the rematerialisation.
        block = Block if self.remat == "none" else nn.remat(Block, prevent_cse=not self.scan, policy=POLICIES[self.remat])
        block = partial(
            block,
            heads=self.heads,
            mlp_hidden=int(width * self.mlp_ratio),
            epsilon=self.epsilon,
            dtype=self.dtype,
            attention=self.attention,
            stochastic=train and self.drop_path > 0,
            float8=self.float8,
            automatic=self.automatic,
        )
        rates = jnp.linspace(0, self.drop_path, self.depth)
        if self.scan:
            *outputs, last = self._scanned(block, x_bsd, rates, lengths, visible)
            return [*outputs, select(last) if select else last]
        outputs = []
        for i in range(self.depth):
            chosen = select if i == self.depth - 1 else None
            x_bsd = block(name=str(i), select=chosen)(x_bsd, rates[i], lengths, visible)
            outputs.append(x_bsd)
        return outputs

    def _scanned(self, block, x_bsd, rates, lengths, visible):
        def body(module, x, rate):
            x = module(x, rate, lengths, visible)
            return x, x

        scan = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True, "drop_path": True}, length=self.depth)
        x_bsd, stacked = scan(block(name="scanned"), x_bsd, rates)
        return [*(stacked[i] for i in range(self.depth - 1)), x_bsd]  # earlier ones, if unused, are never kept


class ViT(nn.Module):
    """Vision Transformer; parameters are float32, compute is in `dtype`.

    With `class_token` a learned token comes first, as MAE has it, without a position, unless a table brings one
    (`class_position`). Outputs are those of patches alone, unless it is asked for too.

    Any size that divides into patches works, of one, two or three axes, square or not. Positions are sine-cosine tables
    computed for the grid at hand (`sincos`), or a table that is a parameter, `positions`, but never trained (`table`), as
    weights of other projects bring it. With `trained_grid` they are those of that grid, resized.
    """

    patch: int | tuple[int, ...]  # its side, or one for each axis
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"  # a name of REMAT
    drop_path: float = 0.0
    positions: str = "sincos"  # or table
    trained_grid: tuple[int, ...] | None = None
    interpolation: str = "bicubic"  # a name of positions.INTERPOLATIONS
    float8: bool = False  # whether the blocks' linear layers multiply in eight bits, see Dense
    automatic: bool = False  # whether gradients are JAX's, see layers.py
    class_token: bool = False

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b *sizes c"],
        keep: Int[Array, "b k"] | None = None,
        lengths: Int[Array, " b"] | None = None,
        *,
        wanted: Int[Array, "b q"] | None = None,
        train: bool = False,
        layers: bool = False,
        with_class: bool = False,
    ) -> Float[Array, "b n d"] | list[jax.Array]:
        """Encodes patches.

        Args:
            images: [B, H, W, C] float, normalised (see `normalise`); videos [B, T, H, W, C], signals [B, L, C].
            keep: int [B, K] patches to encode, all N in raster order where None. Positions are those of the full grid.
            lengths: int [B] how many of the K are valid (the rest pads the tail), all where None.
            wanted: int [B, Q] which of the encoded tokens an output is wanted of, all where None. The last block computes these
                only, from what all tokens tell them.
            train: whether drop path acts (needs the "drop_path" random stream).
            layers: whether to return every block's output (before the final norm) instead of the normed last one.
            with_class: whether the class token stands before the patches of an output.

        Returns:
            [B, K, N or Q, width], or with `layers` a list of `depth` such arrays followed by the final, normed one.
        """
        grid = patch_grid(images.shape[1:-1], self.patch)
        patches = patchify(images, self.patch)
        trained_grid = self.trained_grid or grid
        table = position_table(self, self.positions, self.width, trained_grid)
        positions = tables.resized(table, trained_grid, grid, self.interpolation).astype(self.dtype)
        if keep is None:
            positions = positions[None]
        else:
            # Embedding acts on each patch by itself, so selecting first gives the same numbers for less work.
            patches, positions = take_tokens(patches, keep), positions[keep]
        x_bnd = Dense(self.width, self.dtype, automatic=self.automatic, name="patch_embed")(patches) + positions
        if self.class_token:
            token = self.param("class_token", nn.initializers.normal(INITIAL_STD), (self.width,))
            if self.positions == "table":
                token += jax.lax.stop_gradient(self.param("class_position", nn.initializers.zeros, (self.width,)))
            token = token.astype(self.dtype)
            x_bnd = jnp.concatenate([jnp.broadcast_to(token, (len(x_bnd), 1, self.width)), x_bnd], axis=1)
            lengths = None if lengths is None else lengths + 1
            wanted = None if wanted is None else jnp.pad(wanted + 1, ((0, 0), (1, 0)))
        stack = Blocks(
            self.depth,
            self.heads,
            self.mlp_ratio,
            self.epsilon,
            self.dtype,
            self.attention,
            self.scan,
            self.remat,
            self.drop_path,
            self.float8,
            self.automatic,
            name="blocks",
        )
        select = None if wanted is None else partial(take_tokens, index=wanted)
        outputs = stack(x_bnd, lengths, train=train, select=select)
        outputs.append(LayerNorm(self.epsilon, self.dtype, self.automatic, name="norm")(outputs[-1]))
        if self.class_token and not with_class:
            outputs = [tokens[:, 1:] for tokens in outputs]
        return outputs if layers else outputs[-1]


def from_settings(model: Any) -> ViT:
    """The network that a configuration's section `model` describes."""
    size = SIZES[model.size]
    given = {name: getattr(model, name) for name in ("width", "depth", "heads", "mlp_ratio")}
    named = {name: getattr(size, name) if value is None else value for name, value in given.items()}
    same = ("patch", "epsilon", "attention", "scan", "remat", "drop_path", "positions", "interpolation")
    given = {name: getattr(model, name) for name in same}
    given["patch"] = tuple(model.patch) if isinstance(model.patch, (list, tuple)) else model.patch
    return ViT(**named, **given, dtype=jnp.dtype(model.dtype), automatic=model.gradients == "automatic")


def parameter_count(params) -> int:
    """Number of scalars in a parameter tree (arrays or shape structures)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
