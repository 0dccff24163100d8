"""Pictures of masks: what the context encoder sees, and the blocks that the predictor has to fill in (paper, figure 4)."""

from collections.abc import Sequence

import numpy as np

from ijepa_jax.settings.axes import patch_grid
from ijepa_jax.visualize.canvas import PATCH_PIXELS, Canvas, reveal
from ijepa_jax.visualize.sheet import save_grid

_BLOCKS = ("#d9480f", "#1971c2", "#2f9e44", "#9c36b5", "#e8a200", "#0b7285")


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


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name} {i + 1}" for i in range(count)]
