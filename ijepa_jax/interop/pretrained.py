"""Encoders for notebooks: `load` one, from wherever it is, and call it on images (or videos, or signals)."""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax import build
from ijepa_jax.data.images import BadImage, center_crop, decode, read
from ijepa_jax.devices.sharding import batch_sharding, make_mesh, replicated
from ijepa_jax.host.errors import one_line
from ijepa_jax.interop import convert, layout
from ijepa_jax.model.encoder import Encoder
from ijepa_jax.model.layers import along_last
from ijepa_jax.settings.axes import by

Images = Any  # arrays, what `np.asarray` makes arrays of, or Pillow images

DTYPES = ("float32", "bfloat16")
_SHAPES = {"signal": "L", "image": "H, W", "video": "T, H, W"}
_STANDARDISED = "(values - encoder.encoder.mean) / encoder.encoder.std"
_OVERSHOOT = 0.25  # of pixels of 0 .. 1, by sharp filters
_NORMAL = 6.0  # normal random numbers, which are common test images, stay below


class Pretrained:
    """An encoder with its parameters: call it on images.

    Images are [B, H, W, C] or a single [H, W, C], NumPy or JAX, uint8 or float already normalised, of any size that divides
    into patches; or Pillow images of the encoder's size. Each function is compiled once for a shape; batches larger than
    `batch_size` are computed in parts, and where there are several devices, each computes its share. Results are float32, and
    the same on every device.

    Floats that the encoder's mean and std cannot have given, such as 0 .. 1, 0 .. 255 and NaN, are refused with a ValueError;
    `check=False` takes them as they are. Under `jax.jit` nothing is known of them, and nothing checked.

    The encoder of a run on videos takes [B, T, H, W, C] or a single one likewise; that of signals takes floats [B, L, C], less
    the mean and divided by the std that `encoder` has.
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
    def image_size(self) -> tuple[int, ...]:
        """(height, width) of the images that it was trained on; (frames, height, width) of videos, (length,) of signals."""
        return self.encoder.image_size

    @property
    def width(self) -> int:
        """The number of features, D."""
        return self.encoder.network.width

    def __call__(self, images: Images, batch_size: int = 256, check: bool = True) -> jax.Array:
        """Pooled features: [B, D], the average of the last layer's patches."""
        return self._run("last", images, batch_size, check)

    def patches(self, images: Images, batch_size: int = 256, check: bool = True) -> jax.Array:
        """The last layer's patches, row by row: [B, N, D]."""
        return self._run("patches", images, batch_size, check)

    def class_token(self, images: Images, batch_size: int = 256, check: bool = True) -> jax.Array:
        """The last layer's class token, [B, D]; ValueError for an encoder that has none."""
        return self._run("class", images, batch_size, check)

    def layers(self, images: Images, batch_size: int = 256, check: bool = True) -> list[jax.Array]:
        """Every block's patches, first to last, before the final norm: [B, N, D] each."""
        return self._run("layers", images, batch_size, check)

    def classify(self, images: Images, batch_size: int = 256, check: bool = True) -> jax.Array:
        """Logits [B, K] of the classifier that came with the weights; ValueError where none did."""
        if self.head is None:
            raise ValueError(f"these weights have no classifier: {self.origin}")
        logits = self(images, batch_size, check) @ self.head["kernel"]
        return logits + along_last(self.head["bias"], logits)

    def __repr__(self) -> str:
        network, kind, size = self.encoder.network, self.encoder.modality, by(self.image_size)
        shown = {"image": f"{size} pixels", "video": f"videos of {size}", "signal": f"signals of {size} values"}[kind]
        origin = f", {self.origin['format']} {self.origin['file']}" if self.origin else ""
        depth = f"depth {network.depth}, " if hasattr(network, "depth") else ""
        return f"Pretrained(width {network.width}, {depth}patch {network.patch}, {shown}{origin})"

    def _run(self, kind: str, images: Images, batch_size: int, check: bool) -> Any:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be at least 1")
        images = images if isinstance(images, jax.Array) else _as_array(images, self.encoder)
        images, single = _batched(images, self.encoder)
        if check and images.dtype != np.uint8 and not isinstance(images, jax.core.Tracer):
            _check_normalised(images, self.encoder)
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
        path: a workdir, WORKDIR/checkpoints/STEP, a transformers or timm folder, a timm safetensors file, the authors'
            `.pth.tar`, or ORG/NAME, which the Hugging Face hub's cache holds (huggingface_hub must be installed).
        step: of a workdir's checkpoints; 0: the best by probe, else the newest; -1: the newest.
        encoder: `target`, the one that is evaluated, or `context`, which a target follows; the same where there is none.
        dtype: of the computation, float32 or bfloat16.
        heads: of the attention, where neither the weights' configuration nor a known size tells.

    Raises:
        FileNotFoundError, CheckpointError (RuntimeError), ValueError, and of its kind WeightsError: one line that says what
        is wrong.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} must be one of {', '.join(DTYPES)}")
    path = os.fspath(path)
    path = path if "://" in path else str(Path(path).expanduser())
    weights = convert.read(path, step=step, encoder=encoder, heads=heads)
    settings = weights.settings.copy_and_resolve_references()
    settings.model.dtype, settings.model.attention = dtype, "xla"
    mesh = make_mesh(devices=jax.local_devices())
    params = layout.replace(weights.encoder, lambda leaf: _placed(leaf, replicated(mesh)))
    return Pretrained(build.trained_method(settings).backbone(), params, weights.head, weights.labels, weights.origin)


def _placed(leaf: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array on devices, when that is done: what it was made of can be dropped. On a CPU it may stay where it is."""
    return jax.block_until_ready(jax.device_put(leaf, sharding, may_alias=True))


def preprocess(
    images: Iterable[Any] | Any, image_size: int | tuple[int, int] = (224, 224), crop: float = 0.875, channels: int = 3
) -> np.ndarray:
    """Images of any size as an encoder is evaluated on them: uint8 [B, height, width, channels].

    The short side is resized to the target's / `crop`, bilinear with antialiasing, and the centre is cut out. The encoder
    normalises uint8 by itself. Images come out upright (EXIF), on white where they are transparent.

    Args:
        images: one or several of: a path, an open binary file or the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF file, a
            Pillow image, an array (NumPy, JAX, a tensor on the CPU) uint8 [H, W, channels] or [H, W].
        image_size: (height, width), such as `encoder.image_size`, or one number for a square.
        crop: share of the short side that is kept, above 0 and up to 1.
        channels: 3, or 1 for grey.

    Raises:
        BadImage (ValueError): for what is no image, naming the file. ValueError: no images, or settings out of range.
    """
    size = np.ravel(np.array(image_size, object)).tolist() * (2 if np.ndim(image_size) == 0 else 1)
    if len(size) != 2 or not all(isinstance(side, (int, np.integer)) and side is not True and side > 0 for side in size):
        raise ValueError(
            f"image_size {image_size!r} must be a whole number of pixels, or two, (height, width): encoders of videos and "
            "signals take arrays"
        )
    size = (int(size[0]), int(size[1]))
    if not isinstance(crop, (int, float, np.number)) or not 0 < crop <= 1:
        raise ValueError(f"crop {crop!r} must be a number above 0 and at most 1: the share of the short side that is kept")
    single = not isinstance(images, Iterable) or isinstance(images, (str, bytes, bytearray, memoryview))
    single = single or hasattr(images, "read") or getattr(images, "ndim", 4) < 4
    made = [center_crop(_pixels(image, channels), size, crop) for image in ([images] if single else images)]
    if not made:
        raise ValueError("no images to preprocess")
    return np.stack(made)


def _batched(images: np.ndarray | jax.Array, encoder: Encoder) -> tuple[np.ndarray | jax.Array, bool]:
    """A batch of an encoder's examples, and whether a single one was given; ValueError for other shapes and types."""
    kind, axes = encoder.modality, len(encoder.image_size)
    single = images.ndim == axes + 1
    images = images[None] if single else images
    if images.ndim != axes + 2 or images.shape[-1] != encoder.channels or not len(images):
        wanted = f"{_SHAPES[kind]}, {encoder.channels}]"
        made = ": ijepa_jax.preprocess makes such of files and of images of other sizes" if kind == "image" else ""
        if images.ndim == axes + 2 and images.shape[1] == encoder.channels:
            order = (0, *range(2, images.ndim), 1)
            made = f": {kind}s.transpose{order} puts channels last"
        raise ValueError(f"{kind}s of shape {list(images.shape)} must be [B, {wanted} or [{wanted}{made}")
    if kind == "signal" and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"signals of {images.dtype} must be float: {_STANDARDISED}")
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{kind}s of {images.dtype} must be uint8 (0 .. 255), or float already normalised")
    return images, single


def _as_array(images: Images, encoder: Encoder) -> np.ndarray:
    given = [images] if _is_pillow(images) else images
    if isinstance(given, (list, tuple)) and any(map(_is_pillow, given)):
        made = [_pixels(image, encoder.channels) for image in given]
        if encoder.modality != "image":
            raise ValueError(f"images are no {encoder.modality}s, which this encoder is for: give an array")
        for image in made:
            if image.shape[:2] != tuple(encoder.image_size):
                raise ValueError(
                    f"an image of {by(image.shape[:2])} pixels (height x width) is not of the encoder's size, "
                    f"{by(encoder.image_size)}: give ijepa_jax.preprocess(images, encoder.image_size)"
                )
        return made[0] if given is not images else np.stack(made)
    first = next(iter(given), None) if isinstance(given, (list, tuple)) else given
    if isinstance(first, (str, bytes, os.PathLike)) or hasattr(first, "read"):
        raise ValueError("files are no pixels: give ijepa_jax.preprocess(files, encoder.image_size)")
    return _pixel_array(images)


def _pixel_array(images: Any) -> np.ndarray:
    """An array of anything that NumPy makes arrays of; ValueError where it does not."""
    try:
        return np.asarray(images)
    except Exception as error:  # tensors raise TypeError and RuntimeError
        ragged = "images of different sizes are no batch, ijepa_jax.preprocess makes one of them"
        tensor = "tensors are taken from the CPU, without gradients, as uint8 or float32: tensor.detach().cpu().float()"
        reason = tensor if hasattr(images, "detach") else ragged
        raise ValueError(f"{reason} ({one_line(error)})") from None


def _check_normalised(images: np.ndarray | jax.Array, encoder: Encoder) -> None:
    """Refuses floats [B, H, W, C] of which some image has not been normalised by the encoder's mean and std."""
    array, axes = jnp if isinstance(images, jax.Array) else np, tuple(range(1, images.ndim))
    finite, lows, highs = jax.device_get([array.isfinite(images).all(), images.min(axes), images.max(axes)])
    problem = "" if finite else "hold NaN or infinity"  # XLA's minimum may overlook NaN
    if encoder.modality != "signal":
        spans = (_unlike(*map(float, span), encoder) for span in zip(lows, highs, strict=True))
        problem = problem or next(filter(None, spans), "")
    if problem:
        right = "give uint8, 0 .. 255, or floats (pixels / 255 - encoder.encoder.mean) / encoder.encoder.std"
        right = f"give {_STANDARDISED}" if encoder.modality == "signal" else right
        raise ValueError(f"float {encoder.modality}s {problem}: {right}; check=False takes them as they are")


def _unlike(low: float, high: float, encoder: Encoder) -> str:
    """What tells an image's range from those that the encoder's mean and std give of pixels; empty where nothing does."""
    mean, std = np.array(encoder.mean), np.array(encoder.std)
    edges = (np.array([[-_OVERSHOOT], [1 + _OVERSHOOT]]) - mean) / std
    span = f"of {low:.4g} .. {high:.4g}"
    normal = -_NORMAL < low < -1.5 and 1.5 < high < _NORMAL
    if (low < edges.min() or high > edges.max()) and not normal:
        return f"{span} are beyond what the encoder's mean and std give"
    if (mean / std > 0.3).all() and low + 0.3 < high:  # normalised, black is well below 0
        for most, darkest, brightest in ((1, -0.1, 1.1), (2, 0, 2)):
            if darkest <= low <= 0.1 and high <= brightest:
                return f"{span} look like pixels of 0 .. {most}"
    if (mean != std).all() and -1 <= low <= -0.95 and 0.95 <= high <= 1:
        return f"{span} look like pixels scaled to -1 .. 1"
    return ""


def _is_pillow(image: Any) -> bool:
    return hasattr(image, "getexif")


def _pixels(image: Any, channels: int) -> np.ndarray:
    name = str(image) if isinstance(image, (str, os.PathLike)) else getattr(image, "filename", "")
    try:
        if isinstance(image, (str, os.PathLike)):
            image = read(Path(image).expanduser())
        elif hasattr(image, "__array__") and not _is_pillow(image):
            image = _pixel_array(image)
        elif isinstance(image, (bytearray, memoryview)):
            image = bytes(image)
        elif hasattr(image, "read"):
            name, image = getattr(image, "name", ""), image.read()
        if not _is_pillow(image) and not isinstance(image, (bytes, np.ndarray)):
            raise BadImage(f"an image must be a path, a file's bytes, a Pillow image or an array, not {type(image).__name__}")
        return decode(image, channels)
    except BadImage as error:
        raise BadImage(f"{name}: {error}" if name else str(error)) from None
