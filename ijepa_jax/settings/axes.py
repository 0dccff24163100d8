"""Examples by their number of axes, channels not counted: what they are called, and how they divide into patches."""

from collections.abc import Sequence

import numpy as np

AXES = {"signal": ("length",), "image": ("height", "width"), "video": ("frames", "height", "width")}
CROPPING = ("random", "center", "none")  # what training shows of examples, see `data.views.View`
POSITION_FEATURES = {1: 2, 2: 4, 3: 1}  # what a network's width divides into for sine-cosine positions, by number of axes
_UNITS = {"signal": "values", "image": "pixels", "video": "frames and pixels"}


def modality(sizes: Sequence[int]) -> str:
    """What examples of these sizes, one for each axis, are: a name of AXES. Raises ValueError for another number of axes."""
    for name, axes in AXES.items():
        if len(axes) == len(sizes):
            return name
    known = ", ".join(f"{name}s ({', '.join(axes)})" for name, axes in AXES.items())
    raise ValueError(f"sizes {tuple(sizes)} have {len(sizes)} axes: there are {known}")


def each_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """One value for each axis, of one that is for all, or of as many. Raises ValueError for another number of them."""
    values = tuple(np.ravel(value).tolist())
    if len(values) not in (1, axes):
        raise ValueError(f"{values} are {len(values)} values for {axes} axes: give one for all, or one for each")
    return values * axes if len(values) == 1 else values


def patch_grid(sizes: Sequence[int], patch: int | Sequence[int]) -> tuple[int, ...]:
    """Patches along each axis of examples of these sizes. Raises ValueError where they do not divide."""
    kind, patches = modality(sizes), each_axis(patch, len(sizes))
    if any(size < side or size % side for size, side in zip(sizes, patches, strict=True)):
        raise ValueError(f"{kind} of {by(sizes)} {_UNITS[kind]} does not divide into patches of {by(patches)}")
    return tuple(size // side for size, side in zip(sizes, patches, strict=True))


def by(sizes: Sequence[int]) -> str:
    """Sizes in words: 224x224."""
    return "x".join(map(str, sizes))
