"""What a checkpoint has learned, as pictures on a page: of any workdir with an encoder, on any data."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from ijepa_jax.data.source import Subset
from ijepa_jax.devices import processes, sharding
from ijepa_jax.evaluate import features as features_lib
from ijepa_jax.evaluate import prediction
from ijepa_jax.evaluate.bench import Bench, Subject
from ijepa_jax.evaluate.suite import open_bench, random_init
from ijepa_jax.host.console import Display
from ijepa_jax.host.errors import one_line
from ijepa_jax.host.files import absolute
from ijepa_jax.methods import Method
from ijepa_jax.settings.evaluation import default
from ijepa_jax.train import checkpoint
from ijepa_jax.visualize import explore_page
from ijepa_jax.visualize.canvas import Canvas
from ijepa_jax.visualize.features import draw_pca, label_agreement, nearest_others
from ijepa_jax.visualize.gallery import Gallery
from ijepa_jax.visualize.map import draw_map, project
from ijepa_jax.visualize.page import write_page
from ijepa_jax.visualize.prediction import draw_prediction, draw_reconstruction, token_mean
from ijepa_jax.visualize.similarity import draw_similarity

SPLITS = ("train", "test")
_SIMILAR = 4  # images whose similarity maps are drawn
_MEASURED = 256  # images that prediction is measured on
_MAPPED = 1000  # images on the map: t-SNE takes a second or two for each thousand
_QUERIES = 2000  # images whose neighbours are compared with them,
_NEIGHBOURS = 10  # so many of each
_LONGEST = 24  # letters of a class's name below a picture


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What an encoder makes of the bank: pooled features float [N, D], and patches float [n, P, D] of the images drawn."""

    pooled: np.ndarray
    patches: np.ndarray


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Cosines by measure, float [n, M, T] (see `prediction.measure`), of the images at some places of the bank."""

    places: np.ndarray
    cosines: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """All that is drawn: images, what the encoders (trained, random_init) make of them, masks and predictions."""

    gallery: Gallery
    encoded: Mapping[str, Encoded]
    masks: dict[str, np.ndarray]
    predictions: Predictions | None
    left_out: str = ""  # why there are no predictions
    filled: np.ndarray | None = None  # the images drawn, with guesses of the pixels that are not seen


def explore(
    path: str, *, out: str = "", data: str = "", directory: str = "", split: str = "test", images: int = 8, bank: int = 2000,
    step: int = 0, seed: int = 0, command: str = "", display: Display,
) -> dict[str, Any]:  # fmt: skip
    """Draws what a workdir's encoder makes of a data set; returns what was written and measured.

    Writes pictures, a page of Markdown (index.md) and the same as one HTML file (index.html). With several processes all must
    call this; the first one writes.

    Args:
      path: a workdir, or WORKDIR/checkpoints/STEP.
      out: a folder, by default WORKDIR/visualize.
      data: the data set, named as for training, by default the checkpoint's own; `directory`: where tfds data sets are.
      split: train or test.
      images: how many are drawn, out of a `bank` of so many, spread evenly over the split.
      step: which checkpoint, see `checkpoint.restore_parts`.
      seed: of the random encoder, the masks, and which images are drawn.
      command: what the page says it was made with.
      display: where progress is shown.

    Raises:
      ValueError: a split that there is not, more images than the bank is to have, or foreign weights that are no workdir.
      DataError, CheckpointError: as `suite.evaluate`.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not known: it must be one of {', '.join(SPLITS)}")
    if images > bank:
        raise ValueError(f"{images} images are to be drawn out of a bank of {bank}: give a larger bank")
    folder = absolute(out) if out else checkpoint.locate(path)[0] / "visualize"
    settings = default("rank")
    settings.data.name, settings.data.directory, settings.data[f"{split}_images"] = data, directory, bank
    settings.cache, settings.step = False, step
    bench, params, digest, found_step = open_bench(settings, path, folder, display, (split,))
    of_use = prediction.guesses_pixels(bench.method) or isinstance(bench.method, prediction.Predicting)
    saved = checkpoint.restore_parts(path, found_step, ("params", "target") if of_use else ())
    origin = saved.notes.get("origin", {"warm_start": True})
    learned = jax.tree.map(jax.device_put, saved.trees, sharding.state_shardings(saved.trees, bench.mesh))
    look = _look(bench, Subject("checkpoint", params, digest), learned, split, images, seed)
    shown = Canvas(bench.encoder.image_size, bench.encoder.grid)
    result = {
        "out": str(folder), "checkpoint": str(path), "step": found_step, "encoder_digest": digest, "data": bench.loader.name,
        "split": split, "bank": len(look.gallery.rows), "images": len(look.gallery.chosen), "seed": seed,
        "own_masks": "warm_start" in origin, "command": command, "name": bench.method.title,
        "left_out": look.left_out, "modality": shown.kind, "wide": shown.wide,
    }  # fmt: skip
    if processes.is_first():
        display.log("drawing")
        result |= _draw(folder, look, seed)
        (folder / "index.md").write_text(text := explore_page.markdown(result))
        write_page(folder / "index.html", text, explore_page.title(result))
    return {**result, "page": "index.html"}


def _drawn(count: int, images: int, seed: int) -> np.ndarray:
    """Places of the images to draw, evenly spread over the bank; other ones for other seeds."""
    return np.sort((features_lib.sample(count, images) + seed) % count)


def _patches(bench: Bench, subject: Subject, gallery: Gallery) -> np.ndarray:
    """The chosen images' patch features, float32 [n, P, D]."""
    source = Subset(gallery.source, gallery.rows[gallery.chosen])
    return bench.collect(source, bench.extract(subject, ("patches",)))[0]["patches"]


def _look(bench: Bench, trained: Subject, learned: dict[str, Any], split: str, images: int, seed: int) -> Drawing:
    """Encodes the bank and predicts what is masked; `learned`: `params` and `target`, as far as they are there and of use."""
    subjects = {"trained": trained, "random_init": random_init(bench, "random_init", seed)}
    pooled = {name: bench.features(subject, ("last",), split) for name, subject in subjects.items()}
    rows = pooled["trained"][1]
    gallery = Gallery(bench.loader.view, bench.method, bench.splits[split], rows, _drawn(len(rows), images, seed))
    encoded = {name: Encoded(pooled[name][0]["last"], _patches(bench, subject, gallery)) for name, subject in subjects.items()}
    masks = gallery.masks(min(len(rows), max(_MEASURED, images)), seed)
    left_out = _cannot_predict(bench.method, learned, gallery, masks)
    filled = None
    if masks and "params" in learned and prediction.guesses_pixels(bench.method):
        images = gallery.images(gallery.chosen)
        of_them = {name: values[: len(images)] for name, values in masks.items()}
        filled = prediction.reconstructions(bench.method, learned["params"], images, of_them, bench.mesh)
    predictions = None if left_out else _predict(bench, learned, gallery, masks)
    return Drawing(gallery, encoded, masks, predictions, left_out, filled)


def _cannot_predict(method: Method, learned: dict[str, Any], gallery: Gallery, masks: dict[str, np.ndarray]) -> str:
    """Why there is nothing to be seen of what a method predicts; empty where there is."""
    if not isinstance(method, prediction.Predicting):
        return f"{method.title} does not predict tokens of blocks from contexts"
    if "params" not in learned:
        return "the checkpoint holds an encoder only, without a predictor"
    if not masks:
        return f"the grid is too small for masks of {method.title}"
    if learned.get("target") is None:
        return f"{method.title} keeps no target encoder, whose output predictions are compared with"
    try:
        prediction.check(method, learned["params"], learned.get("target"), gallery.images(gallery.chosen[:1]), masks)
    except Exception as error:  # whatever a method of one's own raises where it predicts something else
        reason = one_line(error, 200)
        return f"what {method.title} predicts cannot be compared with what its target encoder gives ({reason})"
    return ""


def _predict(bench: Bench, learned: dict[str, Any], gallery: Gallery, masks: dict[str, np.ndarray]) -> Predictions:
    """What the predictor makes of the images drawn and others, by their masks."""
    method = bench.method
    params, target = learned["params"], learned.get("target")
    bench.display.log("predicting target blocks")
    means, whitening = prediction.position_means(
        method, target, bench.batches(Subset(gallery.source, gallery.rows)), bench.mesh
    )
    others = np.setdiff1d(features_lib.sample(len(gallery.rows), len(masks["target"])), gallery.chosen)
    places = np.concatenate([gallery.chosen, others])[: len(masks["target"])]
    masks = {name: values[: len(places)] for name, values in masks.items()}
    cosines = prediction.measure(method, params, target, means, gallery.images(places), masks, bench.mesh, whitening)
    return Predictions(places, cosines)


def _labels(gallery: Gallery) -> dict[str, np.ndarray]:
    """Labels int [N] of the bank by task, of those tasks that all images have a label of."""
    found = gallery.source.labels_at(gallery.rows)
    return {task: values for task, values in found.items() if values.min() >= 0}


def _captions(labels: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]]) -> list[str] | None:
    """A text of all labels of each image, two tasks on a line; None without labels."""
    if not labels:
        return None
    shown = []
    for task, values in labels.items():
        words = [str(value) if task not in names else _short(str(names[task][value])) for value in values]
        plain = len(labels) > 1 and all(word.isdigit() for word in words)
        shown.append([f"{task} {word}" for word in words] if plain else words)
    lines = [[", ".join(pair) for pair in zip(*shown[i : i + 2], strict=True)] for i in range(0, len(shown), 2)]
    return ["\n".join(parts) for parts in zip(*lines, strict=True)]


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _agreements(encoded: Mapping[str, Encoded], labels: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """By task: how often the nearest neighbours of an image share its label, in per cent, by encoder and by chance."""
    found: dict[str, dict[str, float]] = {task: {} for task in labels}
    chances: dict[str, float] = {}
    for name, one in encoded.items():
        if not labels or len(one.pooled) < 2:
            continue
        queries = features_lib.sample(len(one.pooled), _QUERIES)
        near = nearest_others(one.pooled, queries, _NEIGHBOURS)
        for task, values in labels.items():
            share, chance = label_agreement(values, queries, near)
            found[task][name], chances[task] = round(100 * share, 2), round(100 * chance, 2)
    return {task: {**found[task], "chance": chance} for task, chance in chances.items()}


def _summary(predictions: Predictions | None, masks: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """Mean cosines over all valid target tokens of the images measured; those with other images where there are any."""
    if predictions is None:
        return None
    count = len(predictions.places)
    means = {name: round(token_mean(values, masks["target_length"][:count]), 4) for name, values in predictions.cosines.items()}
    alone = ("other", "other_centred", "centred", "position_mean") if count < 2 else ()
    return {"images": count, **{name: value for name, value in means.items() if name not in alone}}


def _draw(folder: epath.Path, look: Drawing, seed: int) -> dict[str, Any]:
    """Draws all pictures; returns their names, in the page's order, and what was measured for them."""
    for name in explore_page.PICTURES:
        (folder / name).unlink(missing_ok=True)  # another page's, perhaps with more pictures
    gallery, labels, mapped = look.gallery, _labels(look.gallery), features_lib.sample(len(look.gallery.rows), _MAPPED)
    _draw_images(folder, look)
    captions = _captions(labels, gallery.source.class_names)
    shown = {task: values[mapped] for task, values in labels.items()}
    for name, suffix in (("trained", ""), ("random_init", "_random_init")):
        if len(gallery.rows) > 1:
            gallery.draw_nearest(folder / f"neighbours{suffix}.png", look.encoded[name].pooled, captions)
        maps = project(look.encoded[name].pooled[mapped], seed)
        draw_map(folder / f"map{suffix}.png", maps, shown, gallery.source.class_names)
    return {
        "pictures": [name for name in explore_page.PICTURES if (folder / name).exists()],
        "neighbours": _agreements(look.encoded, labels),
        "prediction": _summary(look.predictions, look.masks),
        "maps": [*maps],
        "mapped": len(mapped),
        "tasks": [*labels],
    }


def _draw_images(folder: epath.Path, look: Drawing) -> None:
    """Draws what is masked, encoded and predicted of the chosen images."""
    gallery, trained, random = look.gallery, look.encoded["trained"], look.encoded["random_init"]
    images, grid = gallery.images(gallery.chosen), gallery.method.backbone().grid
    if look.masks:
        gallery.draw_masks(folder / "masks.png", look.masks)
    draw_pca(folder / "pca.png", images, trained.patches, grid, random.patches)
    for name, one in (("similarity", trained), ("similarity_random_init", random)):
        draw_similarity(folder / f"{name}.png", images[:_SIMILAR], one.patches[:_SIMILAR], grid)
    count = len(images)
    first = {name: values[:count] for name, values in look.masks.items()}
    if look.filled is not None:
        draw_reconstruction(folder / "reconstruction.png", images, first, look.filled, gallery.patch)
    if look.predictions is not None:
        cosines = look.predictions.cosines
        drawn = images, first, cosines["cosine"][:count], cosines["centred"][:count]
        draw_prediction(folder / "prediction.png", *drawn, gallery.patch)
