"""Pictures of how well the predictor fills in what the context encoder does not see."""

import math
from collections.abc import Sequence

import numpy as np

from ijepa_jax.settings.axes import patch_grid
from ijepa_jax.visualize.canvas import PATCH_PIXELS, Canvas, edge, over_pixels, reveal
from ijepa_jax.visualize.sheet import Scale, save_grid

_SCALE = Scale("RdBu", -1.0, 1.0, "cosine of a patch's prediction with its target, the position's mean target taken off both")
_INK = (60, 60, 60)


def draw_prediction(
    path, images, masks: dict[str, np.ndarray], cosine: np.ndarray, centred: np.ndarray, patch: int | Sequence[int]
) -> None:
    """Draws a row for each example: the example, its context, and each target block with how well it was predicted.

    Below a block stand the means of both cosines over its patches; the colours of these are the second one's.

    Args:
      path: the PNG file to write.
      images: uint8 [n, H, W, channels], or videos or signals, see `Canvas`.
      masks: as `MaskSampler` gives them; of several contexts the first is drawn.
      cosine: float [n, M, T], of each target token's prediction with its target; tokens past `target_length` do not count.
      centred: float [n, M, T], likewise, without what all examples have in common at the patch.
      patch: sides of a patch, one for all axes or one for each.
    """
    canvas = Canvas.of(images, patch_grid(np.shape(images)[1:-1], patch))
    means = block_means(cosine, masks["target_length"]), block_means(centred, masks["target_length"])
    rows, captions = [], []
    for i, large in enumerate(canvas.pictures(images, PATCH_PIXELS)):
        seen = _seen(large, masks, i, canvas)
        blocks = zip(masks["target"][i], masks["target_length"][i], centred[i], strict=True)
        rows.append([large, seen, *(_coloured(large, *block, canvas) for block in blocks)])
        captions.append(
            ["", "", *(f"cosine {raw:.2f}\nless mean {own:.2f}" for raw, own in zip(means[0][i], means[1][i], strict=True))]
        )
    titles = [canvas.kind, "context", *(f"target {i + 1}" for i in range(cosine.shape[1]))]
    save_grid(path, rows, titles, captions=captions, scale=_SCALE, side=1.5)


def draw_reconstruction(path, images, masks: dict[str, np.ndarray], filled: np.ndarray, patch: int | Sequence[int]) -> None:
    """Draws a row for each example: the example, what is seen of it, and that with guesses of what is not.

    Args:
      path, images, masks, patch: as for `draw_prediction`.
      filled: examples as `images`, see `evaluate.prediction.reconstructions`.
    """
    canvas, rows = Canvas.of(images, patch_grid(np.shape(images)[1:-1], patch)), []
    pictures = (canvas.pictures(each, PATCH_PIXELS) for each in (images, filled))
    for i, (large, guessed) in enumerate(zip(*pictures, strict=True)):
        rows.append([large, _seen(large, masks, i, canvas), guessed])
    save_grid(path, rows, [canvas.kind, "seen", "filled in"])


def block_means(values: np.ndarray, target_length: np.ndarray) -> np.ndarray:
    """The mean [n, M] of each block's values (float [n, M, T]) over its first `target_length` tokens (int [n, M])."""
    valid = np.arange(values.shape[-1]) < np.asarray(target_length)[..., None]
    return np.where(valid, values, 0).sum(-1) / valid.sum(-1)


def token_mean(values: np.ndarray, target_length: np.ndarray) -> float:
    """The mean over all valid tokens of all blocks, as the training loss weighs them; arguments as for `block_means`."""
    length = np.asarray(target_length)
    return float((block_means(values, length) * length).sum() / length.sum())


def _seen(large: np.ndarray, masks: dict[str, np.ndarray], i: int, canvas: Canvas) -> np.ndarray:
    """What the first context of an example leaves of its picture."""
    context = masks["context"][i, 0]
    length = masks["context_length"][i, 0] if "context_length" in masks else len(context)
    return reveal(large, canvas.seen(context, length), faintness=1.0)


def _coloured(large: np.ndarray, block: np.ndarray, length: int, values: np.ndarray, canvas: Canvas) -> np.ndarray:
    """A picture [frames, H, W, 3], faded but for a block's patches, which are coloured by their values [T]."""
    inside, by_patch = canvas.seen(block, length)[..., None], np.zeros((math.prod(canvas.grid), 3), np.uint8)
    by_patch[block[:length]] = _SCALE.colours(values[:length])
    colours, shown = (over_pixels(cells, large.shape[-3:-1]) for cells in (by_patch[canvas.patches], inside))
    picture = np.where(shown, colours, reveal(large, np.zeros(inside.shape[:-1], bool), faintness=0.6))
    picture[edge(shown[..., 0], width=2)] = _INK
    return picture
