"""Several random views of an image, as joint-embedding methods compare them, as they ask for them (see `changes.py`)."""

import dataclasses

import numpy as np

# What is drawn of each view, in the order of NAME_drawn: its box as shares of the image's height and width, whether it is
# mirrored, factors (1: unchanged), the turn of the hue (of the circle), whether it is grey, the blur's sigma (pixels, 0: none),
# whether it is solarised. The order of a jitter's four changes is not among them.
PARAMETERS = (
    "top", "left", "height", "width", "flip", "brightness", "contrast", "saturation", "hue", "grey", "blur", "solarise",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Views:
    """`count` views of an image, which batches hold as `name`, uint8 [B, count, *size, channels].

    Each is a random resized crop of `size`, then, by their probabilities, mirrored, jittered (torchvision's ColorJitter, its
    strengths being those of brightness, contrast, saturation and hue), made grey, blurred and solarised. Grey images have
    neither saturation nor hue. With `keep_drawn` batches hold `PARAMETERS` of each, too: NAME_drawn, float32 [B, count, 12].
    """

    name: str
    count: int
    size: tuple[int, int]
    channels: int = 3
    scale: tuple[float, float] = (0.3, 1.0)  # shares of the image's area
    aspect: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, relative to that of `size`
    flip: float = 0.5
    jitter: float = 0.8
    strengths: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grey: float = 0.2
    blur: float = 0.5
    kernel: int = 23  # pixels
    sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    solarise: float = 0.2
    threshold: int = 128
    bicubic: bool = False
    exact: bool = False
    keep_drawn: bool = False

    def __post_init__(self):
        """Raises ValueError for what makes no sense."""
        lengths = {"size": 2, "scale": 2, "aspect": 2, "sigma": 2, "strengths": 4}
        for name, length in lengths.items():
            if not isinstance(given := getattr(self, name), tuple) or len(given) != length:
                raise ValueError(f"views {self.name!r}: {name} {given!r} must be a tuple of {length} numbers")
        shares = (*self.scale, self.flip, self.jitter, self.grey, self.blur, self.solarise)
        whole = all(type(number) is int and number > 0 for number in (self.count, *self.size))
        for wrong, what in (
            (not isinstance(self.name, str) or not self.name, "the name must be a text"),
            (not whole, f"count {self.count} and size {self.size} must be whole numbers, 1 or more"),
            (not 0 <= self.threshold <= 255, f"threshold {self.threshold} must be from 0 to 255"),
            (self.channels not in (1, 3), f"channels {self.channels} must be 1 or 3: changes are of grey or RGB images"),
            (not all(0 <= share <= 1 for share in shares), "scale and probabilities must be from 0 to 1"),
            (not 0 < self.scale[0] <= self.scale[1], f"scale {self.scale} must rise from above 0"),
            (not 0 < self.aspect[0] <= self.aspect[1], f"aspect {self.aspect} must rise from above 0"),
            (not 0 < self.sigma[0] <= self.sigma[1], f"sigma {self.sigma} must rise from above 0"),
            (self.kernel < 3 or self.kernel % 2 == 0, f"kernel {self.kernel} must be odd, 3 or more"),
            (
                min(self.strengths) < 0 or self.strengths[3] > 0.5,
                f"strengths {self.strengths} must be 0 or more, of hue to 0.5",
            ),
        ):
            if wrong:
                raise ValueError(f"views {self.name!r}: {what}")

    def blank(self, rows: int) -> dict[str, np.ndarray]:
        """Room in a batch for these views of so many images: zeros."""
        room = {self.name: np.zeros((rows, self.count, *self.size, self.channels), np.uint8)}
        return room | (
            {f"{self.name}_drawn": np.zeros((rows, self.count, len(PARAMETERS)), np.float32)} if self.keep_drawn else {}
        )
