"""A diffusion decoder of frozen representations, in the style of RCDM (Bordes et al. 2022; I-JEPA paper, section 8).

It learns to draw a block of an image from a representation of that block alone. What its samples of one representation have in
common is what the representation holds; what differs between them, it does not. Pixels are denoised by a ViT (denoiser.py)
that guesses the clean ones; the noise follows the cosine schedule (Nichol & Dhariwal 2021) in continuous time.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from ijepa_jax.denoiser import Denoiser
from ijepa_jax.masks import MaskSampler
from ijepa_jax.vit import patch_grid, take_tokens

Batch = dict[str, jax.Array]

_MOST_SIGNAL = 5.0  # signal-to-noise ratio up to which errors weigh more: beyond it only grain is left to learn
_LAST = 0.999  # where sampling starts: at 1 nothing of an image is left, and its noise cannot be told from it


@dataclasses.dataclass(frozen=True)
class Rcdm:
    """The method. A batch holds `image` uint8 [B, H, W, C], `target` and `target_length` as I-JEPA's, and `condition`.

    `condition` is float32 [B, R, M, D]: R representations of each of M target blocks. One of these is drawn for each block
    and step, so that one decoder reads all kinds of them.
    """

    denoiser: Denoiser
    masks: MaskSampler  # of what is decoded: they say which blocks of an image its representations are of
    image_size: tuple[int, int]
    channels: int
    patch: int
    features: int  # D

    @property
    def grid(self) -> tuple[int, int]:
        return patch_grid(self.image_size, self.patch)

    @property
    def additive(self) -> bool:
        """True, as a mean over patches is; a class with another `loss` has to say so itself."""
        return type(self).loss is Rcdm.loss

    def prepare(self) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """The host-side maker of a batch's masks from global example indices."""
        return self.masks

    def init(self, key: jax.Array) -> dict[str, dict]:
        """Fresh float32 parameters: {"denoiser": tree}."""
        patches, one = jnp.zeros((1, 1, self.patch**2 * self.channels)), jnp.ones(1, jnp.int32)
        given = (patches, one[None], one, jnp.zeros(1), jnp.zeros((1, self.features)), self.grid)
        return {"denoiser": self.denoiser.init(key, *given)["params"]}

    def target(self, params: dict[str, dict]) -> dict:
        """What the moving average follows: all of it. Samples are drawn with the average."""
        return params["denoiser"]

    def weight(self, batch: Batch) -> jax.Array:
        """Parts of a batch count by their number of valid target patches."""
        return batch["target_length"].sum().astype(jnp.float32)

    def loss(
        self, params: dict[str, dict], target: dict, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Squared error of the guessed pixels over all valid patches, weighted by 1 + min(signal to noise, 5).

        The bound on the weight is that of Hang et al. 2023; without it this would be the error of the velocity.
        """
        del target
        which_key, time_key, noise_key = jax.random.split(key, 3)
        conditions = batch["condition"]
        which = jax.random.randint(which_key, batch["target_length"].shape, 0, conditions.shape[1])
        condition = jnp.take_along_axis(conditions, which[:, None, :, None], axis=1).reshape(-1, conditions.shape[-1])
        index, lengths, clean = self.blocks(batch)
        count = len(clean)
        times = (jnp.arange(count) + jax.random.uniform(time_key)) / count  # evenly spread: less noisy gradients
        signal, noise = schedule(times[:, None, None])
        noisy = signal * clean + noise * jax.random.normal(noise_key, clean.shape)
        guess = self.denoiser.apply({"params": params["denoiser"]}, noisy, index, lengths, times, condition, self.grid)
        valid = jnp.arange(index.shape[1]) < lengths[:, None]
        error = jnp.where(valid, jnp.square(guess - clean).mean(axis=-1), 0) / valid.sum()
        ratio = jnp.minimum(jnp.square(signal / noise)[..., 0], _MOST_SIGNAL)
        return (error * (1 + ratio)).sum(), {"squared_error": error.sum()}

    def blocks(self, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """All blocks of a batch: their patches' places int [B * M, T], lengths [B * M], and pixels float32 [B * M, T, P]."""
        p, (b, m, t) = self.patch, batch["target"].shape
        patches = rearrange(scaled(batch["image"]), "b (r p) (c q) ch -> b (r c) (p q ch)", p=p, q=p)
        pixels = take_tokens(patches, batch["target"].reshape(b, m * t)).reshape(b * m, t, -1)
        return batch["target"].reshape(b * m, t), batch["target_length"].reshape(b * m), pixels

    def sample(
        self, target: dict, condition: jax.Array, index: jax.Array, lengths: jax.Array, key: jax.Array, steps: int = 32
    ) -> jax.Array:
        """Blocks drawn from representations [n, D] by DDIM (Song et al. 2021) without noise: float32 [n, T, P], -1 .. 1.

        Each block starts from its own noise, the only thing that tells samples of one representation apart.

        Args:
            target: the moving average of the denoiser's parameters.
            index: int [n, T], places of the blocks' patches.
            lengths: int [n], how many of these are valid.
            key: of the noise.
            steps: denoising steps.
        """
        times = jnp.linspace(_LAST, 0, steps + 1)

        def denoise(pixels, now_and_next):
            now, after = now_and_next
            given = pixels, index, lengths, jnp.full(len(pixels), now), condition
            guess = self.denoiser.apply({"params": target}, *given, self.grid).clip(-1, 1)
            (signal, noise), (next_signal, next_noise) = schedule(now), schedule(after)
            return next_signal * guess + next_noise * (pixels - signal * guess) / noise, None

        start = jax.random.normal(key, (*index.shape, self.patch**2 * self.channels))
        return jax.lax.scan(denoise, start, (times[:-1], times[1:]))[0]


def schedule(times: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The shares of image and noise at times 0 (the image) to 1 (noise); their squares add up to 1."""
    return jnp.cos(jnp.pi / 2 * times), jnp.sin(jnp.pi / 2 * times)


def scaled(images: jax.Array) -> jax.Array:
    """uint8 images as float32 from -1 to 1."""
    return images.astype(jnp.float32) / 127.5 - 1
