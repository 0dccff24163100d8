"""The pictures of a pretraining run."""

from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from ijepa_jax import build, metrics, processes
from ijepa_jax.data.sources import Source
from ijepa_jax.evaluate import features as features_lib
from ijepa_jax.methods import IJepa
from ijepa_jax.visualize.curves import draw_curves, draw_probes
from ijepa_jax.visualize.features import draw_neighbours, draw_pca, nearest
from ijepa_jax.visualize.masks import draw_masks

_IMAGES = 8  # drawn
_BANK = 1000  # images to find neighbours among


def draw_pictures(
    workdir: epath.Path,
    config: ml_collections.ConfigDict,
    method: IJepa,
    target: Any,
    test: Source,
    pooled: Callable[[Any, np.ndarray], np.ndarray],
    mesh: Mesh,
) -> list[str]:
    """Draws the pictures of a run into WORKDIR/report; returns their names.

    `target` holds the target encoder's parameters; `pooled` maps (parameters, images) to pooled features. With several
    processes all must call this; the first one draws.
    """
    rows = features_lib.sample(len(test), _BANK)
    bank = features_lib.images_of(build.eval_batches(config, test, rows))
    chosen = features_lib.sample(len(bank), _IMAGES)
    size = config.probe.batch_size  # for which `pooled` is compiled already
    found = np.concatenate([pooled(target, bank[at : at + size]) for at in range(0, len(bank), size)])
    patches = features_lib.extractor(method, mesh, pooled=False)(target, bank[chosen])
    if not processes.is_first():
        return []
    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    lines = metrics.read(workdir)
    draw_curves(folder / "curves.png", lines)
    pictures = ["curves.png"]
    if any(key.startswith("probe/linear/") for line in lines for key in line):
        draw_probes(folder / "probes.png", lines)
        pictures.append("probes.png")
    _draw_masks(folder / "masks.png", method, bank[chosen])
    draw_pca(folder / "pca.png", bank[chosen], patches, method.grid)
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
