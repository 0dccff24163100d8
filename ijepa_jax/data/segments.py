"""Segmentation masks as classes of patches, for probes of patch features."""

import numpy as np


def patch_classes(segments: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The class that most pixels of each patch have, the lowest of those where there are several.

    segments: integers from 0 up [n, H, W]. grid: (rows, columns) of patches, in which an encoder's tokens are too.
    Returns int64 [n, rows * columns]. Raises ValueError where H x W pixels do not divide into the grid.
    """
    count, height, width = segments.shape
    rows, columns = grid
    if height % rows or width % columns:
        raise ValueError(f"segments of {height} x {width} pixels do not divide into {rows} x {columns} patches")
    classes = int(segments.max(initial=0)) + 1
    patch = np.arange(rows * columns).reshape(grid).repeat(height // rows, 0).repeat(width // columns, 1)
    majority = np.empty((count, rows * columns), np.int64)
    for i, segment in enumerate(segments):
        votes = np.bincount((patch * classes + segment).ravel(), minlength=rows * columns * classes)
        majority[i] = votes.reshape(-1, classes).argmax(1)
    return majority
