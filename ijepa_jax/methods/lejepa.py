"""LeJEPA (Balestriero and LeCun, arXiv 2511.08544): views of an image agree, while projections are kept standard normal."""

import dataclasses
import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.data.multiview import Views
from ijepa_jax.methods.contract import Batch, Method
from ijepa_jax.methods.ijepa import by_fan_in
from ijepa_jax.methods.sigreg import RELEASED, Quadrature, directions, sigreg
from ijepa_jax.model import flops
from ijepa_jax.model.encoder import Encoder
from ijepa_jax.model.layers import Dense, along_last
from ijepa_jax.model.shapes import Array, Float
from ijepa_jax.model.vit import ViT, from_settings, normalise
from ijepa_jax.settings.axes import by, patch_grid
from ijepa_jax.settings.ranges import choice, flag, number, whole

CENTRES = (
    "global",
    "all",
)  # of which views the mean is what all are drawn to: the paper's, and that of the authors' short code
_FEWEST = 16  # images of a batch
_EPSILON = 1e-5  # of batch normalisation

SETTINGS = {
    "lejepa": {
        "global_views": whole(2, 1, 64, fixed=True),  # of data.image_size, data.crop_scale and data.crop_aspect
        "local_views": whole(6, 0, 64, fixed=True),
        "local_size": whole((96, 96), 1, 65_536, length=2, fixed=True),
        "local_scale": number((0.05, 0.3), 0, 1, "(]", length=2, rising=True),  # shares of an image's area
        "centre": choice("global", CENTRES, fixed=True),
        "weight": number(0.05, 0, 1, fixed=True),  # of SIGReg; that of views' distance from their centre is the rest
        "slices": whole(1024, 1, 1_000_000, fixed=True),
        "knots": whole(17, 3, 10_001, fixed=True),  # of the integral from 0 to `furthest`; odd
        "furthest": number(3.0, 0.1, 100, fixed=True),
        "class_token": flag(True, fixed=True),  # what is projected; or the mean of patches
        "embedding": whole(512, 0, 65_536, fixed=True),  # width of a linear layer before the projector; 0: there is none
        "projector_width": whole(2048, 1, 65_536, fixed=True),
        "outputs": whole(64, 1, 65_536, fixed=True),
    },
    "views": {  # changes, by their probabilities; data.flip mirrors half of them
        "jitter": number(0.8, 0, 1),
        "strengths": number((0.4, 0.4, 0.2, 0.1), 0, 1, length=4),  # of brightness, contrast, saturation, hue (at most 0.5)
        "grey": number(0.2, 0, 1),
        "blur": number(0.5, 0, 1),
        "kernel": whole(23, 3, 1001),  # pixels, odd
        "sigma": number((0.1, 2.0), 0, 100, "(]", length=2, rising=True),  # pixels
        "solarise": number(0.2, 0, 1),
        "interpolation": choice("bicubic", ("bicubic", "bilinear")),  # of crops
    },
}


class Projector(nn.Module):
    """A perceptron of three layers with batch normalisation and ReLU, in batch mode, as nothing but training uses it."""

    embedding: int  # width of a linear layer before it; 0: there is none
    width: int
    outputs: int
    dtype: jnp.dtype = jnp.float32
    automatic: bool = False

    @nn.compact
    def __call__(self, x_nd: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """[N, D] -> float32 [N, outputs]; statistics are those of all rows, of all devices."""
        dense = partial(Dense, dtype=self.dtype, automatic=self.automatic)
        if self.embedding:
            x_nd = dense(self.embedding, name="embed")(x_nd)
        for i in (1, 2):
            x_nd = dense(self.width, name=f"fc{i}")(x_nd).astype(jnp.float32)
            x_nd = jax.nn.standardize(x_nd, axis=0, epsilon=_EPSILON, algorithm="stable")
            scale = self.param(f"scale{i}", nn.initializers.ones, (self.width,))
            bias = self.param(f"bias{i}", nn.initializers.zeros, (self.width,))
            x_nd = jax.nn.relu(x_nd * along_last(scale, x_nd) + along_last(bias, x_nd))
        return dense(self.outputs, name="proj")(x_nd).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class LeJepa(Method):
    """The method. There is neither target, nor predictor, nor gradient that is stopped.

    A batch holds `global` uint8 [B, count, H, W, C] and, where there are any, `local`, of a size of their own.
    """

    title = "LeJEPA"
    about = "a joint-embedding architecture regularised by SIGReg (Balestriero and LeCun 2025, arXiv 2511.08544)"
    additive = False  # the statistic of a batch is not the mean of its parts'

    network: ViT
    projector: Projector
    shown: tuple[Views, ...]  # the global ones first
    image_size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    init_scheme: str = "normal"
    centre: str = "global"  # a name of CENTRES
    sigreg_weight: float = 0.05
    slices: int = 1024
    quadrature: Quadrature = RELEASED

    @classmethod
    def settings(cls) -> dict[str, Mapping[str, Any]]:
        """Views, statistic and projector, and what a class of one's own adds."""
        return {**SETTINGS, **super().settings()}

    @classmethod
    def from_settings(cls, config: Any) -> Self:
        """The method with its networks. Raises ValueError, naming the setting, where they do not fit."""
        section, data = config.lejepa, config.data
        quadrature = Quadrature(section.knots, section.furthest)
        quadrature.check("lejepa.knots")
        if section.furthest > section.knots - 1:
            raise ValueError(
                f"lejepa.knots {section.knots} are too few for an integral to {section.furthest:g}: give more, at most 1 apart"
            )
        if config.optim.accumulation > 1:
            parts = f"which optim.accumulation {config.optim.accumulation} divides"
            raise ValueError(f"LeJEPA's statistic is of a whole batch, {parts}: give 1")
        if config.optim.batch_size < _FEWEST:
            raise ValueError(
                f"optim.batch_size {config.optim.batch_size} is too small for LeJEPA's statistic: give {_FEWEST} or more, "
                "better 128"
            )
        network = dataclasses.replace(from_settings(config.model), class_token=section.class_token)
        projector = Projector(section.embedding, section.projector_width, section.outputs, network.dtype, network.automatic)
        return cls(
            network, projector, views_of(config), tuple(data.image_size), data.channels, tuple(data.mean), tuple(data.std),
            config.model.init, section.centre, section.weight, section.slices, quadrature, **cls.custom(config),
        )  # fmt: skip

    def views(self) -> tuple[Views, ...]:
        """The global views, and the local ones."""
        return self.shown

    def init(self, key: jax.Array) -> dict[str, dict]:
        """Fresh float32 parameters: {"encoder": tree, "projector": tree}."""
        encoder_key, projector_key = jax.random.split(key)
        params = {
            "encoder": self.backbone().init(encoder_key),
            "projector": self.projector.init(projector_key, jnp.zeros((1, self.network.width)))["params"],
        }
        return by_fan_in(params) if self.init_scheme == "fan_in" else params

    def loss(self, params: dict[str, dict], target: None, batch: Batch, key: jax.Array):
        """The objective of a batch's projections, and metrics; directions are drawn anew each step, the same on all devices."""
        drop_key, slice_key = jax.random.split(key)
        pooled_bvd = self.pooled(params["encoder"], batch, drop_key)
        b, v, _ = pooled_bvd.shape
        projected = self.projector.apply({"params": params["projector"]}, pooled_bvd.reshape(b * v, -1))
        projected_vbk = projected.reshape(b, v, -1).swapaxes(0, 1)
        drawn = directions(slice_key, self.projector.outputs, self.slices)
        automatic = self.network.automatic
        loss, metrics = objective(projected_vbk, drawn, self.sigreg_weight, self.centred, self.quadrature, automatic)
        stds = {"feature_std": pooled_bvd[:, 0], "projection_std": projected_vbk[0]}
        return loss, metrics | {name: jax.lax.stop_gradient(of).std(axis=0).mean() for name, of in stds.items()}

    @property
    def centred(self) -> int:
        """How many views, the first ones, have the mean that all are drawn to."""
        return self.shown[0].count if self.centre == "global" else sum(of.count for of in self.shown)

    def pooled(self, encoder: dict, batch: Batch, key: jax.Array) -> Float[Array, "b v d"]:
        """What is projected of every view, float32 [B, V, D]: the class token, or the mean of patches."""
        network, pooled = self.backbone().network, []
        for of in self.shown:
            images = normalise(batch[of.name], self.mean, self.std)
            b = len(images)
            tokens = network.apply(
                {"params": encoder}, images.reshape(b * of.count, *images.shape[2:]), train=True,
                with_class=self.network.class_token, rngs={"drop_path": jax.random.fold_in(key, len(pooled))},
            ).astype(jnp.float32)  # fmt: skip
            pooled.append((tokens[:, 0] if self.network.class_token else tokens.mean(axis=1)).reshape(b, of.count, -1))
        return jnp.concatenate(pooled, axis=1)

    def backbone(self) -> Encoder:
        """The encoder, with the size of the global views."""
        return Encoder(self.network, self.image_size, self.channels, self.mean, self.std)

    def flops(self) -> dict[str, int]:
        """Of encoder, projector and slices for an image and step: matrix products alone, see flops.step_flops."""
        width, head, encoder = self.network.width, self.projector, 0
        for of in self.shown:
            patches = int(np.prod(patch_grid(of.size, self.network.patch)))
            embedding = 2 * 2 * patches * self.backbone().patch_values * width
            encoder += of.count * (embedding + 3 * flops.of_blocks(self.network, patches + int(self.network.class_token)))
        sizes = [width, *filter(None, [head.embedding]), head.width, head.width, head.outputs]
        views = sum(of.count for of in self.shown)
        return {
            "encoder": encoder,
            "projector": 3 * 2 * views * sum(a * b for a, b in itertools.pairwise(sizes)),
            "sigreg": 2 * 2 * views * head.outputs * self.slices,
        }


def objective(
    projected_vbk: Float[Array, "v b k"],
    directions_km: Float[Array, "k m"],
    weight: float,
    centred: int,
    quadrature: Quadrature,
    automatic: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of projections of V views, and its two parts.

    SIGReg of each view, in the mean, times `weight`, and the mean squared distance of all views from the mean of the first
    `centred` ones times the rest: the paper's definition. Others are in circulation (docs/variants.md).
    """
    statistic = sigreg(projected_vbk, directions_km, quadrature, automatic=automatic).mean()
    invariance = jnp.square(projected_vbk[:centred].mean(axis=0, keepdims=True) - projected_vbk).mean()
    return weight * statistic + (1 - weight) * invariance, {"sigreg": statistic, "invariance": invariance}


def views_of(config: Any) -> tuple[Views, ...]:
    """The views that a run's settings ask for. Raises ValueError, naming the setting, where they make no sense."""
    section, data, changes = config.lejepa, config.data, config.views
    if len(data.image_size) != 2 or data.channels not in (1, 3):
        given = f"data.image_size {tuple(data.image_size)} and data.channels {data.channels}"
        raise ValueError(f"LeJEPA's views are of grey or RGB images, not {given}")
    if section.global_views + section.local_views < 2:
        raise ValueError("lejepa.global_views and lejepa.local_views are one view: there must be two to agree")
    if changes.kernel % 2 == 0:
        raise ValueError(f"views.kernel {changes.kernel} must be odd")
    if changes.strengths[3] > 0.5:
        raise ValueError(f"views.strengths {tuple(changes.strengths)}: the hue's, the last, is at most 0.5")
    size, local = tuple(data.image_size), tuple(section.local_size)
    if section.local_views and any(small > large for small, large in zip(local, size, strict=True)):
        raise ValueError(f"lejepa.local_size {by(local)} is larger than the global views' data.image_size {by(size)}")
    if section.local_views:
        try:
            patch_grid(local, config.model.patch)
        except ValueError as error:
            raise ValueError(f"lejepa.local_size: {error}") from error
    alike = {
        "channels": data.channels, "aspect": tuple(data.crop_aspect), "flip": 0.5 * data.flip, "jitter": changes.jitter,
        "strengths": tuple(changes.strengths), "grey": changes.grey, "blur": changes.blur, "kernel": changes.kernel,
        "sigma": tuple(changes.sigma), "solarise": changes.solarise, "bicubic": changes.interpolation == "bicubic",
        "exact": data.exact,
    }  # fmt: skip
    whole_ones = Views("global", section.global_views, size, scale=tuple(data.crop_scale), **alike)
    if not section.local_views:
        return (whole_ones,)
    return whole_ones, Views("local", section.local_views, local, scale=tuple(section.local_scale), **alike)
