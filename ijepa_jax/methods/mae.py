"""Masked autoencoders (He et al., CVPR 2022): a decoder gives back the pixels of patches that the encoder did not see."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.methods.contract import Batch, Method, nothing
from ijepa_jax.methods.masks import MaskSampler
from ijepa_jax.methods.optim import Optimizer, make_optimizer
from ijepa_jax.methods.pixels import filled_in, pixel_goals, places
from ijepa_jax.model import flops
from ijepa_jax.model.encoder import Encoder
from ijepa_jax.model.layers import INITIAL_STD, Dense, LayerNorm, along_last
from ijepa_jax.model.shapes import Array, Float, Int
from ijepa_jax.model.vit import Blocks, ViT, from_settings, normalise, position_table, take_tokens
from ijepa_jax.settings.axes import modality, patch_grid
from ijepa_jax.settings.ranges import check_heads, flag, number, whole

SETTINGS = {
    "mae": {
        "mask_ratio": number(0.75, 0, 1, "()", fixed=True),  # share of the patches that is hidden; the number kept rounds down
        "class_token": flag(True, fixed=True),
        "normalised": flag(True, fixed=True),  # whether pixels are those of a patch less its mean, over its deviation
        "decoder_width": whole(512, 4, 65_536, fixed=True),
        "decoder_depth": whole(8, 1, 1000, fixed=True),
        "decoder_heads": whole(16, 1, 4096, fixed=True),
    },
}


class Decoder(nn.Module):
    """Pixels of all patches from the encoded tokens of some: mask tokens stand for the others, all in raster order."""

    width: int
    depth: int
    heads: int
    values: int  # of a patch
    mlp_ratio: float = 4.0
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    positions: str = "sincos"  # or table, see ViT
    automatic: bool = False
    class_token: bool = False

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b s d"], seen: Int[Array, "b k"], hidden: Int[Array, "b h"], grid: tuple[int, ...]
    ) -> Float[Array, "b n v"]:
        """Pixels [B, N, values] of all N patches of a grid, from the encoder's outputs at `seen`, after a class token's."""
        dense, first = partial(Dense, dtype=self.dtype, automatic=self.automatic), int(self.class_token)
        x_bsd = dense(self.width, name="embed")(tokens)
        mask = self.param("mask_token", nn.initializers.normal(INITIAL_STD), (self.width,)).astype(self.dtype)
        masks = jnp.broadcast_to(mask, (*hidden.shape, self.width))
        in_raster_order = jnp.argsort(jnp.concatenate([seen, hidden], axis=1), axis=1)
        patches = take_tokens(jnp.concatenate([x_bsd[:, first:], masks], axis=1), in_raster_order)
        patches += position_table(self, self.positions, self.width, grid).astype(self.dtype)[None]
        tokens = x_bsd[:, :first]
        if self.class_token and self.positions == "table":
            position = jax.lax.stop_gradient(self.param("class_position", nn.initializers.zeros, (self.width,)))
            tokens += along_last(position, tokens).astype(self.dtype)
        stack = Blocks(
            self.depth, self.heads, self.mlp_ratio, self.epsilon, self.dtype, self.attention, self.scan, self.remat,
            automatic=self.automatic, name="blocks",
        )  # fmt: skip
        x_bnd = stack(jnp.concatenate([tokens, patches], axis=1))[-1]
        x_bnd = LayerNorm(self.epsilon, self.dtype, self.automatic, name="norm")(x_bnd)
        return dense(self.values, name="proj")(x_bnd)[:, first:]


@dataclasses.dataclass(frozen=True)
class Mae(Method):
    """The method. There is no target: what is used is the encoder that is trained, shown all patches.

    A batch holds `image` [B, H, W, C] (or video, signal), `context` int32 [B, 1, K], the patches that are seen, in any order,
    and `target` int32 [B, 1, N - K], those that are hidden.
    """

    title = "MAE"
    about = "a masked autoencoder (He et al., CVPR 2022, arXiv 2111.06377)"
    additive = True

    network: ViT
    decoder: Decoder
    masks: MaskSampler | None  # None: not to be trained
    image_size: tuple[int, ...]
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    normalised: bool = True

    @classmethod
    def settings(cls) -> dict[str, Mapping[str, Any]]:
        """Masks, targets and decoder, and what a class of one's own adds."""
        return {**SETTINGS, **super().settings()}

    @classmethod
    def from_settings(cls, config: Any) -> Self:
        """The method with its networks. Raises ValueError, naming the setting, where they do not fit."""
        section, data = config.mae, config.data
        check_heads("mae.decoder_", section.decoder_width, section.decoder_heads, len(data.image_size))
        if config.model.init != "normal":
            raise ValueError(
                f"model.init {config.model.init!r}: MAE's weights are drawn as its authors draw them: give 'normal'"
            )
        network = dataclasses.replace(from_settings(config.model), class_token=section.class_token)
        encoder = Encoder(network, tuple(data.image_size), data.channels, tuple(data.mean), tuple(data.std))
        alike = ("epsilon", "dtype", "attention", "scan", "remat", "positions", "automatic", "class_token")
        decoder = Decoder(
            section.decoder_width, section.decoder_depth, section.decoder_heads, encoder.patch_values,
            **{name: getattr(network, name) for name in alike},
        )  # fmt: skip
        masks = None if section.mask_ratio is None else masks_of(encoder.grid, section.mask_ratio, config.seed)
        return cls(
            network, decoder, masks, encoder.image_size, encoder.channels, encoder.mean, encoder.std, section.normalised,
            **cls.custom(config),
        )  # fmt: skip

    @classmethod
    def from_checkpoint(cls, config: Any) -> Self:
        """Likewise, to use what was trained; without masks where the share that is hidden leaves none of a small grid."""
        config = config.copy_and_resolve_references()
        config.model.drop_path, config.model.init = 0.0, "normal"
        try:
            return cls.from_settings(config)
        except ValueError:
            with config.unlocked(), config.ignore_type():
                config.mae.mask_ratio = None
            return cls.from_settings(config)

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return patch_grid(self.image_size, self.network.patch)

    def prepare(self) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """The host-side maker of masks from global example indices."""
        return self.masks or nothing

    def init(self, key: jax.Array) -> dict[str, dict]:
        """Fresh float32 parameters: {"encoder": tree, "decoder": tree}.

        As released: weights Xavier uniform, the three of queries, keys and values as one matrix; tokens normal with a standard
        deviation of 0.02; biases zero, but for the patch embedding's, which is as a convolution has it by default in PyTorch.
        """
        encoder_key, decoder_key, weights_key = jax.random.split(key, 3)
        tokens = jnp.zeros((1, 1 + self.network.class_token, self.network.width))
        grid = self.grid
        seen, hidden = jnp.zeros((1, 1), jnp.int32), jnp.arange(1, math.prod(grid))[None]
        params = {
            "encoder": self.backbone().init(encoder_key),
            "decoder": self.decoder.init(decoder_key, tokens, seen, hidden, grid)["params"],
        }
        return _xavier(weights_key, params)

    def loss(self, params: dict[str, dict], target: None, batch: Batch, key: jax.Array):
        """The mean squared error of hidden patches' pixels, and metrics."""
        images = normalise(batch[modality(self.image_size)], self.mean, self.std)
        hidden = batch["target"][:, 0]
        predicted = self.predict(params, images, batch, key)
        goal = take_tokens(self.goals(images), hidden)
        loss = jnp.square(take_tokens(predicted, hidden) - goal).mean()
        return loss, {"prediction_std": jax.lax.stop_gradient(predicted.std(axis=(0, 1)).mean())}

    def goals(self, images: Float[Array, "b *sizes c"]) -> Float[Array, "b n v"]:
        """The pixels of every patch, [B, N, values], as predictions are to be; of normalised images."""
        return pixel_goals(images, self.network.patch, self.normalised)

    def predict(
        self, params: dict[str, dict], images: Float[Array, "b *sizes c"], batch: Batch, key: jax.Array
    ) -> Float[Array, "b n v"]:
        """The pixels of all patches, float32 [B, N, values], from those that are seen."""
        seen, hidden = batch["context"][:, 0], batch["target"][:, 0]
        tokens = self.network.apply(
            {"params": params["encoder"]}, images, seen, train=True, with_class=True, rngs={"drop_path": key}
        )
        return self.decoder.apply({"params": params["decoder"]}, tokens, seen, hidden, self.grid).astype(jnp.float32)

    def reconstruct(self, params: dict[str, dict], batch: Batch) -> jax.Array:
        """The examples with hidden patches as they are guessed, see `filled_in`."""
        images = normalise(batch[modality(self.image_size)], self.mean, self.std)
        still = dataclasses.replace(self, network=dataclasses.replace(self.network, drop_path=0.0))
        guesses = still.predict(params, images, batch, jax.random.key(0))
        hidden = places(batch["target"][:, 0], guesses.shape[1])
        return filled_in(images, guesses, hidden, ~hidden, self.network.patch, self.normalised)

    def optimiser(self, **settings: Any) -> Optimizer:
        """AdamW, its learning rate's schedule counted from 0: by the first step of a warm-up from 0 nothing changes."""
        return make_optimizer(**settings, first=0)

    def backbone(self) -> Encoder:
        """The encoder, with the images it was trained on."""
        return Encoder(self.network, self.image_size, self.channels, self.mean, self.std)

    def flops(self) -> dict[str, int]:
        """Of encoder and decoder for an image and step: matrix products alone, see flops.step_flops."""
        seen, patches, first = self.masks.context_length, math.prod(self.grid), int(self.network.class_token)
        values, width, inner = self.decoder.values, self.network.width, self.decoder.width
        tokens = 2 * ((seen + first) * width * inner + (patches + first) * inner * values)
        return {
            "encoder": 2 * 2 * seen * values * width + 3 * flops.of_blocks(self.network, seen + first),
            "decoder": 3 * (tokens + flops.of_blocks(self.decoder, patches + first)),
        }


def masks_of(grid: tuple[int, ...], mask_ratio: float, seed: int) -> MaskSampler:
    """The sampler of seen and hidden patches. Raises ValueError for a share that leaves nothing to see."""
    patches = math.prod(grid)
    if not int(patches * (1 - mask_ratio)):
        most = next(share / 1000 for share in range(999, -1, -1) if int(patches * (1 - share / 1000)))
        advice = f"give {most:g} or less" if most else "there must be more patches"
        raise ValueError(f"mae.mask_ratio {mask_ratio:g} leaves none of {patches} patches to be seen: {advice}")
    return MaskSampler(grid, strategy="random", mask_ratio=mask_ratio, keep_rounds_down=True, seed=seed)


def _xavier(key: jax.Array, params: dict) -> dict:
    """Fresh parameters with linear layers' weights, and the patch embedding's bias, drawn as MAE's are."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    keys = dict(zip((jax.tree_util.keystr(path) for path, _ in leaves), jax.random.split(key, len(leaves)), strict=True))

    def drawn(path, leaf):
        names = [entry.key for entry in path]
        if names[-1] == "kernel":
            limit = math.sqrt(6 / sum(leaf.shape[-2:]))
        elif names[-2:] == ["patch_embed", "bias"]:
            limit = 1 / math.sqrt(params["encoder"]["patch_embed"]["kernel"].shape[0])
        else:
            return leaf
        return jax.random.uniform(keys[jax.tree_util.keystr(path)], leaf.shape, leaf.dtype, -limit, limit)

    return jax.tree_util.tree_map_with_path(drawn, params)
