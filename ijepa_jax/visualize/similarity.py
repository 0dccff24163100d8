"""Pictures of what a patch's features have in common with those of all others of its image."""

import numpy as np

from ijepa_jax.visualize.features import checked_patches
from ijepa_jax.visualize.masks import Scale, as_rgb, edge, enlarged, save_grid, seen_patches

_MAP_PIXELS = 96  # at least so many pixels along the longer side of a map
_MARK = (255, 87, 34)
_GAP = 4  # pixels between maps


def spread_patches(grid: tuple[int, int], side: int = 3) -> np.ndarray:
    """Patches evenly spread over a grid, `side` along each axis (or as many as there are): int [rows, columns], indices."""
    rows, columns = ((2 * np.arange(count) + 1) * length // (2 * count) for length in grid for count in [min(side, length)])
    return rows[:, None] * grid[1] + columns


def similarities(patches, queries) -> np.ndarray:
    """Cosine similarity of patches (float [n, N, D]) to some of their image, `queries` (int [Q]): float32 [n, Q, N].

    A feature vector of zeros has similarity 0 to everything.
    """
    patches = np.asarray(patches, np.float32)
    length = np.linalg.norm(patches, axis=-1, keepdims=True)
    unit = np.divide(patches, length, out=np.zeros_like(patches), where=length > 0)
    return np.clip(unit[:, np.ravel(queries)] @ unit.swapaxes(1, 2), -1.0, 1.0)


def draw_similarity(path, images, patches, grid: tuple[int, int]) -> None:
    """Draws a row for each image: the image with some patches marked, and for each of these its similarity to all others.

    The maps lie as their patches do in the image; one scale of colours serves all. It reaches up to 1, and down to what one in
    a hundred pairs of patches falls short of.

    Args:
      path: the PNG file to write.
      images: uint8 [n, H, W, channels].
      patches: float [n, N, D], features of N = rows * columns patches in row-major order.
      grid: (rows, columns).

    Raises:
      ValueError: patches that do not fill the grid.
    """
    images = as_rgb(images)
    patches = checked_patches(patches, len(images), grid)
    queries = spread_patches(grid)
    maps = similarities(patches, queries).reshape(len(images), *queries.shape, *grid)
    scale = Scale("viridis", min(0.99, float(np.percentile(maps, 1))), 1.0, "cosine similarity to the marked patch")
    rows = []
    for large, of_image in zip(enlarged(images, images.shape[1] // grid[0]), maps, strict=True):
        marked = large.copy()
        for query in queries.ravel():
            _mark(marked, query, grid, width=2)
        rows.append([marked, _mosaic(scale.colours(of_image), queries, grid)])
    save_grid(path, rows, ["image", "similarity to each marked patch"], scale=scale, side=2.6)


def _mosaic(colours: np.ndarray, queries: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Maps uint8 [r, c, rows, columns, 3] as one picture with gaps between them, each with its patch marked."""
    size = -(-_MAP_PIXELS // max(grid))
    picture = colours.repeat(size, axis=2).repeat(size, axis=3)
    for place in np.ndindex(queries.shape):
        _mark(picture[place], queries[place], grid, width=max(1, size // 6))
    picture = np.pad(picture, ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    picture = picture.swapaxes(1, 2).reshape(picture.shape[0] * picture.shape[2], -1, 3)
    return picture[:-_GAP, :-_GAP]


def _mark(picture: np.ndarray, patch: int, grid: tuple[int, int], width: int) -> None:
    """Outlines a patch in a picture of the whole grid, in place."""
    size = picture.shape[0] // grid[0]
    inside = seen_patches([patch], 1, grid).repeat(size, axis=0).repeat(size, axis=1)
    picture[edge(inside, width)] = _MARK
