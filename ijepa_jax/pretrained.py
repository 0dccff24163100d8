"""Encoders for notebooks: `load` one, from wherever it is, and call it on images."""

import functools
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.encoder import Encoder
from ijepa_jax.sharding import batch_sharding, make_mesh, replicated

Images = Any  # arrays, or what `np.asarray` makes arrays of

DTYPES = ("float32", "bfloat16")
_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")


class Pretrained:
    """An encoder with its parameters: call it on images.

    Images are [B, H, W, C] or a single [H, W, C], NumPy or JAX, uint8 or float already normalised, of any size that divides
    into patches. Each function is compiled once for a shape; batches larger than `batch_size` are computed in parts, and
    where there are several devices, each computes its share. Results are float32, and the same on every device.
    """

    def __init__(
        self, encoder: Encoder, params: dict, head: dict | None = None, labels: Sequence[str] = (), origin: Any = None
    ):
        """See `load`; `head`: a classifier of the pooled patches, {"kernel": [D, K], "bias": [K]}."""
        self.encoder, self.head, self.labels, self.origin = encoder, head, tuple(labels), origin
        self.mesh = make_mesh(devices=jax.local_devices())
        self.params = jax.device_put(params, replicated(self.mesh))
        self._compiled: dict[str, Callable] = {}

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that it was trained on."""
        return self.encoder.image_size

    @property
    def width(self) -> int:
        """The number of features, D."""
        return self.encoder.network.width

    def __call__(self, images: Images, batch_size: int = 256) -> jax.Array:
        """Pooled features: [B, D], the average of the last layer's patches."""
        return self._run("last", images, batch_size)

    def patches(self, images: Images, batch_size: int = 256) -> jax.Array:
        """The last layer's patches, row by row: [B, N, D]."""
        return self._run("patches", images, batch_size)

    def layers(self, images: Images, batch_size: int = 256) -> list[jax.Array]:
        """Every block's patches, first to last, before the final norm: [B, N, D] each."""
        return self._run("layers", images, batch_size)

    def classify(self, images: Images, batch_size: int = 256) -> jax.Array:
        """Logits [B, K] of the classifier that came with the weights; ValueError where none did."""
        if self.head is None:
            raise ValueError(f"these weights have no classifier: {self.origin}")
        return self(images, batch_size) @ self.head["kernel"] + self.head["bias"]

    def __repr__(self) -> str:
        network, (height, width) = self.encoder.network, self.image_size
        origin = f", {self.origin['format']} {self.origin['file']}" if self.origin else ""
        return (
            f"Pretrained(width {network.width}, depth {network.depth}, patch {network.patch}, {height}x{width} pixels{origin})"
        )

    def _run(self, kind: str, images: Images, batch_size: int) -> Any:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be at least 1")
        images = images if isinstance(images, jax.Array) else _as_array(images)
        single, images = images.ndim == 3, images[None] if images.ndim == 3 else images
        if images.ndim != 4 or images.shape[-1] != self.encoder.channels or not len(images):
            wanted = f"H, W, {self.encoder.channels}]"
            raise ValueError(f"images of shape {list(images.shape)} must be [B, {wanted} or [{wanted}")
        if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images of {images.dtype} must be uint8 (0 .. 255), or float already normalised")
        if kind not in self._compiled:
            represent = functools.partial(self._represent, kind)
            self._compiled[kind] = jax.jit(represent, out_shardings=replicated(self.mesh))
        compiled = self._compiled[kind]
        each = -(-min(batch_size, len(images)) // self.mesh.size) * self.mesh.size
        parts = [self._part(compiled, images[start : start + each], each) for start in range(0, len(images), each)]
        joined = jax.tree.map(lambda *values: jnp.concatenate(values) if len(values) > 1 else values[0], *parts)
        return jax.tree.map(lambda value: value[0], joined) if single else joined

    def _part(self, compiled: Callable, images: np.ndarray | jax.Array, size: int) -> Any:
        """Represents some images, filled up to `size` so that all parts are of one shape."""
        count = len(images)
        if count < size:
            array = jnp if isinstance(images, jax.Array) else np
            images = array.concatenate([images, array.zeros((size - count, *images.shape[1:]), images.dtype)])
        found = compiled(self.params, jax.device_put(images, batch_sharding(self.mesh)))
        return jax.tree.map(lambda value: value[:count], found)

    def _represent(self, kind: str, params: dict, images: jax.Array) -> Any:
        if kind == "layers":
            return self.encoder.layers(params, images)
        return self.encoder.represent(params, images, (kind,))[kind]


def load(
    path: str | os.PathLike, *, step: int = 0, encoder: str = "target", dtype: str = "float32", heads: int | None = None
) -> Pretrained:
    """Loads an encoder: of a workdir or one of its checkpoints, or foreign weights (see `interop.convert.read`).

    Args:
        path: a workdir, WORKDIR/checkpoints/STEP, a transformers or timm folder, a timm safetensors file, or the authors'
            `.pth.tar`.
        step: of a workdir's checkpoints; 0: the best by probe, else the newest; -1: the newest.
        encoder: `target`, as evaluations take it, or `context`.
        dtype: of the computation, float32 or bfloat16.
        heads: of the attention, where neither the weights' configuration nor a known size tells.

    Raises:
        FileNotFoundError, CheckpointError (RuntimeError), ValueError, and of its kind WeightsError: one line that says what
        is wrong.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} must be one of {', '.join(DTYPES)}")
    from ijepa_jax import build
    from ijepa_jax.interop import convert

    path = os.fspath(path)
    path = path if "://" in path else str(Path(path).expanduser())
    weights = convert.read(path, step=step, encoder=encoder, heads=heads)
    settings = weights.settings.copy_and_resolve_references()
    settings.model.dtype, settings.model.attention = dtype, "xla"
    return Pretrained(build.encoder(settings), weights.encoder, weights.head, weights.labels, weights.origin)


def preprocess(
    images: Iterable[Any] | Any, image_size: tuple[int, int] = (224, 224), crop: float = 0.875, channels: int = 3
) -> np.ndarray:
    """Images of any size as an encoder is evaluated on them: uint8 [B, height, width, channels].

    The short side is resized to the target's / `crop`, bilinear with antialiasing, and the centre is cut out. The encoder
    normalises uint8 by itself. Images come out upright (EXIF), on white where they are transparent.

    Args:
        images: one or several of: a path, a Pillow image, an array uint8 [H, W, channels] or [H, W].
        image_size: (height, width), such as `encoder.image_size`.
        crop: share of the short side that is kept.
        channels: 3, or 1 for grey.

    Raises:
        BadImage (ValueError): for what is no image, naming the file. ValueError: no images.
    """
    from ijepa_jax.data.images import center_crop

    single = isinstance(images, (str, os.PathLike)) or _is_pillow(images) or getattr(images, "ndim", 4) < 4
    pixels = [_pixels(image, channels) for image in ([images] if single else images)]
    if not pixels:
        raise ValueError("no images to preprocess")
    return np.stack([center_crop(image, tuple(image_size), crop) for image in pixels])


def _as_array(images: Images) -> np.ndarray:
    try:
        return np.asarray(images)
    except ValueError as error:
        raise ValueError(f"images of different sizes are no batch: ijepa_jax.preprocess makes one of them ({error})") from None


def _is_pillow(image: Any) -> bool:
    return hasattr(image, "getexif")


def _pixels(image: Any, channels: int) -> np.ndarray:
    from ijepa_jax.data.images import BadImage, decode

    if isinstance(image, (np.ndarray, jax.Array)):
        return decode(np.asarray(image), channels)
    if not _is_pillow(image):
        name, data = image, Path(image).expanduser().read_bytes()
    else:
        name, data = getattr(image, "filename", "") or "the Pillow image", _as_png(image)
    try:
        return decode(data, channels)
    except BadImage as error:
        raise BadImage(f"{name}: {error}") from None


def _as_png(image: Any) -> bytes:
    """A Pillow image as a file, its orientation kept: `decode` then treats it as the file that it may have come from."""
    from ijepa_jax.data.images import BadImage

    try:
        exif = image.getexif()
        if image.mode not in _PNG_MODES:
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        with io.BytesIO() as buffer:
            image.save(buffer, "PNG", exif=exif, compress_level=1)
            return buffer.getvalue()
    except (OSError, ValueError) as error:  # pixels are read only now, and some modes have no way to RGB
        raise BadImage(f"{getattr(image, 'filename', '') or 'the Pillow image'}: {error}") from error
