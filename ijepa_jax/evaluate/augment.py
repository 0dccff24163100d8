"""What fine-tuning does to images and labels: RandAugment on the host, mixup, cutmix and label smoothing on the device.

Nothing here keeps a random state. RandAugment is a function of uniform numbers that the caller hands in, as everything in
`data/images.py`; mixing is a function of a key, and can be part of a jitted step.
"""

import dataclasses
import statistics
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_MAX_MAGNITUDE = 10.0
_NORMAL = statistics.NormalDist()
_SMALLEST = 2.0**-54  # stands in for a uniform of 0, of which the normal deviate would be infinite


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """`rand_augment` with its settings: what `data.pipeline.train_batches` takes as `augment`."""

    operations: int = 2
    magnitude: float = 9.0
    spread: float = 0.5
    fill: int | tuple[int, ...] = 128

    @property
    def uniforms(self) -> int:
        return rand_augment_uniforms(self.operations)

    def __call__(self, image: np.ndarray, u: Sequence[float]) -> np.ndarray:
        return rand_augment(image, u, **vars(self))


def rand_augment_uniforms(operations: int) -> int:
    """How many uniforms `rand_augment` needs: for each operation which, whether, how much, and in which direction."""
    return 4 * operations


def rand_augment(
    image: np.ndarray,
    u: Sequence[float],
    *,
    operations: int = 2,
    magnitude: float = 9.0,
    spread: float = 0.5,
    fill: int | Sequence[int] = 128,
) -> np.ndarray:
    """RandAugment (Cubuk et al. 2019, arXiv 1909.13719) as ViTs are fine-tuned with it: "rand-m9-mstd0.5-inc1".

    So many `operations` are drawn from 15 with replacement, and each is done half the time, at a magnitude that is normal
    around `magnitude` with standard deviation `spread`, clipped to 0 .. 10. All change more at greater magnitudes; at 10

    - autocontrast, equalize and invert do what they do at any magnitude;
    - rotate turns by 30 degrees, shear shifts by 0.3 of the distance, translate by 0.45 of the side, either way: bicubic,
      with `fill` (one value, or one for each channel) where there is no image;
    - posterize keeps 0 bits, which is black (1 at magnitude 9, and 4 at 0: it never does nothing), solarize inverts all pixels
      (at magnitude m those from 256 - 25.6 m on), solarize-add adds 110 to those below 128;
    - colour, contrast, brightness and sharpness are multiplied by 0.1 or 1.9.

    Args:
      image: uint8 [H, W, C], with C = 1 or 3. Colour does nothing to grey.
      u: uniforms in [0, 1), `rand_augment_uniforms(operations)` of them, which alone say what is done.

    Returns:
      uint8 [H, W, C].

    Raises:
      ValueError: other channel counts, or a `fill` of another length.
    """
    channels = image.shape[-1]
    if channels not in (1, 3):
        raise ValueError(f"RandAugment needs grey or RGB images, got {channels} channels")
    fill = tuple(np.broadcast_to(fill, channels).tolist())
    changed = Image.fromarray(image[..., 0] if channels == 1 else image)
    table = tuple(_OPERATIONS.values())
    for k in range(operations):
        which, whether, deviate, direction = u[4 * k : 4 * k + 4]
        if whether < 0.5:
            drawn = magnitude + spread * _NORMAL.inv_cdf(max(deviate, _SMALLEST))
            level = min(max(drawn, 0.0), _MAX_MAGNITUDE) / _MAX_MAGNITUDE
            changed = table[int(which * len(table))](changed, level, level if direction < 0.5 else -level, fill)
    return np.asarray(changed).reshape(image.shape)


def mix(
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    classes: int,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    switch: float = 0.5,
    smoothing: float = 0.1,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image and label with those of the row before it (of the last row, for the first).

    The whole batch is either cut or blended. With probability `switch` it is cutmix (Yun et al. 2019, arXiv 1905.04899):
    a box is pasted from the partner, of area 1 - l with l ~ Beta(cutmix, cutmix), around a uniform point of the image, of
    which what sticks out is cut off (one box for all frames of a video; a span of a signal); the labels are mixed in the
    proportion of what is seen. Otherwise it is mixup (Zhang et al. 2018, arXiv 1710.09412): l of the image and 1 - l of the
    partner, l ~ Beta(mixup, mixup). If one of the two is zero it is always the other one, and if both are, labels are smoothed
    and nothing is mixed.

    A roll by one row, rather than a reversed batch, leaves no image without a partner, and moves but one row from device to
    device where the batch is sharded.

    Args:
      images: float [B, H, W, C], [B, T, H, W, C] or [B, L, C], normalised.
      labels: int32 [B], in 0 .. classes - 1.
      key: a jax.random key, which may be traced; all settings are Python numbers.
      smoothing: see `smooth`; applied to both labels before they are mixed.

    Returns:
      (images [B, H, W, C] of the given dtype, targets float32 [B, classes] whose rows sum to 1).

    Raises:
      ValueError: `mixup` or `cutmix` is negative.
    """
    if min(mixup, cutmix) < 0:
        raise ValueError(f"mixup and cutmix must not be negative, got {mixup} and {cutmix}")
    targets = smooth(labels, classes, smoothing)
    if not mixup and not cutmix:
        return images, targets
    cut_key, share_key, box_key = jax.random.split(key, 3)
    cut = jax.random.uniform(cut_key) < (switch if mixup and cutmix else float(cutmix > 0))
    alpha = jnp.where(cut, cutmix, mixup)
    blend = jax.random.beta(share_key, alpha, alpha)
    outside = _outside_box(box_key, 1 - blend, images.shape[1:-1][-2:])
    kept = jnp.where(cut, outside.astype(jnp.float32), blend)
    kept = kept.reshape(*[1] * (images.ndim - 1 - kept.ndim), *kept.shape, 1)
    share = jnp.where(cut, jnp.count_nonzero(outside) / outside.size, blend)
    mixed = images * kept + jnp.roll(images, 1, axis=0) * (1 - kept)
    return mixed.astype(images.dtype), targets * share + jnp.roll(targets, 1, axis=0) * (1 - share)


def smooth(labels: jax.Array, classes: int, smoothing: float) -> jax.Array:
    """Label smoothing (Szegedy et al. 2016, arXiv 1512.00567) of int [B] labels, as float32 [B, classes] targets.

    Every class gets smoothing / classes, and the true one 1 - smoothing besides.
    """
    return jax.nn.one_hot(labels, classes, dtype=jnp.float32) * (1 - smoothing) + smoothing / classes


def _outside_box(key: jax.Array, area: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """bool of one or two sizes, false in a box of that share of them around a uniform point, less what sticks out."""
    side = jnp.sqrt(area) if len(sizes) == 2 else area
    centre = jax.random.uniform(key, (len(sizes),))

    def inside(size: int, middle: jax.Array) -> jax.Array:
        pixel = jnp.arange(size)
        return (pixel >= jnp.round(size * (middle - side / 2))) & (pixel < jnp.round(size * (middle + side / 2)))

    first, *others = map(inside, sizes, centre)
    return ~(first[:, None] & others[0][None, :]) if others else ~first


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: tuple[int, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    # By a table, as Pillow's own refuses to keep 0 bits (seen in version 13).
    return image.point([value >> (8 - bits) << (8 - bits) for value in range(256)] * len(image.getbands()))


def _solarize_add(image: Image.Image, added: int) -> Image.Image:
    table = [min(value + added, 255) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _enhance(enhancer: type, image: Image.Image, change: float) -> Image.Image:
    return enhancer(image).enhance(max(0.1, 1 + 0.9 * change))


# Each takes the image, the level in 0 .. 1, the level with a random sign, and the fill colour. The order is part of what the
# uniforms mean.
_OPERATIONS = {
    "autocontrast": lambda image, level, signed, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, level, signed, fill: ImageOps.equalize(image),
    "invert": lambda image, level, signed, fill: ImageOps.invert(image),
    "rotate": lambda image, level, signed, fill: image.rotate(30 * signed, Image.Resampling.BICUBIC, fillcolor=fill),
    "posterize": lambda image, level, signed, fill: _posterize(image, 4 - int(4 * level)),
    "solarize": lambda image, level, signed, fill: ImageOps.solarize(image, 256 - int(256 * level)),
    "solarize_add": lambda image, level, signed, fill: _solarize_add(image, int(110 * level)),
    "color": lambda image, level, signed, fill: _enhance(ImageEnhance.Color, image, signed),
    "contrast": lambda image, level, signed, fill: _enhance(ImageEnhance.Contrast, image, signed),
    "brightness": lambda image, level, signed, fill: _enhance(ImageEnhance.Brightness, image, signed),
    "sharpness": lambda image, level, signed, fill: _enhance(ImageEnhance.Sharpness, image, signed),
    "shear_x": lambda image, level, signed, fill: _affine(image, (1, 0.3 * signed, 0, 0, 1, 0), fill),
    "shear_y": lambda image, level, signed, fill: _affine(image, (1, 0, 0, 0.3 * signed, 1, 0), fill),
    "translate_x": lambda image, level, signed, fill: _affine(image, (1, 0, 0.45 * signed * image.width, 0, 1, 0), fill),
    "translate_y": lambda image, level, signed, fill: _affine(image, (1, 0, 0, 0, 1, 0.45 * signed * image.height), fill),
}
