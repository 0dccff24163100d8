"""The pictures of a pretraining run."""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from ijepa_jax import build, metrics
from ijepa_jax.data.sources import Source
from ijepa_jax.evaluate import features as features_lib
from ijepa_jax.methods import IJepa
from ijepa_jax.visualize.curves import draw_curves, draw_probes
from ijepa_jax.visualize.features import draw_neighbours, draw_pca, nearest
from ijepa_jax.visualize.masks import draw_masks
from ijepa_jax.vit import normalise

_IMAGES = 8  # drawn
_BANK = 1000  # images to find neighbours among


def draw_pictures(
    workdir: epath.Path, config: ml_collections.ConfigDict, method: IJepa, target: Any, test: Source, pooled: Callable
) -> list[str]:
    """Draws the pictures of a run into WORKDIR/report; returns their names.

    `target` holds the target encoder's parameters; `pooled` maps (parameters, images) to pooled features.
    """
    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    lines = metrics.read(workdir)
    draw_curves(folder / "curves.png", lines)
    pictures = ["curves.png"]
    if any(key.startswith("probe/linear/") for line in lines for key in line):
        draw_probes(folder / "probes.png", lines)
        pictures.append("probes.png")
    rows = features_lib.sample(len(test), _BANK)
    bank = features_lib.images_of(build.eval_batches(config, test, rows))
    chosen = features_lib.sample(len(bank), _IMAGES)
    _draw_masks(folder / "masks.png", method, bank[chosen])
    _draw_pca(folder / "pca.png", method, target, bank[chosen])
    found = pooled(target, bank)
    draw_neighbours(folder / "neighbours.png", bank[chosen], bank, nearest(found[chosen], found, 7)[:, 1:])
    return [*pictures, "masks.png", "pca.png", "neighbours.png"]


def _draw_masks(path: epath.Path, method: IJepa, images: np.ndarray) -> None:
    masks = method.prepare()(np.arange(len(images)))
    draw_masks(
        path,
        images,
        masks["context"],
        masks["target"],
        masks["target_length"],
        method.encoder.patch,
        masks.get("context_length"),
    )


def _draw_pca(path: epath.Path, method: IJepa, target: Any, images: np.ndarray) -> None:
    encode = jax.jit(lambda params, x: method.encoder.apply({"params": params}, normalise(x, method.mean, method.std)))
    patches = jax.device_get(encode(target, jax.device_put(images)))
    draw_pca(path, images, patches.astype(np.float32), method.grid)
