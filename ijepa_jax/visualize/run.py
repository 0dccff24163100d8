"""The pictures of a pretraining run."""

from collections.abc import Callable
from functools import partial
from typing import Any

import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from ijepa_jax import build, metrics, processes
from ijepa_jax.data.sources import Source
from ijepa_jax.evaluate import features as features_lib
from ijepa_jax.methods import IJepa
from ijepa_jax.visualize.curves import draw_run
from ijepa_jax.visualize.features import draw_pca
from ijepa_jax.visualize.gallery import Gallery

_IMAGES = 8  # drawn
_BANK = 1000  # images to find neighbours among


def draw_pictures(
    workdir: epath.Path,
    config: ml_collections.ConfigDict,
    method: IJepa,
    target: Any,
    test: Source,
    pooled: Callable[[Any, np.ndarray], features_lib.Features],
    mesh: Mesh,
) -> list[str]:
    """Draws the pictures of a run into WORKDIR/report; returns their names.

    `target` holds the target encoder's parameters; `pooled` is an extractor of pooled features. With several
    processes all must call this; the first one draws.
    """

    def collect(rows: np.ndarray, extract: Callable) -> tuple[features_lib.Features, np.ndarray]:
        return features_lib.collect(build.eval_batches(config, test, rows, mesh), partial(extract, target), mesh)

    bank, rows = collect(features_lib.sample(len(test), _BANK), pooled)
    gallery = Gallery(config, test, rows, features_lib.sample(len(rows), _IMAGES))
    patches, _ = collect(rows[gallery.chosen], features_lib.extractor(build.encoder(config), mesh, ("patches",)))
    if not processes.is_first():
        return []
    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw_run(folder, metrics.read(workdir))
    gallery.draw_masks(folder / "masks.png", gallery.masks(len(gallery.chosen)))
    draw_pca(folder / "pca.png", gallery.images(gallery.chosen), patches["patches"], method.grid)
    gallery.draw_nearest(folder / "neighbours.png", bank["last"])
    return [*pictures, "masks.png", "pca.png", "neighbours.png"]
