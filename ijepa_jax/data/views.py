"""What is shown of an example, an image, a video or a signal: a random crop in training, the centre in an evaluation.

Crops and resizing act on rows and columns, and are the same for all frames of a video. Of frames and of a signal's values a
run of consecutive ones is shown, as they are: at random in training, the middle ones in an evaluation.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import numpy as np

from ijepa_jax.data import crops, images
from ijepa_jax.data.multiview import Views
from ijepa_jax.data.source import DataError
from ijepa_jax.settings.axes import AXES, by, modality

_LARGEST = 4  # times as large as what is probed a view may be: no image has more to show
_TAKEN = (*AXES, "index", "source", "bad")  # names of what else batches hold
UNIFORMS = images.CROP_UNIFORMS + 1  # that a random view takes: of the crop, and of where a run begins


class Augment(Protocol):
    """A random change of an image, uint8 [H, W, C] to the same, as a pure function of uniforms in [0, 1); workers pickle it."""

    @property
    def uniforms(self) -> int:
        """How many of them a call takes."""

    def __call__(self, image: np.ndarray, u: Sequence[float]) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """`images.color_jitter` with strengths in the usual proportion."""

    strength: float
    uniforms: ClassVar[int] = images.JITTER_UNIFORMS

    def __call__(self, image: np.ndarray, u: Sequence[float]) -> np.ndarray:
        return images.color_jitter(image, u, *(strength * self.strength for strength in (0.8, 0.8, 0.8, 0.2)))


@dataclasses.dataclass(frozen=True)
class View:
    """What is shown of an example: [*size, channels], uint8 of an image (H, W) or video (T, H, W), float32 of a signal (L,).

    In training (`cropping` random) it is a random resized crop, flipped half the time if `flip`, jittered with strengths 0.8,
    0.8, 0.8, 0.2 times `color_jitter`, then changed by `augment`, all frames of a video alike. With `cropping` center training
    shows what an evaluation does, and with none both show examples of this size as they are. Crops of files are nearly the
    exact ones (see `crops.crop_into`), or `exact`: torchvision's. Signals are standardised by `mean` and `std`; pixels are not.
    """

    size: tuple[int, ...]
    channels: int = 3
    crop_scale: tuple[float, float] = (0.3, 1.0)  # shares of the image's area
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, relative to that of `size`: 1 distorts nothing
    flip: bool = False
    color_jitter: float = 0.0
    augment: Augment | None = None
    exact: bool = False
    center: float = 1.0  # share of the short side that an evaluation sees, see `images.center_crop`
    cropping: str = "random"  # a name of CROPPING
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @functools.cached_property
    def modality(self) -> str:
        """What examples are, as which batches hold them."""
        return modality(self.size)

    def check_views(self, views: Sequence[Views], others: Sequence[str] = ()) -> None:
        """Raises ValueError where several views cannot be shown in place of this one, beside arrays of other names."""
        if not isinstance(views, tuple | list) or not all(isinstance(of, Views) for of in views):
            raise ValueError(f"views must be a tuple of Views, not {views!r:.100}")
        if not views:
            return
        names = [name for of in views for name in of.blank(0)]
        for name in names:
            if name in (*_TAKEN, *others) or names.count(name) > 1:
                raise ValueError(f"views {name!r}: batches hold something else by this name, give another")
        if self.modality != "image" or {of.channels for of in views} != {self.channels}:
            shown = f"data.image_size {tuple(self.size)} and data.channels {self.channels}"
            raise ValueError(f"views are of images and of their channels: these of {views[0].channels} do not fit {shown}")
        for of in views:
            if any(side > _LARGEST * usual for side, usual in zip(of.size, self.size, strict=True)):
                given, usual = by(of.size), by(self.size)
                raise ValueError(
                    f"views {of.name!r} of {given} are over {_LARGEST} times data.image_size {usual}, which is probed"
                )
        if len({of.exact for of in views}) > 1:
            raise ValueError("views are crops of one decoded image: all must be exact, or none")
        if self.color_jitter or self.cropping != "random":
            raise ValueError(
                "views are random crops with changes of their own: leave data.cropping 'random' and data.color_jitter 0"
            )

    def blank(self, count: int) -> np.ndarray:
        """Room for so many examples: zeros."""
        return np.zeros((count, *self.size, self.channels), np.float32 if self.modality == "signal" else np.uint8)

    def shown_at_random(self, out: np.ndarray, data: np.ndarray | bytes, u: Sequence[float]) -> None:
        """Fills `out` with what training shows of an example, before it is flipped and changed; `u`: `UNIFORMS` uniforms.

        Raises `images.BadImage` for what is no image, and `DataError` for an example of a wrong size with `cropping` none.
        """
        if self.cropping != "random":
            out[:] = self.shown(data)
        elif self.modality == "image":
            crops.crop_into(out, data, lambda height, width: self._box(height, width, u), self.exact)
        else:
            part = self._run(data, u[-1])
            if self.modality == "signal":
                out[:] = self._standardised(part)
                return
            box = self._box(*part.shape[1:3], u)
            for frame, pixels in zip(out, part, strict=True):
                crops.crop_into(frame, pixels, lambda *_: box, self.exact)

    def shown(self, data: np.ndarray | bytes) -> np.ndarray:
        """What an evaluation shows of an example. Raises likewise."""
        if self.modality == "image":
            return self._central(data)
        part = self._run(data, 0.5)
        return self._standardised(part) if self.modality == "signal" else np.stack([*map(self._central, part)])

    def _central(self, data: np.ndarray | bytes) -> np.ndarray:
        size, pixels = self.size[-2:], images.decode(data, self.channels)
        if self.cropping != "none":
            return images.center_crop(pixels, size, self.center)
        if pixels.shape[:2] != tuple(size):
            raise DataError(
                f"{by(pixels.shape[:2])} pixels are not data.image_size {by(size)}, and data.cropping 'none' cuts nothing"
            )
        return pixels

    def _box(self, height: int, width: int, u: Sequence[float]) -> images.Box:
        """What a random crop takes of an image."""
        return images.random_resized_crop_box(height, width, u[:-1], self.crop_scale, self._aspect)

    @functools.cached_property
    def _aspect(self) -> tuple[float, float]:
        """Of random crops, width / height."""
        rows, columns = self.size[-2:]
        return tuple(ratio * (columns / rows) for ratio in self.crop_aspect)

    def _run(self, data: np.ndarray, u: float) -> np.ndarray:
        """As many consecutive frames or values as are shown; `u` in [0, 1) says which of those that there are."""
        wanted, spare = self.size[0], len(data) - self.size[0]
        if spare < 0 or (spare and self.cropping == "none"):
            name = AXES[self.modality][0]
            raise DataError(
                f"a {self.modality} of {name} {len(data)} is no example for data.image_size {by(self.size)}, {name} first"
                + (", which data.cropping 'none' does not cut" if spare > 0 else f": there are but {len(data)}")
            )
        start = int(u * (spare + 1))
        return data[start : start + wanted]

    def _standardised(self, signal: np.ndarray) -> np.ndarray:
        """float32 [L, channels], less the mean, by the deviation."""
        values = np.asarray(signal, np.float32).reshape(len(signal), -1)
        if values.shape[1] != self.channels:
            raise images.BadImage(f"a signal of {values.shape[1]} channels is not one of {self.channels}")
        return (values - np.float32(self.mean)) / np.float32(self.std)


def examples(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """The examples of a batch: its `image`, `video` or `signal`."""
    return next(batch[name] for name in AXES if name in batch)
