"""Pictures of how well the predictor fills in what the context encoder does not see."""

import numpy as np

from ijepa_jax.visualize.masks import Scale, as_rgb, edge, enlarged, reveal, save_grid, seen_patches

_SCALE = Scale("RdBu", -1.0, 1.0, "cosine of a patch's prediction with its target, the position's mean target taken off both")
_INK = (60, 60, 60)


def draw_prediction(path, images, masks: dict[str, np.ndarray], cosine: np.ndarray, centred: np.ndarray, patch: int) -> None:
    """Draws a row for each image: the image, its context, and each target block with how well it was predicted.

    Below a block stand the means of both cosines over its patches; the colours of these are the second one's.

    Args:
      path: the PNG file to write.
      images: uint8 [n, H, W, channels].
      masks: as `MaskSampler` gives them; of several contexts the first is drawn.
      cosine: float [n, M, T], of each target token's prediction with its target; tokens past `target_length` do not count.
      centred: float [n, M, T], likewise, without what all images have in common at the patch.
      patch: side of a patch in pixels.
    """
    images = as_rgb(images)
    grid = images.shape[1] // patch, images.shape[2] // patch
    means = block_means(cosine, masks["target_length"]), block_means(centred, masks["target_length"])
    rows, captions = [], []
    for i, large in enumerate(enlarged(images, patch)):
        context = masks["context"][i, 0]
        length = masks["context_length"][i, 0] if "context_length" in masks else len(context)
        seen = reveal(large, seen_patches(context, length, grid), faintness=1.0)
        blocks = zip(masks["target"][i], masks["target_length"][i], centred[i], strict=True)
        rows.append([large, seen, *(_coloured(large, *block, grid) for block in blocks)])
        captions.append(
            ["", "", *(f"cosine {raw:.2f}\nless mean {own:.2f}" for raw, own in zip(means[0][i], means[1][i], strict=True))]
        )
    titles = ["image", "context", *(f"target {i + 1}" for i in range(cosine.shape[1]))]
    save_grid(path, rows, titles, captions=captions, scale=_SCALE, side=1.5)


def block_means(values: np.ndarray, target_length: np.ndarray) -> np.ndarray:
    """The mean [n, M] of each block's values (float [n, M, T]) over its first `target_length` tokens (int [n, M])."""
    valid = np.arange(values.shape[-1]) < np.asarray(target_length)[..., None]
    return np.where(valid, values, 0).sum(-1) / valid.sum(-1)


def token_mean(values: np.ndarray, target_length: np.ndarray) -> float:
    """The mean over all valid tokens of all blocks, as the training loss weighs them; arguments as for `block_means`."""
    length = np.asarray(target_length)
    return float((block_means(values, length) * length).sum() / length.sum())


def _coloured(image: np.ndarray, block: np.ndarray, length: int, values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """An image [H, W, 3], faded but for a block's patches, which are coloured by their values [T]."""
    inside, colours = seen_patches(block, length, grid), np.zeros((grid[0] * grid[1], 3), np.uint8)
    colours[block[:length]] = _SCALE.colours(values[:length])
    size = image.shape[0] // grid[0]
    colours, large = (part.repeat(size, axis=0).repeat(size, axis=1) for part in (colours.reshape(*grid, 3), inside))
    picture = np.where(large[..., None], colours, reveal(image, np.zeros(grid, bool), faintness=0.6))
    picture[edge(large, width=2)] = _INK
    return picture
