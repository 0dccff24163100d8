"""Pictures of masks: what the context encoder sees, and the blocks that the predictor has to fill in (paper, figure 4).

Also what every figure here is made with: `Scale`, `save_grid` and `save`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ijepa_jax.settings.axes import patch_grid
from ijepa_jax.visualize.canvas import PATCH_PIXELS, STRIP_PIXELS, Canvas, is_wide, joined, reveal

_BLOCKS = ("#d9480f", "#1971c2", "#2f9e44", "#9c36b5", "#e8a200", "#0b7285")
_LINE = 0.125  # inches that a line of a caption takes
_DOTS = 150  # an inch
# of pictures that are stacked, in pixels
_TALLEST = 2700  # of the whole figure, as far as one row's pictures allow it
_STRIP_HEIGHT = 200  # that pictures are not enlarged beyond
_GAP, _GROUP_GAP = 8, 24  # between pictures, and between those of one row and the next
_LABEL_LINE, _LETTER = 21, 10  # the height of a line of a label, and the width of a letter, about
_BAR = 90  # with its label


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


def draw_masks(path, images, context, target, target_length, patch: int | Sequence[int], context_length=None) -> None:
    """Draws a row for each example: the example, what each context block leaves of it, and each target block.

    Args:
      path: the PNG file to write; gs:// and the like work.
      images: uint8 [n, H, W, channels], or videos or signals, see `Canvas`.
      context: int [n, C, K], patch indices (row-major) of C context blocks.
      target: int [n, M, T], patch indices of M target blocks, padded at the tail.
      target_length: int [n, M], how many of a block's indices count.
      patch: sides of a patch, one for all axes or one for each.
      context_length: int [n, C], likewise for contexts that are padded; None where all K count.

    Raises:
      ValueError: sizes that are no multiple of `patch`, or indices outside the grid.
    """
    context, target = np.asarray(context), np.asarray(target)
    if context_length is None:
        context_length = np.full(context.shape[:2], context.shape[2])
    canvas, rows = Canvas.of(images, patch_grid(np.shape(images)[1:-1], patch)), []
    for row, large in enumerate(canvas.pictures(images, PATCH_PIXELS)):
        contexts = [canvas.seen(block, length) for block, length in zip(context[row], context_length[row], strict=True)]
        targets = [canvas.seen(block, length) for block, length in zip(target[row], target_length[row], strict=True)]
        rows.append([large, *(reveal(large, seen, faintness=1.0) for seen in contexts)])
        rows[-1] += [reveal(large, seen, faintness=0.75, outline=_BLOCKS[i % len(_BLOCKS)]) for i, seen in enumerate(targets)]
    titles = [canvas.kind, *_numbered("context", context.shape[1]), *_numbered("target", target.shape[1])]
    save_grid(path, rows, titles)


def save_grid(
    path, rows, titles, names=None, *, captions=None, gap_after: int = 0, scale: Scale | None = None, side: float = 1.3
) -> None:
    """Writes a PNG of pictures in rows and columns.

    Wide pictures are stacked instead: those of a row below each other, each with its title, name and caption on its left, and
    of the rows as many as one can look at.

    Args:
      path: the file to write.
      rows: list of rows of uint8 pictures [frames, H, W, 3] or [H, W, 3], all rows as long as the first.
      titles: list of str, one above each column.
      names: list of str, one left of each row; None for none.
      captions: for each row a list of str, one below each picture; None for none.
      gap_after: number of columns after which a wider gap is left; 0 for none.
      scale: shown as a bar below the pictures; None for none.
      side: width of a picture in inches.
    """
    wide = is_wide(rows[0][0])
    rows = [[joined(picture) for picture in row] for row in rows]
    captions = [list(row) for row in captions] if captions is not None else [[""] * len(row) for row in rows]
    if wide:
        names = names if names is not None else [""] * len(rows)
        told = [[(name, *of) for of in zip(titles, row, strict=True)] for name, row in zip(names, captions, strict=True)]
        labels = [["\n".join(text for text in texts if text) for texts in row] for row in told]
        return save(_stacked(rows, labels, scale), path)
    shape, lines = rows[0][0].shape, max(text.count("\n") + bool(text) for row in captions for text in row)
    columns = len(rows[0]) + bool(gap_after)
    widths = np.ones(columns)
    if gap_after:
        widths[gap_after] = 0.12
        rows, captions = ([[*row[:gap_after], None, *row[gap_after:]] for row in table] for table in (rows, captions))
        titles = [*titles[:gap_after], "", *titles[gap_after:]]
    height = (side * shape[0] / shape[1] + _LINE * lines) * len(rows) + 0.35 + 0.55 * (scale is not None)
    figure = Figure(figsize=(side * widths.sum() + 0.3, height), layout="compressed", dpi=_DOTS)
    axes = figure.subplots(len(rows), columns, squeeze=False, width_ratios=widths)
    for row, row_axes in enumerate(axes):
        for column, axis in enumerate(row_axes):
            _show(axis, rows[row][column], captions[row][column], titles[column] if row == 0 else "")
        if names is not None:
            row_axes[0].set_ylabel(names[row], fontsize=9, color="#333333", rotation=0, ha="right", va="center")
    if scale is not None:
        _bar(figure, scale, ax=axes, fraction=0.04, aspect=40, pad=0.02)
    save(figure, path)


def _stacked(rows: list[list[np.ndarray]], labels: list[list[str]], scale: Scale | None) -> Figure:
    """A figure of wide pictures below each other, with labels on their left; of `rows` the first that fit, at least one."""
    height, width = rows[0][0].shape[:2]
    # enlarged by a whole number, so that all pixels are alike
    width *= min(STRIP_PIXELS // width, max(1, _STRIP_HEIGHT // height)) or STRIP_PIXELS / width
    height = max(width * picture.shape[0] / picture.shape[1] for picture in rows[0])
    lines = [label.split("\n") for row in labels for label in row]
    step = max(height, _LABEL_LINE * max(map(len, lines))) + _GAP
    margin = _LETTER * max(len(line) for label in lines for line in label) + _GAP
    rows = rows[: max(1, int(_TALLEST // (step * len(rows[0]) + _GROUP_GAP)))]
    total = margin + width, len(rows) * (step * len(rows[0]) + _GROUP_GAP) + _BAR * (scale is not None)
    figure = Figure(figsize=(total[0] / _DOTS, total[1] / _DOTS), dpi=_DOTS)

    def place(left: float, top: float, width: float, height: float):
        """Axes at pixels counted from the figure's upper left corner."""
        return figure.add_axes((left / total[0], 1 - (top + height) / total[1], width / total[0], height / total[1]))

    top = 0.0
    for row, row_labels in zip(rows, labels, strict=False):
        for picture, label in zip(row, row_labels, strict=True):
            height = width * picture.shape[0] / picture.shape[1]
            axis = place(margin, top + (step - _GAP - height) / 2, width, height)
            _show(axis, picture, "", "")
            axis.set_aspect("auto")
            style = {"fontsize": 8, "color": "#333333", "ha": "right", "va": "center", "parse_math": False}
            axis.text(-_GAP / width, 0.5, label, transform=axis.transAxes, **style)
            top += step
        top += _GROUP_GAP
    if scale is not None:
        _bar(figure, scale, cax=place(margin + 0.2 * width, top, 0.6 * width, 12))
    return figure


def _bar(figure: Figure, scale: Scale, **where) -> None:
    """Shows a scale as a bar, at a place as `Figure.colorbar` takes it."""
    colours = ScalarMappable(Normalize(scale.low, scale.high), scale.colormap)
    bar = figure.colorbar(colours, orientation="horizontal", **where)
    bar.ax.locator_params(nbins=5)
    bar.set_label(scale.label, fontsize=8, color="#333333")
    bar.ax.tick_params(labelsize=7)


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
