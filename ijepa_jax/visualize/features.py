"""Pictures of what features hold: patch features as colours, and nearest neighbours of whole images."""

import numpy as np

from ijepa_jax.evaluate.knn import checked_features, neighbours
from ijepa_jax.visualize.masks import as_rgb, save_grid

_COLUMNS = 8  # images side by side before a new pair of rows begins


def draw_pca(path, images, patches, grid: tuple[int, int]) -> None:
    """Draws images and, below each, its patch features as colours: their first three principal components as red, green, blue.

    One basis and one scale serve all images, so that a colour means the same thing in every one of them.

    Args:
      path: the PNG file to write.
      images: uint8 [n, H, W, channels].
      patches: float [n, N, D], features of N = rows * columns patches in row-major order.
      grid: (rows, columns).

    Raises:
      ValueError: patches that do not fill the grid, or are not finite.
    """
    images, patches = as_rgb(images), np.asarray(patches)
    if patches.ndim != 3 or patches.shape[:2] != (len(images), grid[0] * grid[1]):
        raise ValueError(f"{len(images)} images on a {grid[0]}x{grid[1]} grid do not fit patch features {list(patches.shape)}")
    colours = (255 * pca_colours(patches)).round().astype(np.uint8).reshape(len(images), *grid, 3)
    height, width = images.shape[1:3]
    rows_of_pixel, columns_of_pixel = np.arange(height) * grid[0] // height, np.arange(width) * grid[1] // width
    colours = colours[:, rows_of_pixel][:, :, columns_of_pixel]  # each pixel gets its patch's colour
    blank = np.full_like(images[0], 255)
    rows = []
    for start in range(0, len(images), _COLUMNS):
        for pictures in (images, colours):
            row = list(pictures[start : start + _COLUMNS])
            rows.append(row + [blank] * (min(_COLUMNS, len(images)) - len(row)))
    save_grid(path, rows, [""] * len(rows[0]), ["image", "PCA"] * (len(rows) // 2))


def pca_colours(patches) -> np.ndarray:
    """Maps features [..., D] to colours [..., 3] in 0 .. 1 by their first three principal components.

    Components run from their 1st to their 99th percentile; one that does not vary is drawn as mid-grey. Their signs are
    fixed (the largest loading is positive), so that the same features always give the same picture.
    """
    flat = checked_features(np.reshape(patches, (-1, np.shape(patches)[-1])), "patch").astype(np.float64)
    centred = flat - flat.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :3]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    scores = np.pad(centred @ axes, ((0, 0), (0, 3 - axes.shape[1])))
    low, high = np.percentile(scores, [1, 99], axis=0)
    spread = high - low
    varies = spread > 1e-6 * max(np.abs(flat).max(), np.finfo(np.float64).tiny)
    colours = np.where(varies, (scores - low) / np.where(varies, spread, 1.0), 0.5)
    return np.clip(colours, 0.0, 1.0).reshape(*np.shape(patches)[:-1], 3)


def nearest(queries, bank, k: int) -> np.ndarray:
    """The k bank features (float [N, D]) nearest to each query (float [n, D]) by cosine similarity: int32 [n, min(k, N)]."""
    return neighbours(bank, queries, k)[0]


def draw_neighbours(path, query_images, bank_images, neighbours, titles=None) -> None:
    """Draws a row for each query image: the image, then its neighbours in the bank, nearest first.

    Args:
      path: the PNG file to write.
      query_images: uint8 [n, H, W, channels].
      bank_images: uint8 [N, H, W, channels].
      neighbours: int [n, k], from `nearest`.
      titles: list of n str that name the rows; None for none.

    Raises:
      ValueError: another number of rows of neighbours than of queries.
    """
    neighbours = np.asarray(neighbours)
    if len(neighbours) != len(query_images):
        raise ValueError(f"{len(query_images)} query images but neighbours of {len(neighbours)}")
    queries, found = as_rgb(query_images), as_rgb(np.asarray(bank_images)[neighbours.ravel()])
    found = found.reshape(*neighbours.shape, *found.shape[1:])
    rows = [[query, *row] for query, row in zip(queries, found, strict=True)]
    save_grid(path, rows, ["query", "nearest", *map(str, range(2, neighbours.shape[1] + 1))], titles, gap_after=1)
