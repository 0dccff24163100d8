"""Pictures of masks: what the context encoder sees of an image, and the blocks the predictor has to fill in (paper, figure 4).

Also what every picture here is made with: `as_rgb`, `Scale`, `save_grid` and `save`.
"""

from typing import NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

_PAPER = np.array([236, 238, 241], np.float32)  # what hidden patches are drawn as
_BLOCKS = ("#d9480f", "#1971c2", "#2f9e44", "#9c36b5", "#e8a200", "#0b7285")
_PATCH_PIXELS = 24  # at least so many pixels a patch, so that outlines are sharp
_LINE = 0.125  # inches that a line of a caption takes


class Scale(NamedTuple):
    """Colours for values: a colormap of matplotlib's from `low` to `high`, beyond which they stay the same."""

    colormap: str
    low: float
    high: float
    label: str

    def colours(self, values) -> np.ndarray:
        """Colours uint8 [..., 3] of values float [...]."""
        normed = Normalize(self.low, self.high, clip=True)(np.asarray(values))
        return np.asarray(matplotlib.colormaps[self.colormap](normed, bytes=True))[..., :3]


def draw_masks(path, images, context, target, target_length, patch: int, context_length=None) -> None:
    """Draws a row for each image: the image, what each context block leaves of it, and each target block.

    Args:
      path: the PNG file to write; gs:// and the like work.
      images: uint8 [n, H, W, channels].
      context: int [n, C, K], patch indices (row-major) of C context blocks.
      target: int [n, M, T], patch indices of M target blocks, padded at the tail.
      target_length: int [n, M], how many of a block's indices count.
      patch: side of a patch in pixels.
      context_length: int [n, C], likewise for contexts that are padded; None where all K count.

    Raises:
      ValueError: image sides that are no multiple of `patch`, or indices outside the grid.
    """
    images, context, target = as_rgb(images), np.asarray(context), np.asarray(target)
    height, width = images.shape[1:3]
    if height % patch or width % patch:
        raise ValueError(f"images of {height}x{width} pixels do not divide into patches of {patch}")
    if context_length is None:
        context_length = np.full(context.shape[:2], context.shape[2])
    grid, rows = (height // patch, width // patch), []
    for row, large in enumerate(enlarged(images, patch)):
        contexts = [seen_patches(block, length, grid) for block, length in zip(context[row], context_length[row], strict=True)]
        targets = [seen_patches(block, length, grid) for block, length in zip(target[row], target_length[row], strict=True)]
        rows.append([large, *(reveal(large, seen, faintness=1.0) for seen in contexts)])
        rows[-1] += [reveal(large, seen, faintness=0.75, outline=_BLOCKS[i % len(_BLOCKS)]) for i, seen in enumerate(targets)]
    titles = ["image", *_numbered("context", context.shape[1]), *_numbered("target", target.shape[1])]
    save_grid(path, rows, titles)


def as_rgb(images) -> np.ndarray:
    """Makes uint8 images [n, H, W, channels] drawable: uint8 [n, H, W, 3]; grey is repeated, more than three are cut.

    Raises:
      ValueError: images of another type or shape.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(f"images to draw must be uint8 [n, H, W, channels], got {images.dtype} {list(images.shape)}")
    return images[..., :3] if images.shape[-1] >= 3 else images[..., :1].repeat(3, axis=-1)


def enlarged(images: np.ndarray, patch: int) -> np.ndarray:
    """Repeats pixels of images [n, H, W, 3], so that a patch of `patch` pixels is large enough for sharp outlines."""
    scale = -(-_PATCH_PIXELS // patch)
    return images.repeat(scale, axis=1).repeat(scale, axis=2)


def save_grid(
    path, rows, titles, names=None, *, captions=None, gap_after: int = 0, scale: Scale | None = None, side: float = 1.3
) -> None:
    """Writes a PNG of pictures in rows and columns.

    Args:
      path: the file to write.
      rows: list of rows of uint8 pictures [H, W, 3], all rows as long as the first.
      titles: list of str, one above each column.
      names: list of str, one left of each row; None for none.
      captions: for each row a list of str, one below each picture; None for none.
      gap_after: number of columns after which a wider gap is left; 0 for none.
      scale: shown as a bar below the pictures; None for none.
      side: width of a picture in inches.
    """
    rows = [list(row) for row in rows]
    captions = [list(row) for row in captions] if captions is not None else [[""] * len(row) for row in rows]
    shape, lines = rows[0][0].shape, max(text.count("\n") + bool(text) for row in captions for text in row)
    columns = len(rows[0]) + bool(gap_after)
    widths = np.ones(columns)
    if gap_after:
        widths[gap_after] = 0.12
        rows, captions = ([[*row[:gap_after], None, *row[gap_after:]] for row in table] for table in (rows, captions))
        titles = [*titles[:gap_after], "", *titles[gap_after:]]
    height = (side * shape[0] / shape[1] + _LINE * lines) * len(rows) + 0.35 + 0.55 * (scale is not None)
    figure = Figure(figsize=(side * widths.sum() + 0.3, height), layout="compressed", dpi=150)
    axes = figure.subplots(len(rows), columns, squeeze=False, width_ratios=widths)
    for row, row_axes in enumerate(axes):
        for column, axis in enumerate(row_axes):
            _show(axis, rows[row][column], captions[row][column], titles[column] if row == 0 else "")
        if names is not None:
            row_axes[0].set_ylabel(names[row], fontsize=9, color="#333333", rotation=0, ha="right", va="center")
    if scale is not None:
        colours = ScalarMappable(Normalize(scale.low, scale.high), scale.colormap)
        bar = figure.colorbar(colours, ax=axes, orientation="horizontal", fraction=0.04, aspect=40, pad=0.02)
        bar.ax.locator_params(nbins=5)
        bar.set_label(scale.label, fontsize=8, color="#333333")
        bar.ax.tick_params(labelsize=7)
    save(figure, path)


def _show(axis, picture: np.ndarray | None, caption: str | None, title: str) -> None:
    """Shows a picture with a caption below it and a title above it; None leaves the place empty."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    if picture is not None:
        axis.imshow(picture, interpolation="nearest")
    if caption:
        axis.set_xlabel(caption, fontsize=6.5, color="#333333", labelpad=2, parse_math=False)
    if title:
        axis.set_title(title, fontsize=9, color="#333333")


def save(figure: Figure, path) -> None:
    """Writes a figure as PNG, to a local path or to cloud storage."""
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.06)


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name} {i + 1}" for i in range(count)]


def seen_patches(indices, length, grid: tuple[int, int]) -> np.ndarray:
    """Marks the first `length` of a block's patch indices on the grid: bool [rows, columns]."""
    indices = np.asarray(indices)[: int(length)]
    seen = np.zeros(grid[0] * grid[1], bool)
    if indices.size and not 0 <= indices.min() <= indices.max() < seen.size:
        raise ValueError(f"patch indices run from {indices.min()} to {indices.max()}, outside the {grid[0]}x{grid[1]} grid")
    seen[indices] = True
    return seen.reshape(grid)


def reveal(image, seen, *, faintness: float, outline: str | None = None) -> np.ndarray:
    """Fades an image [H, W, 3] to paper where `seen` (bool, by patch) is false; outlines what is seen in a colour."""
    size = image.shape[0] // seen.shape[0]
    seen = seen.repeat(size, axis=0).repeat(size, axis=1)
    faded = image + faintness * (_PAPER - image)
    picture = np.where(seen[..., None], image, faded)
    if outline is not None:
        picture[edge(seen, width=3)] = [int(outline[i : i + 2], 16) for i in (1, 3, 5)]
    return picture.astype(np.uint8)


def edge(seen, width: int) -> np.ndarray:
    """The pixels of a region (bool [H, W]) that lie within `width` of its border or of the picture's."""
    inside = np.pad(seen, width)
    for axis in (0, 1):  # one after the other: a square neighbourhood
        inside = np.logical_and.reduce([np.roll(inside, step, axis) for step in range(-width, width + 1)])
    return seen & ~inside[width:-width, width:-width]
