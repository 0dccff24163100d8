"""What pictures are made with: `save_grid` writes pictures in rows and columns, `save` a figure of matplotlib's.

A grid is one array of pixels with words on it: axes for each of its pictures would take seconds to lay out.
"""

import functools
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from ijepa_jax.visualize.canvas import STRIP_PIXELS, is_wide, joined, over_pixels

_DOTS = 150  # an inch
_INK = "#333333"
_TITLE, _LABEL, _CAPTION = 9.0, 8.0, 6.5  # sizes of letters, in points
# all others in pixels
_EDGE = 9  # around all
_GAP, _GROUP_GAP = 8, 24  # between pictures, and between groups of them
_BAR_HEIGHT, _TICKS = 12, 5  # of a scale's colours
_TALLEST = 2700  # of stacked pictures together, as far as one row's pictures allow it
_STRIP_HEIGHT = 200  # that stacked pictures are not enlarged beyond


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
    names = names if names is not None else [""] * len(rows)
    captions = captions if captions is not None else [[""] * len(row) for row in rows]
    sheet = _stacked(rows, titles, names, captions) if wide else _grid(rows, titles, names, captions, gap_after, side)
    if scale is not None:
        sheet.bar(scale)
    sheet.save(path)


class _Sheet:
    """Pictures and words at places in pixels, counted from the upper left corner."""

    def __init__(self):
        self._pictures: list[tuple[np.ndarray, int, int]] = []
        self._words: list[tuple[str, float, float, ImageFont.FreeTypeFont, str]] = []

    def show(self, picture: np.ndarray, left: int, top: int, size: tuple[int, int]) -> None:
        """Places a picture uint8 [H, W, 3], enlarged to `size`, height and width, by repeating pixels."""
        self._pictures.append((over_pixels(picture, size), left, top))

    def write(self, text: str, left: float, top: float, size: float, anchor: str = "mt") -> None:
        """Places the lines of a text so that the point is at their m(iddle) or r(ight), and at their t(op) or m(iddle)."""
        lines, step = text.splitlines(), _height("line", size)
        top -= {"t": 0, "m": step * len(lines) / 2}[anchor[1]]
        self._words += [(line, left, top + (i + 0.5) * step, _font(size), anchor[0]) for i, line in enumerate(lines)]

    def bar(self, scale: Scale) -> None:
        """Shows a scale below all."""
        bottom, width = self._ends()
        left, length, top = 0.2 * width, 0.6 * width, bottom + _GROUP_GAP
        colours = scale.colours(np.linspace(scale.low, scale.high, 256))
        self.show(colours[None], round(left), top, (_BAR_HEIGHT, round(length)))
        for i, value in enumerate(np.linspace(scale.low, scale.high, _TICKS)):
            self.write(f"{value:.2f}", left + length * i / (_TICKS - 1), top + _BAR_HEIGHT, _CAPTION)
        self.write(scale.label, width / 2, top + _BAR_HEIGHT + _height("value", _CAPTION), _LABEL)

    def save(self, path) -> None:
        """Writes all as PNG."""
        height, width = (end + 2 * _EDGE for end in self._ends())
        page = np.full((height, width, 3), 255, np.uint8)
        for picture, left, top in self._pictures:
            page[_EDGE + top :, _EDGE + left :][: len(picture), : picture.shape[1]] = picture
        image = Image.fromarray(page)
        draw = ImageDraw.Draw(image)
        for line, left, middle, font, across in self._words:
            draw.text((_EDGE + left, _EDGE + middle), line, _INK, font, across + "m")
        with epath.Path(path).open("wb") as file:
            image.save(file, format="png")

    def _ends(self) -> tuple[int, int]:
        """The height and width that all takes."""
        ends = [(top + picture.shape[0], left + picture.shape[1]) for picture, left, top in self._pictures]
        ends += [(round(middle + font.size), 0) for _, _, middle, font, _ in self._words]
        bottom, right = map(max, zip(*ends, strict=True))
        return bottom, right


def _grid(rows: list, titles: list, names: list, captions: list, gap_after: int, side: float) -> _Sheet:
    """A sheet of pictures side by side, as wide as the widest of a column's pictures and words."""
    sheet, width = _Sheet(), round(side * _DOTS)
    size = round(width * rows[0][0].shape[0] / rows[0][0].shape[1]), width
    columns = [
        max(width, _width(title, _TITLE), *(_width(text, _CAPTION) for text in below))
        for title, below in zip(titles, zip(*captions, strict=True), strict=True)
    ]
    before = [0, *itertools.accumulate(_GAP + column for column in columns)]
    margin = max(_width(name, _TITLE) + _GAP if name else 0 for name in names)
    lefts = [margin + start + (i >= gap_after > 0) * _GROUP_GAP for i, start in enumerate(before[:-1])]
    top = 0
    if any(titles):
        for title, left, column in zip(titles, lefts, columns, strict=True):
            sheet.write(title, left + column / 2, 0, _TITLE)
        top = _height("title", _TITLE)
    below = max(_height(text, _CAPTION) for row in captions for text in row)
    for row, name, texts in zip(rows, names, captions, strict=True):
        sheet.write(name, margin - _GAP, top + size[0] / 2, _TITLE, "rm")
        for picture, text, left, column in zip(row, texts, lefts, columns, strict=True):
            sheet.show(picture, left + (column - width) // 2, top, size)
            sheet.write(text, left + column / 2, top + size[0] + 2, _CAPTION)
        top += size[0] + below + _GAP
    return sheet


def _stacked(rows: list, titles: list, names: list, captions: list) -> _Sheet:
    """A sheet of wide pictures below each other, with their words on their left; of `rows` the first that fit, at least one."""
    sheet = _Sheet()
    told = [[(name, *of) for of in zip(titles, row, strict=True)] for name, row in zip(names, captions, strict=True)]
    labels = [["\n".join(text for text in texts if text) for texts in row] for row in told]
    height, width = rows[0][0].shape[:2]
    # enlarged by a whole number, so that all pixels are alike
    width *= min(STRIP_PIXELS // width, max(1, _STRIP_HEIGHT // height)) or STRIP_PIXELS / width
    heights = [round(width * picture.shape[0] / picture.shape[1]) for picture in rows[0]]
    step = max(*heights, *(_height(label, _LABEL) for row in labels for label in row)) + _GAP
    margin = max(_width(label, _LABEL) for row in labels for label in row) + _GAP
    top = 0
    for row, of_row in zip(rows[: max(1, _TALLEST // (step * len(rows[0]) + _GROUP_GAP))], labels, strict=False):
        for picture, label, height in zip(row, of_row, heights, strict=True):
            sheet.show(picture, margin, top + (step - _GAP - height) // 2, (height, round(width)))
            sheet.write(label, margin - _GAP, top + (step - _GAP) / 2, _LABEL, "rm")
            top += step
        top += _GROUP_GAP
    return sheet


def _height(text: str, size: float) -> int:
    """The height of a text's lines in pixels; 0 of an empty one."""
    return round(len(text.splitlines()) * 1.3 * size * _DOTS / 72)


def _width(text: str, size: float) -> int:
    """The width of a text's longest line in pixels."""
    return math.ceil(max(map(_font(size).getlength, text.splitlines()), default=0))


@functools.cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    """The letters that matplotlib brings along, of a size in points."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size * _DOTS / 72)


def save(figure: Figure, path) -> None:
    """Writes a figure as PNG, to a local path or to cloud storage."""
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png", facecolor="white")
