"""Pictures of what a patch's features have in common with those of all others of its example."""

from collections.abc import Sequence

import numpy as np

from ijepa_jax.visualize.canvas import PATCH_PIXELS, Canvas, edge, over_pixels
from ijepa_jax.visualize.features import checked_patches
from ijepa_jax.visualize.sheet import Scale, save_grid

_MAP_PIXELS = 96  # at least so many pixels along the longer side of a map
_MARK = (255, 87, 34)
_GAP = 4  # pixels between maps
_ALONG = 5  # patches that are marked along a strip


def spread_patches(grid: tuple[int, int], side: int = 3) -> np.ndarray:
    """Patches evenly spread over a grid, `side` along each axis (or as many as there are): int [rows, columns], indices."""
    rows, columns = ((2 * np.arange(count) + 1) * length // (2 * count) for length in grid for count in [min(side, length)])
    return rows[:, None] * grid[1] + columns


def patches_along(patches: np.ndarray, count: int = _ALONG) -> np.ndarray:
    """Patches (of int [frames, rows, columns]) evenly spread along a strip of frames, at varying heights: int [<= count]."""
    frames, rows, columns = patches.shape
    across = (2 * np.arange(count) + 1) * frames * columns // (2 * count)
    down = (2 * (2 * np.arange(count) % count) + 1) * rows // (2 * count)
    found = patches[across // columns, down, across % columns]
    return found[np.sort(np.unique(found, return_index=True)[1])]


def similarities(patches, queries) -> np.ndarray:
    """Cosine similarity of patches (float [n, N, D]) to some of their image, `queries` (int [Q]): float32 [n, Q, N].

    A feature vector of zeros has similarity 0 to everything.
    """
    patches = np.asarray(patches, np.float32)
    length = np.linalg.norm(patches, axis=-1, keepdims=True)
    unit = np.divide(patches, length, out=np.zeros_like(patches), where=length > 0)
    return np.clip(unit[:, np.ravel(queries)] @ unit.swapaxes(1, 2), -1.0, 1.0)


def draw_similarity(path, images, patches, grid: Sequence[int]) -> None:
    """Draws a row for each example: the example with some patches marked, and for each of these its similarity to all others.

    The maps lie as their patches do in an image; those of videos and signals follow each other. One scale of colours serves
    all. It reaches up to 1, and down to what one in a hundred pairs of patches falls short of.

    Args:
      path: the PNG file to write.
      images: uint8 [n, H, W, channels], or videos or signals, see `Canvas`.
      patches: float [n, N, D], features of the N patches of the grid in row-major order.
      grid: patches along each axis.

    Raises:
      ValueError: patches that do not fill the grid.
    """
    canvas = Canvas.of(images, grid)
    patches, pictures = checked_patches(patches, canvas, len(images)), canvas.pictures(images, PATCH_PIXELS)
    in_order = canvas.kind != "image"
    queries = patches_along(canvas.patches) if in_order else spread_patches(canvas.grid)
    maps = similarities(patches, queries)
    scale = Scale("viridis", min(0.99, float(np.percentile(maps, 1))), 1.0, "cosine similarity to the marked patch")
    rows = []
    for large, of_example in zip(pictures, scale.colours(maps[..., canvas.patches]), strict=True):
        marked = large.copy()
        for query in queries.ravel():
            _mark(marked, canvas.patches == query, width=2)
        if in_order:
            drawn = over_pixels(of_example, large.shape[-3:-1])
            _mark_each(drawn, queries, canvas, width=2)
            rows.append([marked, *drawn])
        else:
            rows.append([marked, _mosaic(of_example, queries, canvas)])
    titles = [f"similarity {i + 1}" for i in range(len(queries))] if in_order else ["similarity to each marked patch"]
    save_grid(path, rows, [canvas.kind, *titles], scale=scale, side=2.6)


def _mosaic(colours: np.ndarray, queries: np.ndarray, canvas: Canvas) -> np.ndarray:
    """Maps uint8 [r * c, 1, rows, columns, 3] of r x c patches as one picture [H, W, 3] with gaps between them."""
    cell = [-(-_MAP_PIXELS * (side // count) // max(canvas.size)) for side, count in zip(canvas.size, canvas.grid, strict=True)]
    maps = over_pixels(colours, np.multiply(cell, canvas.grid))
    _mark_each(maps, queries.ravel(), canvas, width=max(1, min(cell) // 6))
    picture = maps[:, 0].reshape(*queries.shape, *maps.shape[2:])
    picture = np.pad(picture, ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    picture = picture.swapaxes(1, 2).reshape(picture.shape[0] * picture.shape[2], -1, 3)
    return picture[:-_GAP, :-_GAP]


def _mark_each(pictures: np.ndarray, queries: np.ndarray, canvas: Canvas, width: int) -> None:
    """Outlines one patch in each picture, in place."""
    for picture, query in zip(pictures, queries, strict=True):
        _mark(picture, canvas.patches == query, width)


def _mark(picture: np.ndarray, inside: np.ndarray, width: int) -> None:
    """Outlines cells (bool [frames, rows, columns]) in a picture, in place."""
    picture[edge(over_pixels(inside[..., None], picture.shape[-3:-1])[..., 0], width)] = _MARK
