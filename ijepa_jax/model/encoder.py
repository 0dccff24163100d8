"""An encoder to be used: its network, the examples it is for, and the representations it gives of them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp

from ijepa_jax.model.layers import LayerNorm
from ijepa_jax.model.shapes import Array, Shaped
from ijepa_jax.model.vit import ViT, from_settings, normalise
from ijepa_jax.settings.axes import each_axis, modality, patch_grid

KINDS = ("last", "last4", "patches", "layers", "class")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A network without its parameters, the sizes of the examples it is given, and how they are normalised.

    The network is a ViT, or a module that gives patches likewise: with `patch` and `width`, and with `layers=True` a list of
    arrays [B, N, width], one for each layer, and last its output.
    """

    network: ViT
    image_size: tuple[int, ...]  # (height, width); of videos (frames, height, width), of signals (length,)
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        if isinstance(self.network, ViT) and self.network.trained_grid is None:  # for images of other sizes than its own
            object.__setattr__(self, "network", dataclasses.replace(self.network, trained_grid=self.grid))

    @classmethod
    def from_settings(cls, config: Any) -> Self:
        """The ViT of a run's settings, with the images it is for: for others its positions are resized."""
        network, data = from_settings(config.model), config.data
        return cls(network, tuple(data.image_size), data.channels, tuple(data.mean), tuple(data.std))

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return patch_grid(self.image_size, self.network.patch)

    @property
    def modality(self) -> str:
        """What examples are, as which batches hold them: image, video or signal."""
        return modality(self.image_size)

    @property
    def patch_values(self) -> int:
        """How many values a patch has."""
        return math.prod(each_axis(self.network.patch, len(self.image_size))) * self.channels

    def init(self, key: jax.Array) -> dict:
        """Fresh parameters, float32."""
        return self.network.init(key, jnp.zeros((1, *self.image_size, self.channels)))["params"]

    def layers(self, params: dict, images: Shaped[Array, "b *sizes c"]) -> list[jax.Array]:
        """Every block's patches [B, N, D], first to last, before the final norm; images as for `represent`."""
        return self._outputs(params, images)[:-1]

    def _outputs(self, params: dict, images: jax.Array, **also: bool) -> list[jax.Array]:
        outputs = self.network.apply({"params": params}, normalise(images, self.mean, self.std), layers=True, **also)
        return [tokens.astype(jnp.float32) for tokens in outputs]

    @property
    def has_class_token(self) -> bool:
        """Whether there is a representation `class`."""
        return getattr(self.network, "class_token", False)

    def represent(
        self, params: dict, images: Shaped[Array, "b *sizes c"], kinds: Sequence[str] = ("last",)
    ) -> dict[str, jax.Array]:
        """Representations of images [B, H, W, C], uint8, or float already normalised; all of them float32. Of videos
        [B, T, H, W, C] and signals [B, L, C] likewise.

        - `last`: [B, D], the patches of the last layer, averaged;
        - `last4`: [B, 4 D], likewise of the last four blocks, each through the final norm (all blocks, where there are fewer);
        - `patches`: [B, N, D], the last layer in raster order;
        - `layers`: [B, depth, D], every block's patches, averaged, without the final norm;
        - `class`: [B, D], the class token of the last layer, of an encoder that has one.

        The paper's linear probe takes the better of the first two (appendix A). Raises ValueError for a class token that there
        is not.
        """
        with_class = "class" in kinds
        if with_class and not self.has_class_token:
            raise ValueError("representation 'class': this encoder has no class token; give last, last4, patches or layers")
        outputs = self._outputs(params, images, **({"with_class": True} if with_class else {}))
        first, (*blocks, last) = outputs[-1][:, 0], [tokens[:, 1:] if with_class else tokens for tokens in outputs]

        def normed(tokens: jax.Array) -> jax.Array:
            """Through the final norm of a ViT."""
            if not isinstance(self.network, ViT):
                return tokens
            return LayerNorm(self.network.epsilon, jnp.float32).apply({"params": params["norm"]}, tokens)

        make = {
            "last": lambda: last.mean(axis=1),
            "last4": lambda: jnp.concatenate([normed(tokens).mean(axis=1) for tokens in blocks[-4:] or [last]], axis=-1),
            "patches": lambda: last,
            "layers": lambda: jnp.stack([tokens.mean(axis=1) for tokens in blocks], axis=1),
            "class": lambda: first,
        }
        return {kind: make[kind]() for kind in kinds}
