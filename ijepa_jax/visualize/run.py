"""The pictures of a pretraining run."""

import dataclasses
from functools import partial
from typing import Any

import numpy as np
from etils import epath

from ijepa_jax.devices import processes
from ijepa_jax.devices.sharding import all_rows, place_batch
from ijepa_jax.evaluate import features as features_lib
from ijepa_jax.evaluate.prediction import reconstructions
from ijepa_jax.methods import Look, Method
from ijepa_jax.settings.axes import AXES
from ijepa_jax.train import metrics
from ijepa_jax.train.run import Run
from ijepa_jax.train.step import State
from ijepa_jax.visualize.canvas import Canvas
from ijepa_jax.visualize.curves import draw_run
from ijepa_jax.visualize.features import draw_pca
from ijepa_jax.visualize.gallery import Gallery
from ijepa_jax.visualize.prediction import draw_reconstruction

_IMAGES = 8  # drawn
_BANK = 1000  # images to find neighbours among
_LOOKED_AT = 64  # images that a method's own pictures are made of


def draw_pictures(run: Run, state: State, encoder: Any, pooled: features_lib.Extract | None) -> dict[str, Any]:
    """Draws the pictures of a run into WORKDIR/report; returns what the report says of them (see `Method.pictures`).

    `encoder`: its parameters, and `pooled` gives pooled features by it; both None where there is none. With several processes
    all must call this; the first one draws.
    """
    folder, kind = run.workdir / "report", "image" if run.encoder is None else run.encoder.modality
    if processes.is_first():
        folder.mkdir(parents=True, exist_ok=True)
    found = dict(_own(folder, run, state))
    drawn = [*found.get("pictures", ())]
    if processes.is_first():
        drawn += draw_run(folder, metrics.read(run.workdir), run.method.title, kind)
    if pooled is not None:
        drawn += _of_features(folder, run, pooled, encoder, state.params)
        found |= {"modality": kind, "wide": Canvas(run.encoder.image_size, run.encoder.grid).wide}
    return {**found, "pictures": drawn if processes.is_first() else []}


def _own(folder: epath.Path, run: Run, state: State) -> dict[str, Any]:
    """What the method alone has to show of some test images."""
    method = run.method
    if type(method).pictures is Method.pictures:
        return {}
    loader = dataclasses.replace(run.loader, eval_batch_size=_LOOKED_AT)
    batch = next(iter(loader.eval_batches(run.test, features_lib.sample(len(run.test), _LOOKED_AT), run.mesh.size)))
    batch = {name: batch[name] for name in batch.keys() & {*AXES, "valid"}} | method.prepare()(batch["index"])
    rows = all_rows(batch, run.mesh)
    return method.pictures(Look(folder, state.params, state.target, place_batch(batch, run.mesh), rows, run.mesh))


def _of_features(folder: epath.Path, run: Run, pooled: features_lib.Extract, encoder: Any, params: Any) -> list[str]:
    """Masks, where there are any, what the encoder makes of test images, and their pixels where the method guesses these."""

    def collect(rows: np.ndarray, extract: features_lib.Extract) -> tuple[features_lib.Features, np.ndarray]:
        return features_lib.collect(run.loader.eval_batches(run.test, rows, run.mesh.size), rows, extract, run.mesh)

    bank, rows = collect(features_lib.sample(len(run.test), _BANK), pooled)
    gallery = Gallery(run.loader.view, run.method, run.test, rows, features_lib.sample(len(rows), _IMAGES))
    patches, _ = collect(rows[gallery.chosen], partial(features_lib.extractor(run.encoder, run.mesh, ("patches",)), encoder))
    masks, images = gallery.masks(len(gallery.chosen)), gallery.images(gallery.chosen)
    filled = reconstructions(run.method, params, images, masks, run.mesh) if masks else None
    if not processes.is_first():
        return []
    if masks:
        gallery.draw_masks(folder / "masks.png", masks)
    if filled is not None:
        draw_reconstruction(folder / "reconstruction.png", images, masks, filled, gallery.patch)
    if views := run.method.views():
        gallery.draw_views(folder / "views.png", run.config.seed)
    draw_pca(folder / "pca.png", images, patches["patches"], run.encoder.grid)
    gallery.draw_nearest(folder / "neighbours.png", bank["last"])
    there = {
        "masks.png": bool(masks), "reconstruction.png": filled is not None, "views.png": bool(views), "pca.png": True,
        "neighbours.png": True,
    }  # fmt: skip
    return [name for name, drawn in there.items() if drawn]
