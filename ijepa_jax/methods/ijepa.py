"""The I-JEPA objective (Assran et al., CVPR 2023, section 3): predict masked blocks in representation space."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ijepa_jax.methods.contract import Batch, Method, nothing
from ijepa_jax.methods.masks import MODES, STRATEGIES, MaskSampler
from ijepa_jax.model import flops
from ijepa_jax.model.encoder import Encoder
from ijepa_jax.model.layers import INITIAL_STD
from ijepa_jax.model.predictor import CONTEXTS, Predictor
from ijepa_jax.model.shapes import Array, Float, Int
from ijepa_jax.model.vit import ViT, from_settings, normalise, take_tokens
from ijepa_jax.settings.architectures import SIZES
from ijepa_jax.settings.axes import modality, patch_grid
from ijepa_jax.settings.ranges import check_heads, choice, flag, number, whole

TARGET_EPSILON = 1e-5  # of the parameter-free layer norm on the target encoder's output

# What the target encoder's last block computes outputs of: all patches; target patches, as often as they occur; the patches
# outside of the context, among which all targets are, so that a patch of several targets is computed once.
LAST_BLOCKS = ("all", "targets", "distinct")
Whitening = dict[str, Array]  # an affine map of tokens, see `whitened`: mean [D], matrix [D, D]
NORMS = ("layer", "whiten")  # of targets: the paper's; after it, whitened over the batch, see `whitening_of`

SETTINGS = {
    "predictor": {
        "width": whole(384, 4, 65_536, fixed=True),
        "depth": whole(None, 1, 1000, fixed=True),  # None: the named size's
        "heads": whole(None, 1, 4096, fixed=True),
        # alone: context tokens do not see mask tokens, and serve all targets
        "context": choice("joint", CONTEXTS, fixed=True),
    },
    "target": {
        "last_block": choice("all", LAST_BLOCKS),  # what the target encoder's last block computes; no use with scan
        "float8": flag(False, fixed=True),  # whether its linear layers multiply in eight bits
        # of its output: of each token, as in the paper; whiten: over the batch as well, for small data (docs/experiments.md)
        "norm": choice("layer", NORMS, fixed=True),
    },
    "masks": {
        "strategy": choice("multiblock", STRATEGIES, fixed=True),
        "mode": choice("subset", MODES, fixed=True),
        "context_patches": whole(48, 0, 65_536, fixed=True),
        "num_context_blocks": whole(1, 1, 64, fixed=True),
        "num_targets": whole(4, 1, 256, fixed=True),
        "target_scale": number((0.15, 0.2), 0, 1, "(]", length=2, rising=True, fixed=True),
        "target_aspect": number((0.75, 1.5), 0, 1000, "(]", length=2, rising=True, fixed=True),
        "target_duration": number((1.0, 1.0), 0, 1, "(]", length=2, rising=True, fixed=True),  # of videos: share of their steps
        "context_scale": number((0.85, 1.0), 0, 1, "(]", length=2, rising=True, fixed=True),
        "mask_ratio": number(0.6, 0, 1, "()", fixed=True),  # what the strategies random and block hide
        "keep_rounds_down": flag(False, fixed=True),  # of random: whether it is what is kept that is rounded, and down
        "tubes": flag(False, fixed=True),  # of random: whether all steps of a video hide the same patches
    },
}


@dataclasses.dataclass(frozen=True)
class IJepa(Method):
    """The method: what to learn (`init`), what the EMA follows (`target`), the objective (`loss`), the masks (`prepare`).

    A batch holds `image` [B, H, W, C] (uint8, or float already normalised; of videos `video` [B, T, H, W, C], of signals
    `signal` [B, L, C]), `context` int32 [B, C, K], `target` int32
    [B, M, T], `target_length` int32 [B, M] and, only where contexts are padded, `context_length` int32 [B, C].
    """

    title = "I-JEPA"
    about = "an Image-based Joint-Embedding Predictive Architecture (Assran et al., CVPR 2023, arXiv 2301.08243)"

    network: ViT  # of the context encoder and of the target encoder
    predictor: Predictor
    masks: MaskSampler | None  # None: not to be trained
    image_size: tuple[int, ...]  # one for each axis, as `Encoder` has it
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    init_scheme: str = "normal"
    target_last_block: str = "all"  # a name of LAST_BLOCKS
    target_float8: bool = False  # whether the target encoder's linear layers multiply in eight bits, see Dense
    target_norm: str = "layer"  # a name of NORMS

    def __post_init__(self):
        if self.target_last_block not in LAST_BLOCKS:
            raise ValueError(f"target.last_block {self.target_last_block!r} must be one of {', '.join(LAST_BLOCKS)}")
        masks = self.masks
        apart = masks is None or (masks.num_context_blocks == 1 and masks.mode in ("subset", "raster"))
        if self.target_last_block == "distinct" and not apart:
            raise ValueError(
                "target.last_block 'distinct' needs masks.num_context_blocks 1 and masks.mode 'subset' or 'raster'"
            )
        if self.target_norm not in NORMS:
            raise ValueError(f"target.norm {self.target_norm!r} must be one of {', '.join(NORMS)}")
        if self.target_norm == "whiten" and self.target_last_block != "all":
            raise ValueError(f"target.norm 'whiten' takes all tokens: target.last_block 'all', not {self.target_last_block!r}")
        if self.init_scheme not in ("normal", "fan_in"):
            raise ValueError(f"init_scheme {self.init_scheme!r} must be 'normal' or 'fan_in'")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean {self.mean} and std {self.std} must have one value for each of {self.channels} channels")

    @classmethod
    def settings(cls) -> dict[str, Mapping[str, Any]]:
        """Predictor, target encoder and masks, and what a class of one's own adds."""
        return {**SETTINGS, **super().settings()}

    @classmethod
    def from_settings(cls, config: Any) -> Self:
        """The method with its networks and mask sampler. Raises ValueError, naming the setting, where they do not fit."""
        network, data = from_settings(config.model), config.data
        check_heads("predictor.", config.predictor.width, config.predictor.heads or network.heads, len(data.image_size))
        if network.attention == "cudnn" and config.predictor.context == "alone":
            raise ValueError("predictor.context 'alone' needs model.attention 'xla': cudnn leaves out padding at the tail only")
        return cls(
            network,
            predictor_of(config),
            masks_of(config),
            tuple(data.image_size),
            data.channels,
            tuple(data.mean),
            tuple(data.std),
            config.model.init,
            **cls.targets(config),
            **cls.custom(config),
        )

    @classmethod
    def targets(cls, config: Any) -> dict[str, Any]:
        """The fields that say what is predicted, of a run's settings."""
        section = config.target
        if section.norm == "whiten" and config.optim.accumulation > 1:
            parts = f"which optim.accumulation {config.optim.accumulation} divides"
            raise ValueError(f"target.norm 'whiten' is over a whole batch, {parts}: give 1, or target.norm 'layer'")
        return {
            "target_last_block": section.last_block,
            "target_float8": section.float8,
            "target_norm": section.norm,
        }

    @classmethod
    def from_checkpoint(cls, config: Any) -> Self:
        """Likewise, to use what was trained; where the masks do not fit the grid, with contexts of any length, or without.

        Imported weights do not tell their masks: they come with the default ones, which small grids are too small for.
        """
        config = config.copy_and_resolve_references()
        config.model.drop_path = 0.0
        if config.predictor.width % (config.predictor.heads or from_settings(config.model).heads):
            config.predictor.heads = 1  # of an encoder that came without one
        try:
            masks_of(config)
        except ValueError:
            config.masks.mode, config.masks.context_patches = "pad", 0
            if "target" in config:
                config.target.last_block = "all"
        try:
            return cls.from_settings(config)
        except ValueError:
            with config.unlocked(), config.ignore_type():
                config.masks = None
            return cls.from_settings(config)

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return patch_grid(self.image_size, self.network.patch)

    @property
    def target_network(self) -> ViT | None:
        """What encodes targets; None where nothing does."""
        return dataclasses.replace(self.network, float8=True) if self.target_float8 else self.network

    @property
    def additive(self) -> bool:
        """True, as a mean over target tokens is; a class that changes a part of it has to say so itself (`additive = True`).

        Not so where targets are whitened over the batch.
        """
        parts = ("loss", "weight", "encode_target", "goals", "gather_targets", "encode_context", "predict")
        return self.target_norm == "layer" and all(getattr(type(self), part) is getattr(IJepa, part) for part in parts)

    def prepare(self) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """The host-side maker of a batch's masks from global example indices; picklable and free of jax."""
        return self.masks or nothing

    def init(self, key: jax.Array) -> dict[str, dict]:
        """Fresh float32 parameters: {"encoder": tree, "predictor": tree}.

        Linear layers' weights have a standard deviation of 0.02, as in the released trainer (`normal`), which is meant for
        networks some thousand wide; or, for narrow ones, of 1 / sqrt(inputs), so that outputs are as wide as inputs (`fan_in`).
        """
        encoder_key, predictor_key = jax.random.split(key)
        images = jnp.zeros((1, *self.image_size, self.channels))
        index = jnp.zeros((1, 1, 1), jnp.int32)
        tokens = jnp.zeros((1, 1, 1, self.network.width))
        params = {
            "encoder": self.network.init(encoder_key, images, index[:, 0])["params"],
            "predictor": self.predictor.init(predictor_key, tokens, index, index, self.grid)["params"],
        }
        return by_fan_in(params) if self.init_scheme == "fan_in" else params

    def target(self, params: dict[str, dict]) -> dict:
        """The sub-tree that the exponential moving average follows: the context encoder's."""
        return params["encoder"]

    def weight(self, batch: Batch) -> jax.Array:
        """How much a part of a batch counts in the whole one's loss: its number of valid target tokens."""
        return batch["target_length"].sum().astype(jnp.float32)

    def loss(
        self, params: dict[str, dict], target: dict, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Smooth-L1 loss over all valid target tokens and features of the batch, and metrics that show collapse."""
        images = normalise(batch[modality(self.image_size)], self.mean, self.std)
        wanted, place_bmt = self._wanted(batch)
        encoded = self.encode_target(target, images, wanted)
        if wanted is not None and encoded.shape[1] != wanted.shape[1]:
            raise ValueError(
                f"encode_target gives {encoded.shape[1]} tokens, not the {wanted.shape[1]} of `wanted`: honour that, or leave "
                f"target.last_block 'all' (it is {self.target_last_block!r})"
            )
        goal_bmtd = self.gather_targets(self.goals(encoded, self.whitening(encoded)), place_bmt)
        context_bckd = self.encode_context(params["encoder"], images, batch, key)
        prediction_bmctd = self.predict(params["predictor"], context_bckd, batch)
        valid_bmt = jnp.arange(batch["target"].shape[-1])[None, None] < batch["target_length"][..., None]
        error = optax.huber_loss(prediction_bmctd, goal_bmtd[:, :, None], delta=1.0)
        count = self.weight(batch) * goal_bmtd.shape[-1] * context_bckd.shape[1]
        loss = jnp.where(valid_bmt[:, :, None, :, None], error, 0).sum() / count
        metrics = {
            "target_std": _feature_std(self.gather_targets(encoded, place_bmt), valid_bmt),
            "prediction_std": _feature_std(jax.lax.stop_gradient(prediction_bmctd[:, :, 0]), valid_bmt),
        }
        if wanted is None:  # some patches, others in each image, differ even where whole images do not
            metrics["target_image_std"] = encoded.mean(axis=1).std(axis=0).mean()
        return loss, metrics

    def _wanted(self, batch: Batch) -> tuple[jax.Array | None, jax.Array]:
        """Patches [B, Q] that the target encoder's last block computes (None: all), and the place of targets among them."""
        target = batch["target"]
        b, m, t = target.shape
        patches = math.prod(self.grid)
        if self.target_last_block == "all" or (self.target_last_block == "targets" and m * t >= patches):
            return None, target
        if self.target_last_block == "targets":
            return target.reshape(b, m * t), jnp.broadcast_to(jnp.arange(m * t).reshape(1, m, t), target.shape)
        inside = (batch["context"][:, 0, :, None] == jnp.arange(patches)[None, None]).any(axis=1)
        place = jnp.cumsum(~inside, axis=1) - 1
        outside = jnp.argsort(inside, axis=1, stable=True)[:, : patches - self.masks.context_length]
        return outside, jnp.take_along_axis(place, target.reshape(b, m * t), axis=1).reshape(b, m, t)

    def encode_target(
        self, target: dict, images: Float[Array, "b *sizes c"], wanted: Int[Array, "b q"] | None = None
    ) -> Float[Array, "b n d"]:
        """All patches seen by the target encoder, layer-normalised without scale or bias: float32 [B, N, D], no gradient.

        With `wanted`, int [B, Q], its outputs at these patches only: [B, Q, D].
        """
        encoded = self.target_network.apply({"params": target}, images, wanted=wanted).astype(jnp.float32)
        return jax.lax.stop_gradient(jax.nn.standardize(encoded, epsilon=TARGET_EPSILON, algorithm="stable"))

    def whitening(self, encoded_bnd: Float[Array, "b n d"], valid_b: Array | None = None) -> Whitening | None:
        """What whitens targets: that of a batch's encoded tokens. None where targets are not whitened."""
        return whitening_of(encoded_bnd, valid_b) if self.target_norm == "whiten" else None

    def goals(self, encoded_bnd: Float[Array, "b n d"], whitening: Whitening | None) -> Float[Array, "b n d"]:
        """What predictions are compared with, of encoded tokens."""
        return encoded_bnd if whitening is None else whitened(encoded_bnd, whitening)

    def gather_targets(self, encoded_bnd: Float[Array, "b n d"], target_bmt: Int[Array, "b m t"]) -> Float[Array, "b m t d"]:
        """The encoded tokens of each target block: [B, M, T, D]. Masking the output, not the input, is essential (T11)."""
        b, m, t = target_bmt.shape
        return take_tokens(encoded_bnd, target_bmt.reshape(b, m * t)).reshape(b, m, t, -1)

    def encode_context(
        self, encoder: dict, images: Float[Array, "b *sizes ch"], batch: Batch, key: jax.Array
    ) -> Float[Array, "b c k d"]:
        """The context encoder's view of each context block: [B, C, K, D]."""
        b, c, k = batch["context"].shape
        images = images if c == 1 else jnp.repeat(images, c, axis=0)
        lengths = batch["context_length"].reshape(b * c) if "context_length" in batch else None
        tokens = self.network.apply(
            {"params": encoder}, images, batch["context"].reshape(b * c, k), lengths, train=True, rngs={"drop_path": key}
        )
        return tokens.reshape(b, c, k, -1)

    def predict(self, predictor: dict, context_bckd: Float[Array, "b c k d"], batch: Batch) -> Float[Array, "b m c t d"]:
        """The predictor's guess of every target block from every context block: float32 [B, M, C, T, D]."""
        prediction = self.predictor.apply(
            {"params": predictor},
            context_bckd,
            batch["context"],
            batch["target"],
            self.grid,
            batch.get("context_length"),
            batch["target_length"],
        )
        return prediction.astype(jnp.float32)

    def backbone(self) -> Encoder:
        """The network of either encoder, with the images it was trained on."""
        return Encoder(self.network, self.image_size, self.channels, self.mean, self.std)

    def flops(self) -> dict[str, int]:
        """Of context encoder, target encoder and predictor, see flops.step_flops."""
        return flops.step_flops(self)

    def padding(self) -> dict[str, Any]:
        """Of index arrays and of a TPU's lanes."""
        padding = (flops.index_padding, flops.lane_padding, flops.unfriendly_sizes)
        return {part.__name__: part(self) for part in padding}


def predictor_of(config: Any) -> Predictor:
    """The predictor's network."""
    encoder, section = from_settings(config.model), config.predictor
    return Predictor(
        width=section.width,
        depth=SIZES[config.model.size].predictor_depth if section.depth is None else section.depth,
        heads=encoder.heads if section.heads is None else section.heads,
        epsilon=encoder.epsilon,
        dtype=encoder.dtype,
        attention=encoder.attention,
        scan=encoder.scan,
        remat=encoder.remat,
        positions=encoder.positions,
        context_mode=section.context,
        automatic=encoder.automatic,
    )


def masks_of(config: Any) -> MaskSampler | None:
    """The sampler of contexts and targets; None where the settings have no masks."""
    if config.masks is None:
        return None
    return MaskSampler(
        patch_grid(config.data.image_size, config.model.patch),
        batch_size=config.optim.batch_size,
        seed=config.seed,
        **{key: tuple(value) if isinstance(value, (list, tuple)) else value for key, value in config.masks.items()},
    )


def _feature_std(tokens_bmtd: jax.Array, valid_bmt: jax.Array) -> jax.Array:
    """Standard deviation of each feature over all valid tokens, averaged over features: near zero on collapse."""
    weight = valid_bmt[..., None] / valid_bmt.sum()
    mean = (tokens_bmtd * weight).sum(axis=(0, 1, 2), keepdims=True)
    variance = (jnp.square(tokens_bmtd - mean) * weight).sum(axis=(0, 1, 2))
    return jnp.sqrt(variance).mean()


def whitening_of(tokens_bnd: Float[Array, "b n d"], valid_b: Array | None = None, floor: float = 0.01) -> Whitening:
    """What makes the features of these tokens uncorrelated, of mean 0 and variance 1, and else leaves them as near as can be.

    Directions with less than `floor` of the mean variance are stretched less: of these a batch tells noise. By the inverse
    square root of the features' correlation, from products of matrices alone (Huang et al., CVPR 2019, Iterative
    Normalization), as eigenvectors are slow on accelerators. `valid_b`, bool [B]: the images that count; None: all.
    """
    b, n, d = tokens_bnd.shape
    weight_b11 = jnp.full(b, 1 / (b * n)) if valid_b is None else valid_b / (valid_b.sum() * n)
    weight_b11 = weight_b11[:, None, None]
    mean_d = (weight_b11 * tokens_bnd).sum(axis=(0, 1))
    centred_bnd = tokens_bnd - mean_d[None, None]
    std_d = jnp.sqrt((weight_b11 * jnp.square(centred_bnd)).sum(axis=(0, 1)) + TARGET_EPSILON)
    scaled_bnd = jnp.sqrt(weight_b11) * centred_bnd / std_d[None, None]
    unit_dd = jnp.eye(d)
    with jax.default_matmul_precision("highest"):  # in fewer bits it would not converge
        correlation_dd = jnp.einsum("bnd,bne->de", scaled_bnd, scaled_bnd) + floor * unit_dd
        size = jnp.linalg.norm(correlation_dd)

        def nearer(_, roots):
            root, inverse = roots
            change = (3 * unit_dd - inverse @ root) / 2
            return root @ change, change @ inverse

        _, inverse_dd = jax.lax.fori_loop(0, 20, nearer, (correlation_dd / size, unit_dd))
    return {"mean": mean_d, "matrix": inverse_dd / jnp.sqrt(size) / std_d[:, None]}


def whitened(tokens_bnd: Float[Array, "b n d"], by: Whitening) -> Float[Array, "b n d"]:
    """Tokens less the mean, times the matrix."""
    with jax.default_matmul_precision("highest"):
        return (tokens_bnd - by["mean"][None, None]) @ by["matrix"]


def by_fan_in(params: dict) -> dict:
    """Fresh parameters with linear layers' weights stretched to a standard deviation of 1 / sqrt(inputs)."""

    def scale(path, leaf):
        return leaf / (INITIAL_STD * leaf.shape[-2] ** 0.5) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(scale, params)
