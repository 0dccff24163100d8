"""Pictures of what features hold: patch features as colours, and nearest neighbours of whole examples."""

import math
from collections.abc import Sequence

import numpy as np

from ijepa_jax.evaluate.knn import checked_features, neighbours
from ijepa_jax.settings.axes import by
from ijepa_jax.visualize.canvas import Canvas, is_wide, over_pixels
from ijepa_jax.visualize.sheet import save_grid

_COLUMNS = 8  # examples side by side before a new pair of rows begins


def draw_pca(path, images, patches, grid: Sequence[int], random_init=None) -> None:
    """Draws examples and, below each, its patches' first three principal components as red, green and blue.

    One basis and one scale serve all examples, so that a colour means the same thing in every one of them.

    Args:
      path: the PNG file to write.
      images: uint8 [n, H, W, channels], or videos or signals, see `Canvas`.
      patches: float [n, N, D], features of the N patches of the grid in row-major order.
      grid: patches along each axis.
      random_init: float [n, N, D], a random encoder's, drawn below them in a basis of their own; None for none.

    Raises:
      ValueError: patches that do not fill the grid, or are not finite.
    """
    canvas = Canvas.of(images, grid)
    lines = {canvas.kind: canvas.pictures(images), "PCA": as_colours(patches, images, grid)}
    if random_init is not None:
        lines["random init"] = as_colours(random_init, images, grid)
    first = lines[canvas.kind][0]
    if is_wide(first):
        return save_grid(path, [*zip(*lines.values(), strict=True)], [*lines])
    blank, rows = np.full_like(first, 255), []
    for start in range(0, len(images), _COLUMNS):
        for pictures in lines.values():
            row = list(pictures[start : start + _COLUMNS])
            rows.append(row + [blank] * (min(_COLUMNS, len(images)) - len(row)))
    save_grid(path, rows, [""] * len(rows[0]), [*lines] * (len(rows) // len(lines)))


def as_colours(patches, images, grid: Sequence[int]) -> np.ndarray:
    """Patch features [n, N, D] as colours: pictures uint8 [n, frames, H, W, 3], in which each pixel has its patch's."""
    canvas = Canvas.of(images, grid)
    patches = checked_patches(patches, canvas, len(images))
    colours = (255 * pca_colours(patches)).round().astype(np.uint8)
    return over_pixels(colours[:, canvas.patches], canvas.size)


def checked_patches(patches, canvas: Canvas, count: int) -> np.ndarray:
    """Patch features of so many examples as an array [count, N, D]; ValueError where they have another shape."""
    patches = np.asarray(patches)
    if patches.ndim != 3 or patches.shape[:2] != (count, math.prod(canvas.grid)):
        fit = f"{count} {canvas.kind}s on a {by(canvas.grid)} grid do not fit"
        raise ValueError(f"{fit} patch features {list(patches.shape)}")
    return patches


def pca_colours(patches) -> np.ndarray:
    """Maps features [..., D] to colours [..., 3] in 0 .. 1 by their first three principal components.

    Components run from their 1st to their 99th percentile; one that does not vary is drawn as mid-grey. Their signs are
    fixed (the largest loading is positive), so that the same features always give the same picture.
    """
    flat = checked_features(np.reshape(patches, (-1, np.shape(patches)[-1])), "patch")
    scores = principal_components(flat, 3)
    low, high = np.percentile(scores, [1, 99], axis=0)
    spread = high - low
    varies = spread > 1e-6 * max(np.abs(flat).max(), np.finfo(np.float64).tiny)
    colours = np.where(varies, (scores - low) / np.where(varies, spread, 1.0), 0.5)
    return np.clip(colours, 0.0, 1.0).reshape(*np.shape(patches)[:-1], 3)


def principal_components(features: np.ndarray, count: int) -> np.ndarray:
    """Scores of features (float [N, D]) on their first principal components: float64 [N, count], zeros past the Dth.

    Signs are fixed: the largest loading of each component is positive.
    """
    centred = np.asarray(features, np.float64)
    centred = centred - centred.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :count]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return np.pad(centred @ axes, ((0, 0), (0, count - axes.shape[1])))


def nearest(queries, bank, k: int) -> np.ndarray:
    """The k bank features (float [N, D]) nearest to each query (float [n, D]) by cosine similarity: int32 [n, min(k, N)]."""
    return neighbours(bank, queries, k)[0]


def nearest_others(bank, positions, k: int) -> np.ndarray:
    """The k features of a bank (float [N, D]) nearest to those at `positions` (int [n]), themselves left out: int32 [n, k].

    They are N - 1 where the bank has no more. An image that it holds twice has its double for a neighbour.
    """
    positions = np.asarray(positions)
    found = nearest(np.asarray(bank)[positions], bank, k + 1)
    itself = found == positions[:, None]
    itself[~itself.any(axis=1), -1] = True  # nearer ones of equal features have crowded it out
    return found[~itself].reshape(len(found), -1)


def label_agreement(labels, positions, found) -> tuple[float, float]:
    """How often neighbours share their query's label, and how often any other image of the bank does: shares in 0 .. 1.

    Args:
      labels: int [N], of the bank.
      positions: int [n], the queries' places in the bank.
      found: int [n, k], their neighbours' places, from `nearest_others`.
    """
    labels, positions = np.asarray(labels), np.asarray(positions)
    wanted = labels[positions]
    _, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    chance = (counts[which[positions]] - 1) / max(1, len(labels) - 1)
    return float(np.mean(labels[found] == wanted[:, None])), float(chance.mean())


def draw_neighbours(path, query_images, bank_images, neighbours, titles=None, captions=None) -> None:
    """Draws a row for each query: the example, then its neighbours in the bank, nearest first.

    Args:
      path: the PNG file to write.
      query_images: uint8 [n, H, W, channels], or videos or signals, see `Canvas`.
      bank_images: likewise, N of them.
      neighbours: int [n, k], from `nearest`.
      titles: list of n str that name the rows; None for none.
      captions: for each row the text below the query and each neighbour, n lists of 1 + k str; None for none.

    Raises:
      ValueError: another number of rows of neighbours than of queries.
    """
    neighbours, canvas = np.asarray(neighbours), Canvas.of(query_images)
    if len(neighbours) != len(query_images):
        raise ValueError(f"{len(query_images)} query {canvas.kind}s but neighbours of {len(neighbours)}")
    queries, found = canvas.pictures(query_images), canvas.pictures(np.asarray(bank_images)[neighbours.ravel()])
    found = found.reshape(*neighbours.shape, *found.shape[1:])
    rows = [[query, *row] for query, row in zip(queries, found, strict=True)]
    columns = ["query", "nearest", *map(str, range(2, neighbours.shape[1] + 1))]
    save_grid(path, rows, columns[: 1 + neighbours.shape[1]], titles, captions=captions, gap_after=1)
