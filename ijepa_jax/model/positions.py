"""Position tables: fixed sine-cosine ones of one, two or three axes, and how a table of one grid is resized for another."""

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.settings.architectures import INTERPOLATIONS
from ijepa_jax.settings.axes import POSITION_FEATURES

# bicubic: torch's `interpolate` without antialiasing, as transformers and the fine-tuning code of most ViTs; cubic
# coefficient -0.75, the border repeated. bicubic_antialias: with antialiasing, as timm; coefficient -0.5, weights beyond the
# border left out.


_RESIZE = {1: "ir,rd->id", 2: "ir,jc,rcd->ijd", 3: "ht,ir,jc,trcd->hijd"}  # by the number of axes


def sincos(width: int, grid: tuple[int, ...]) -> np.ndarray:
    """Fixed sine-cosine position table of a grid of one, two or three axes: float32 [N, width], in raster order.

    Each axis has n features, [sin(pos * w), cos(pos * w)] with w_i = 10000 ** (-i / (n / 2)). Of (rows, columns) the first
    half encodes the column and the second the row (I-JEPA, MAE); of (steps, rows, columns) the thirds encode step, row and
    column, n = 2 * ceil(width / 6), cut to the width (V-JEPA, as published); of (length,) there is but one.
    """
    order, each = {1: ((0,), width), 2: ((1, 0), width // 2), 3: ((0, 1, 2), 2 * -(-width // 6))}[len(grid)]
    if width % (least := POSITION_FEATURES[len(grid)]):
        raise ValueError(f"width {width} must be a multiple of {least} for sine-cosine positions of {len(grid)} axes")
    omega = 10000.0 ** (-np.arange(each // 2) / (each / 2))
    positions = np.indices(grid).reshape(len(grid), -1, 1)
    table = np.concatenate([f(positions[axis] * omega) for axis in order for f in (np.sin, np.cos)], axis=1)
    return table[:, :width].astype(np.float32)


def resized(
    table: np.ndarray | jax.Array, trained_grid: tuple[int, ...], grid: tuple[int, ...], interpolation: str
) -> jax.Array:
    """A table [N, width] of `trained_grid` resized for `grid`, of as many axes, by a name of INTERPOLATIONS."""
    if tuple(trained_grid) == tuple(grid):
        return jnp.asarray(table)
    if len(trained_grid) != len(grid):
        raise ValueError(f"positions of a grid of {len(trained_grid)} axes do not serve one of {len(grid)}")
    weights = [_cubic_weights(old, new, interpolation) for old, new in zip(trained_grid, grid, strict=True)]
    old = jnp.asarray(table).reshape(*trained_grid, -1)
    return jnp.einsum(_RESIZE[len(grid)], *weights, old, precision="highest").reshape(-1, old.shape[-1])


def _cubic_weights(old: int, new: int, interpolation: str) -> np.ndarray:
    """The matrix float32 [new, old] that resizes a line of `old` samples, half-pixel centres."""
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation {interpolation!r} must be one of {', '.join(INTERPOLATIONS)}")
    antialias = interpolation == "bicubic_antialias"
    coefficient, stretch = (-0.5, max(1.0, old / new)) if antialias else (-0.75, 1.0)
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    taps = np.arange(-int(2 * stretch) - 1, int(2 * stretch) + 3)
    place = np.floor(centre)[:, None] + taps
    weight = _cubic(np.abs(place - centre[:, None]) / stretch, coefficient)
    if antialias:
        weight = np.where((place >= 0) & (place < old), weight, 0)
        weight /= weight.sum(axis=1, keepdims=True)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], np.clip(place, 0, old - 1).astype(int)), weight)
    return matrix.astype(np.float32)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel (Keys 1981) with coefficient `a` at distances in samples."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
