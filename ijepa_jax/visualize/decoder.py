"""What is decoded: representations of blocks by a frozen I-JEPA; and the picture of what a decoder draws from them.

Paper, section 8 and appendix E; the decoder itself is a method, methods/rcdm.py.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from ijepa_jax import build, checkpoint, metrics, processes
from ijepa_jax import config as config_lib
from ijepa_jax.data.sources import Source
from ijepa_jax.evaluate import features
from ijepa_jax.methods import IJepa, Rcdm
from ijepa_jax.sharding import all_rows, batch_sharding, place_batch, replicated
from ijepa_jax.visualize.curves import draw_run
from ijepa_jax.visualize.masks import as_rgb, reveal, save_grid, seen_patches
from ijepa_jax.vit import normalise, patch_grid

KINDS = ("predictor", "target")
_TITLES = {"predictor": "predictor", "target": "target encoder", "another image": "another image"}
_FAINT = 0.55  # how far what is not drawn fades: it is the image's own
_OUTLINE = "#d9480f"
_SIDE = 128  # at least so many pixels a picture, so that outlines are sharp
_MEASURED, _SHOWN = 64, 8  # test images, and of these shown
_SAMPLES, _OTHERS = 4, 2  # of each kind of representation; of another image's
_SAMPLE = 1024  # images by which representations are standardised
_SMALL = 1e-12  # variance that a constant feature is taken to have

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Representation:
    """A frozen I-JEPA whose representations of target blocks are decoded."""

    method: IJepa
    trees: dict[str, Any]  # target, and, unless an encoder alone was imported, params
    settings: ml_collections.ConfigDict
    step: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """What there is of a block: the predictor's output from the context, and the target encoder's from the whole image."""
        return KINDS if "params" in self.trees else KINDS[1:]

    def of_blocks(self, trees: dict[str, Any], batch: Batch) -> jax.Array:
        """Averages over each target block's patches, float32 [B, kinds, M, D]; a pure function, to be compiled."""
        method = self.method
        images = normalise(batch["image"], method.mean, method.std)
        found = [method.gather_targets(method.encode_target(trees["target"], images), batch["target"])]
        if "params" in trees:
            context = method.encode_context(trees["params"]["encoder"], images, batch, jax.random.key(0))
            found.insert(0, method.predict(trees["params"]["predictor"], context, batch)[:, :, 0])
        lengths = batch["target_length"]
        valid = jnp.arange(batch["target"].shape[-1]) < lengths[..., None]
        return jnp.stack([(tokens * valid[..., None]).sum(axis=2) / lengths[..., None] for tokens in found], axis=1)


def load(path: str, step: int = 0) -> Representation:
    """What a workdir's checkpoint (see `checkpoint.restore_parts`) represents images by. Raises CheckpointError."""
    saved = checkpoint.restore_parts(path, step, ("target", "params"))
    settings = build.with_masks_that_fit(config_lib.from_plain(saved.notes["settings"]))
    settings.model.drop_path = 0.0
    return Representation(build.method(settings), saved.trees, settings, saved.step)


_DECODED = ("model", "predictor", "target", "masks")  # sections of settings that are those of what is decoded
_DECODED_DATA = ("image_size", "channels", "mean", "std", "eval_crop")
_DECODED_NAME = ("name", "directory", "size", "test_size")  # likewise, unless data are named


def settings_of(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A decoder's settings completed by those of what it decodes: its networks, masks, images and, unless named, its data.

    Raises ValueError for settings that were given in vain.
    """
    config_lib.check_run(config)
    given, default = config_lib.flatten(config), config_lib.flatten(config_lib.default())
    data = _DECODED_DATA + (() if config.data.name else _DECODED_NAME[1:])
    taken = (*(f"{section}." for section in _DECODED), *(f"data.{key}" for key in data))
    vain = [key for key in given if key.startswith(taken) and given[key] != default[key]]
    if vain:
        raise ValueError(f"{', '.join(vain)}: a decoder takes these from decoder.checkpoint {config.decoder.checkpoint}")
    decoded = load(config.decoder.checkpoint, config.decoder.step)
    config = config.copy_and_resolve_references()
    config.decoder.step = decoded.step
    for section in _DECODED:
        config[section] = decoded.settings[section]
    for key in (*_DECODED_DATA, *(() if config.data.name else _DECODED_NAME)):
        config.data[key] = decoded.settings.data[key]
    return config


class Conditions:
    """Gives batches their `condition`: representations, standardised feature by feature.

    Average and deviation are those of the target encoder's representations of some training images: features in which all
    blocks are alike would drown what tells them apart.
    """

    def __init__(self, representation: Representation, mesh: Mesh):
        self.representation, self.statistics = representation, {}
        self._digest = checkpoint.digest_of(representation.trees)
        self._everywhere = replicated(mesh)
        self._trees = jax.device_put(representation.trees, self._everywhere)
        self._compute = jax.jit(self._standardised, out_shardings=batch_sharding(mesh))
        self._moments = jax.jit(self._sums, out_shardings=self._everywhere)

    def fit(self, batches: Iterator[Batch]) -> None:
        """Takes the statistics of the first images of a stream of placed training batches."""
        count, total, squares = 0, 0.0, 0.0
        while count < _SAMPLE:
            batch = next(batches)
            mean, square = jax.device_get(self._moments(self._trees, batch))
            images = len(batch["image"])
            count, total, squares = count + images, total + images * mean, squares + images * square
        average = total / count
        std = np.sqrt(np.maximum(squares / count - average**2, _SMALL))
        self.use({"mean": average.tolist(), "std": std.tolist(), "digest": self._digest, "step": self.representation.step})

    def use(self, statistics: dict[str, Any]) -> None:
        """Takes statistics that were kept: `mean` and `std` [D], and the `digest` and `step` of the weights they are of.

        Raises ValueError where the weights are others by now.
        """
        if statistics["digest"] != self._digest:
            raise ValueError(
                f"this decoder began with other weights, of step {statistics['step']}, than decoder.checkpoint has at step "
                f"{self.representation.step}: give --config.decoder.step={statistics['step']}, or another workdir"
            )
        self.statistics = statistics
        arrays = [np.array(statistics[name], np.float32) for name in ("mean", "std")]
        self._placed = jax.device_put(arrays, self._everywhere)

    def __call__(self, batch: Batch) -> Batch:
        """The same placed batch with `condition` float32 [B, kinds, M, D]."""
        return {**batch, "condition": self._compute(self._trees, batch, *self._placed)}

    def _standardised(self, trees: Any, batch: Batch, mean: jax.Array, std: jax.Array) -> jax.Array:
        return (self.representation.of_blocks(trees, batch) - mean) / std

    def _sums(self, trees: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        targets = self.representation.of_blocks(trees, batch)[:, -1]
        return targets.mean(axis=(0, 1)), jnp.square(targets).mean(axis=(0, 1))


def show(
    workdir: epath.Path,
    config: ml_collections.ConfigDict,
    method: Rcdm,
    target: Any,
    test: Source,
    conditions: Conditions,
    mesh: Mesh,
) -> dict[str, Any]:
    """Draws the first target blocks of test images anew, into WORKDIR/report; returns how near samples come to the images.

    `decoded`: the root mean square error of a sample's pixels in grey levels, by what it is drawn from: the predictor's output,
    the target encoder's, and, for comparison, the target encoder's of another image's first block, wherever that lies.
    With several processes all must call this; the first one draws.
    """
    config = config.copy_and_resolve_references()
    config.probe.batch_size = _MEASURED
    rows = features.sample(len(test), _MEASURED)
    batch = next(iter(build.eval_batches(config, test, rows, mesh)))
    batch = {"image": batch["image"], "valid": batch["valid"], **method.prepare()(batch["index"])}
    given = conditions(place_batch(batch, mesh))["condition"][:, :, 0]
    batch = all_rows(batch, mesh)
    index, lengths = batch["target"][:, 0], batch["target_length"][:, 0]
    compiled = jax.jit(partial(method.sample, steps=config.decoder.sample_steps), out_shardings=replicated(mesh))

    def sample(condition: jax.Array, seed: int) -> np.ndarray:
        """The images, with their blocks drawn from these conditions."""
        drawn = compiled(target, condition, index, lengths, jax.random.key(seed))
        return pasted(batch["image"], np.asarray(jax.device_get(drawn)), index, lengths, method.patch)

    drawn = {
        kind: [sample(given[:, i], seed) for seed in range(_SAMPLES)] for i, kind in enumerate(conditions.representation.kinds)
    }
    valid = np.flatnonzero(batch["valid"])
    if len(valid) > 1:
        other = np.arange(len(given))
        other[valid] = np.roll(valid, 1)
        drawn["another image"] = [sample(given[other, -1], seed) for seed in range(_OTHERS)]
    errors = {kind: float(np.mean([_error(batch, images, method, valid) for images in drawn[kind]])) for kind in drawn}
    if not processes.is_first():
        return {"decoded": errors, "pictures": []}
    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = valid[:_SHOWN]
    shown = {kind: [images[chosen] for images in drawn[kind]] for kind in drawn}
    draw_decoded(folder / "decoded.png", {name: values[chosen] for name, values in batch.items()}, shown, method.patch)
    return {"decoded": errors, "pictures": ["decoded.png", *draw_run(folder, metrics.read(workdir))]}


def pasted(images: np.ndarray, patches: np.ndarray, index: np.ndarray, lengths: np.ndarray, patch: int) -> np.ndarray:
    """Images uint8 [n, H, W, C] in which some patches, at `index` int [n, T], are replaced by `patches` [n, T, P], -1 .. 1."""
    images, columns = images.copy(), images.shape[2] // patch
    pixels = ((patches.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    for image, places, length, new in zip(images, index, lengths, pixels, strict=True):
        for place, values in zip(places[:length], new, strict=False):
            top, left = patch * (place // columns), patch * (place % columns)
            image[top : top + patch, left : left + patch] = values.reshape(patch, patch, -1)
    return images


def draw_decoded(path, batch: Batch, samples: dict[str, list[np.ndarray]], patch: int) -> None:
    """Draws a row for each image: the image, its context, and its first target block as drawn from representations.

    Args:
      path: the PNG file to write.
      batch: `image` uint8 [n, H, W, C], with masks as the sampler makes them.
      samples: by what they are drawn from, lists of uint8 [n, H, W, C], images with other pixels in that block.
      patch: side of a patch in pixels.
    """
    images, scale = as_rgb(batch["image"]), -(-_SIDE // batch["image"].shape[1])
    grid = patch_grid(images.shape[1:], patch)
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


def _error(batch: Batch, drawn: np.ndarray, method: Rcdm, valid: np.ndarray) -> float:
    """Root mean square difference from the images, in grey levels, over the pixels of their first target blocks."""
    squares = np.square(drawn[valid].astype(np.float32) - batch["image"][valid]).mean(axis=-1)
    blocks = np.stack([seen_patches(batch["target"][i, 0], batch["target_length"][i, 0], method.grid) for i in valid])
    inside = blocks.repeat(method.patch, axis=1).repeat(method.patch, axis=2)
    return float(np.sqrt(squares[inside].mean()))
