"""The picture of what a decoder draws from representations of blocks, and how near it comes to images (paper, section 8)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from ijepa_jax.devices import processes
from ijepa_jax.devices.sharding import replicated
from ijepa_jax.methods import Arrays, Look
from ijepa_jax.settings.axes import each_axis, patch_grid
from ijepa_jax.visualize.canvas import as_rgb, over_pixels, reveal, seen_patches
from ijepa_jax.visualize.sheet import save_grid

_TITLES = {"predictor": "predictor", "target": "target encoder", "another image": "another image"}
_FAINT = 0.55  # how far what is not drawn fades: it is the image's own
_OUTLINE = "#d9480f"
_SIDE = 128  # at least so many pixels a picture, so that outlines are sharp
_SHOWN = 8  # of the test images measured
_SAMPLES, _OTHERS = 4, 2  # of each kind of representation; of another image's


_TITLE, _EXPLAINED = (
    "Blocks drawn from representations",
    "In the frame, pixels drawn from one vector: the average of the block's patches as the predictor gives it "
    "from the context, as the target encoder gives it from the whole image, and, for comparison, as it gives it of another "
    "image's block. The decoder is told where the block lies, and nothing else; the faded surroundings are the image's own.",
)
_MEASURE = (
    "Root mean square difference of the drawn blocks from those of the images, in grey levels (0 to 255), by the "
    "representation that they were drawn from."
)


def show(method: Any, look: Look) -> dict[str, Any]:
    """Draws the first target blocks of test images anew; returns how near samples come to the images, see `Method.pictures`.

    `decoded`: the root mean square error of a sample's pixels in grey levels, by what it is drawn from: the predictor's output,
    the target encoder's, and, for comparison, the target encoder's of another image's first block, wherever that lies.
    `method` is an Rcdm.
    """
    everywhere = replicated(look.mesh)
    given = jax.jit(method.conditions, out_shardings=everywhere)(look.target, look.batch)[:, :, 0]
    batch = look.rows
    index, lengths = batch["target"][:, 0], batch["target_length"][:, 0]
    compiled = jax.jit(partial(method.sample, steps=method.sample_steps), out_shardings=everywhere)

    def sample(condition: jax.Array, seed: int) -> np.ndarray:
        """The images, with their blocks drawn from these conditions."""
        drawn = compiled(look.target["denoiser"], condition, index, lengths, jax.random.key(seed))
        return pasted(batch["image"], np.asarray(jax.device_get(drawn)), index, lengths, method.patch)

    drawn = {kind: [sample(given[:, i], seed) for seed in range(_SAMPLES)] for i, kind in enumerate(method.kinds)}
    valid = np.flatnonzero(batch["valid"])
    if len(valid) > 1:
        other = np.arange(len(given))
        other[valid] = np.roll(valid, 1)
        drawn["another image"] = [sample(given[other, -1], seed) for seed in range(_OTHERS)]
    errors = {kind: float(np.mean([error(batch, images, method, valid) for images in drawn[kind]])) for kind in drawn}
    if processes.is_first():
        chosen = valid[:_SHOWN]
        shown = {kind: [images[chosen] for images in drawn[kind]] for kind in drawn}
        draw_decoded(look.folder / "decoded.png", {name: rows[chosen] for name, rows in batch.items()}, shown, method.patch)
    section = {"title": "Blocks drawn anew", "text": _MEASURE, "columns": ["drawn from", "error"], "rows": errors}
    return {
        "decoded": errors,
        "pictures": ["decoded.png"],
        "captions": {"decoded.png": [_TITLE, _EXPLAINED]},
        "sections": [section],
        "warnings": [*_decodes_nothing(errors)],
    }


def _decodes_nothing(errors: dict[str, float]):
    other = errors.get("another image")
    for kind, names in (("target", "the target encoder's"), ("predictor", "the predictor's")):
        ours = errors.get(kind)
        if ours is not None and other is not None and ours >= other:
            yield f"Blocks drawn from {names} output are no nearer ({ours:.1f}) than from another image's ({other:.1f})."


def pasted(
    images: np.ndarray, patches: np.ndarray, index: np.ndarray, lengths: np.ndarray, patch: int | Sequence[int]
) -> np.ndarray:
    """Images uint8 [n, H, W, C] in which some patches, at `index` int [n, T], are replaced by `patches` [n, T, P], -1 .. 1."""
    images, (height, width) = images.copy(), each_axis(patch, 2)
    columns = images.shape[2] // width
    pixels = ((patches.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    for image, places, length, new in zip(images, index, lengths, pixels, strict=True):
        for place, values in zip(places[:length], new, strict=False):
            top, left = height * (place // columns), width * (place % columns)
            image[top : top + height, left : left + width] = values.reshape(height, width, -1)
    return images


def draw_decoded(path, batch: Arrays, samples: dict[str, list[np.ndarray]], patch: int | Sequence[int]) -> None:
    """Draws a row for each image: the image, its context, and its first target block as drawn from representations.

    Args:
      path: the PNG file to write.
      batch: `image` uint8 [n, H, W, C], with masks as the sampler makes them.
      samples: by what they are drawn from, lists of uint8 [n, H, W, C], images with other pixels in that block.
      patch: sides of a patch in pixels, one for both axes or one for each.
    """
    images, scale = as_rgb(batch["image"]), -(-_SIDE // batch["image"].shape[1])
    grid = patch_grid(images.shape[1:-1], patch)
    context_length = batch.get("context_length", np.full(batch["context"].shape[:2], batch["context"].shape[-1]))
    rows = []
    for i, image in enumerate(images):
        context = seen_patches(batch["context"][i, 0], context_length[i, 0], grid)
        block = seen_patches(batch["target"][i, 0], batch["target_length"][i, 0], grid)
        drawn = [as_rgb(of)[i] for kind in samples for of in samples[kind]]
        outlined = [reveal(_large(one, scale), block, faintness=_FAINT, outline=_OUTLINE) for one in drawn]
        whole = reveal(_large(image, scale), block, faintness=0.0, outline=_OUTLINE)
        rows.append([whole, reveal(_large(image, scale), context, faintness=1.0), *outlined])
    titles = [f"{_TITLES[kind]} {n + 1}" for kind in samples for n in range(len(samples[kind]))]
    save_grid(path, rows, ["image", "context", *titles], gap_after=2)


def _large(image: np.ndarray, scale: int) -> np.ndarray:
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def error(batch: Arrays, drawn: np.ndarray, method: Any, valid: np.ndarray) -> float:
    """Root mean square difference from the images, in grey levels, over the pixels of their first target blocks."""
    squares = np.square(drawn[valid].astype(np.float32) - batch["image"][valid]).mean(axis=-1)
    blocks = np.stack([seen_patches(batch["target"][i, 0], batch["target_length"][i, 0], method.grid) for i in valid])
    inside = over_pixels(blocks[..., None], squares.shape[1:])[..., 0]
    return float(np.sqrt(squares[inside].mean()))
