"""Position tables: fixed 2-D sine-cosine ones, and the ways in which a table of one grid is resized for another."""

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.settings.architectures import INTERPOLATIONS

# bicubic: torch's `interpolate` without antialiasing, as transformers and the fine-tuning code of most ViTs; cubic
# coefficient -0.75, the border repeated. bicubic_antialias: with antialiasing, as timm; coefficient -0.5, weights beyond the
# border left out.


def sincos(width: int, grid: tuple[int, int]) -> np.ndarray:
    """Fixed 2-D sine-cosine position table of a grid (rows, columns): float32 [rows * columns, width].

    The first half of the features encodes the column, the second half the row; each half is [sin(pos * w), cos(pos * w)]
    with w_i = 10000 ** (-i / (width / 4)).
    """
    if width % 4:
        raise ValueError(f"width {width} must be a multiple of 4 for 2-D sine-cosine positions")
    omega = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    angles = [position.reshape(-1, 1) * omega for position in (column, row)]
    return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


def resized(
    table: np.ndarray | jax.Array, trained_grid: tuple[int, int], grid: tuple[int, int], interpolation: str
) -> jax.Array:
    """A table [rows * columns, width] of `trained_grid` resized for `grid`, by a name of INTERPOLATIONS."""
    if tuple(trained_grid) == tuple(grid):
        return jnp.asarray(table)
    rows, columns = (_cubic_weights(old, new, interpolation) for old, new in zip(trained_grid, grid, strict=True))
    old = jnp.asarray(table).reshape(*trained_grid, -1)
    return jnp.einsum("ir,jc,rcd->ijd", rows, columns, old, precision="highest").reshape(-1, old.shape[-1])


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
