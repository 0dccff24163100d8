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
from ijepa_jax.methods import Look, Method
from ijepa_jax.sharding import all_rows, place_batch
from ijepa_jax.step import State
from ijepa_jax.visualize.curves import draw_run
from ijepa_jax.visualize.features import draw_pca
from ijepa_jax.visualize.gallery import Gallery

_IMAGES = 8  # drawn
_BANK = 1000  # images to find neighbours among
_LOOKED_AT = 64  # images that a method's own pictures are made of


def draw_pictures(
    workdir: epath.Path,
    config: ml_collections.ConfigDict,
    method: Method,
    state: State,
    test: Source,
    pooled: Callable[[Any, np.ndarray], features_lib.Features] | None,
    mesh: Mesh,
) -> dict[str, Any]:
    """Draws the pictures of a run into WORKDIR/report; returns what the report says of them (see `Method.pictures`).

    `pooled` is an extractor of pooled features, None where there is no encoder. With several processes all must call this; the
    first one draws.
    """
    folder = workdir / "report"
    if processes.is_first():
        folder.mkdir(parents=True, exist_ok=True)
    found = dict(_own(folder, config, method, state, test, mesh))
    drawn = [*found.get("pictures", ())]
    if processes.is_first():
        drawn += draw_run(folder, metrics.read(workdir), method.title)
    if pooled is not None:
        drawn += _of_features(folder, config, method, method.encoder(state.params, state.target), test, pooled, mesh)
    return {**found, "pictures": drawn if processes.is_first() else []}


def _own(folder: epath.Path, config: ml_collections.ConfigDict, method: Method, state: State, test: Source, mesh: Mesh) -> dict:
    """What the method alone has to show of some test images."""
    if type(method).pictures is Method.pictures:
        return {}
    config = config.copy_and_resolve_references()
    config.probe.batch_size = _LOOKED_AT
    batch = next(iter(build.eval_batches(config, test, features_lib.sample(len(test), _LOOKED_AT), mesh)))
    batch = {"image": batch["image"], "valid": batch["valid"], **method.prepare()(batch["index"])}
    rows = all_rows(batch, mesh)
    return method.pictures(Look(folder, state.params, state.target, place_batch(batch, mesh), rows, mesh))


def _of_features(
    folder: epath.Path, config: ml_collections.ConfigDict, method: Method, encoder: Any, test: Source, pooled, mesh: Mesh
) -> list[str]:
    """Masks, where there are any, and what the encoder makes of test images."""

    def collect(rows: np.ndarray, extract: Callable) -> tuple[features_lib.Features, np.ndarray]:
        return features_lib.collect(build.eval_batches(config, test, rows, mesh), partial(extract, encoder), mesh)

    bank, rows = collect(features_lib.sample(len(test), _BANK), pooled)
    gallery = Gallery(config, method, test, rows, features_lib.sample(len(rows), _IMAGES))
    backbone = method.backbone()
    patches, _ = collect(rows[gallery.chosen], features_lib.extractor(backbone, mesh, ("patches",)))
    if not processes.is_first():
        return []
    masks = gallery.masks(len(gallery.chosen))
    if masks:
        gallery.draw_masks(folder / "masks.png", masks)
    draw_pca(folder / "pca.png", gallery.images(gallery.chosen), patches["patches"], backbone.grid)
    gallery.draw_nearest(folder / "neighbours.png", bank["last"])
    return [*(["masks.png"] if masks else []), "pca.png", "neighbours.png"]
