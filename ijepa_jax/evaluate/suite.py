"""An evaluation: a protocol applied to a checkpoint's encoder and to its baselines, with intervals, as one result."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from ijepa_jax import build
from ijepa_jax.data.bad import BadImages
from ijepa_jax.data.loader import Loader
from ijepa_jax.data.pipeline import Loading
from ijepa_jax.data.source import DataError, NoSplit, Subset, hashed
from ijepa_jax.devices import processes, sharding
from ijepa_jax.evaluate import features as features_lib
from ijepa_jax.evaluate.bench import Bench, Subject, chosen_tasks
from ijepa_jax.evaluate.protocols import BY_NAME, Outcome
from ijepa_jax.evaluate.statistics import paired_difference, summarise
from ijepa_jax.evaluate.table import write_tables
from ijepa_jax.host.console import Display
from ijepa_jax.host.errors import one_line
from ijepa_jax.model.encoder import Encoder
from ijepa_jax.model.vit import ViT
from ijepa_jax.settings import evaluation as settings_lib
from ijepa_jax.settings import plain
from ijepa_jax.settings.axes import patch_grid
from ijepa_jax.train import checkpoint, digests
from ijepa_jax.train.step import initial_encoder, random_encoder

_LABELS_SEEN = 1000  # of a data set, by which it is told from others
_LABELS = ("knn", "logistic", "linear", "attentive", "finetune")  # protocols that need them


def evaluate(
    settings: ml_collections.ConfigDict, path: str, *, out: str = "", command: str = "", display: Display | None = None
) -> dict[str, Any]:
    """Evaluates the encoder of a workdir (its best checkpoint, else its newest); returns the result.

    The result, also written as JSON and Markdown into `out` (by default WORKDIR/evaluate), has `task`, `protocol`, `accuracy`
    in per cent, its `interval`, `baselines`, `seconds`, and the same for each of several `tasks`, of which the headline is the
    mean. With several processes all must call this.

    Raises:
        ValueError: settings that do not fit each other or the checkpoint.
        DataError: data without labels, without the split, with more classes in the test split, or with one class.
        CheckpointError: no checkpoint there.
        MemoryError: what does not fit into memory, the devices' or the host's.
    """
    with _memory_named():
        return _evaluate(settings, path, out, command, display or Display(quiet=not processes.is_first()))


@contextlib.contextmanager
def _memory_named() -> Iterator[None]:
    """Makes a MemoryError with advice of what JAX raises when a device's memory does not suffice."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        advice = "try more devices, a smaller data.batch_size, or, of fine-tuning, finetune.remat=full"
        raise MemoryError(f"not enough device memory: {advice} ({one_line(error, 200)})") from error


def _evaluate(settings: ml_collections.ConfigDict, path: str, out: str, command: str, display: Display) -> dict[str, Any]:
    started = time.monotonic()
    settings_lib.check(settings)
    folder = epath.Path(out) if out else checkpoint.locate(path)[0] / "evaluate"
    splits = ("test",) if settings.protocol == "rank" else ()
    bench, trained, digest, step = open_bench(settings, path, folder, display, splits)
    protocol = BY_NAME[settings.protocol]
    subjects = [Subject("checkpoint", trained, digest)]
    outcomes: dict[str, list[Outcome]] = {}
    for seed in range(settings.seed, settings.seed + settings.seeds):
        with_baselines = subjects + (_baselines(bench, protocol, seed) if settings.baselines else [])
        for subject in with_baselines:
            display.log(f"{settings.protocol}, seed {seed}: {subject.name}")
            outcome = protocol.run(bench, subject, seed)
            reached = ", ".join(f"{task} {100 * np.mean(scores):.1f}" for task, scores in outcome.scores.items())
            display.log(f"{subject.name}: {reached}") if reached else None
            outcomes.setdefault(subject.name, []).append(outcome)
    result = {
        **_headline(settings, outcomes),
        "seconds": round(time.monotonic() - started, 1),
        "checkpoint": str(path),
        "name": bench.method.title,
        "step": step,
        "encoder_digest": digest,
        "network": str(bench.encoder.network),
        "code": processes.code_digest(),
        "date": datetime.date.today().isoformat(),
        "data": bench.loader.name,
        "contents": {split: _told_by(source) for split, source in bench.splits.items()},
        **_counts(bench),
        "warnings": list(dict.fromkeys(bench.warnings)),
        "bad_images": sum(bench.unreadable.values()),
        "image_size": list(bench.encoder.image_size),
        "command": command,
        "details": {name: [dict(one.details) for one in found] for name, found in outcomes.items()},
        "settings": plain.to_plain(settings),
    }
    if processes.is_first():
        write_tables(folder, file_name(settings, bench.loader.name), result)
    return result


def _counts(bench: Bench) -> dict[str, int]:
    """How many images of each split the result rests on: of the training split those whose labels were used."""
    readable = {split: len(source) - bench.unreadable.get(split, 0) for split, source in bench.splits.items()}
    counts = {f"{split}_images": count for split, count in readable.items()}
    if bench.settings.data.fraction < 1 and bench.tasks:
        counts |= {"train_images": len(bench.chosen(bench.settings.seed)), "train_images_in_all": readable["train"]}
    return counts


def open_bench(
    settings: ml_collections.ConfigDict, path: str, folder: epath.Path, display: Display, optional: Sequence[str] = ()
) -> tuple[Bench, Any, str, int]:
    """The bench of an evaluation that writes into `folder`; the parameters of a workdir's encoder, their digest and step.

    Both splits are opened, or, where given, those `optional` ones that the data have.
    """
    weights, saved = checkpoint.restore_encoder(path, settings.step)
    method, loader = saved.method(), _loader(saved.config(), settings)
    trained = method.backbone()
    encoder = dataclasses.replace(trained, image_size=loader.view.size)
    _check_encoder(settings, encoder)
    mesh = sharding.make_mesh(settings.mesh.data, settings.mesh.fsdp)
    shapes = jax.eval_shape(functools.partial(initial_encoder, method, 0))
    if jax.tree.map(np.shape, weights) != jax.tree.map(np.shape, shapes):
        raise checkpoint.CheckpointError(f"{path}: the weights are not of the architecture that its settings name")
    params = jax.tree.map(jax.device_put, weights, sharding.state_shardings(shapes, mesh))
    opened = {}
    for split in optional or ("train", "test"):
        try:
            opened[split] = _open(loader, split, settings.data[f"{split}_images"], display)
        except NoSplit:
            if len(optional) < 2:
                raise
    tasks = chosen_tasks(settings, opened["train"], opened["test"]) if settings.protocol in _LABELS else {}
    counts = {split: len(source) for split, source in opened.items()}
    processes.check_agreement({**counts, **plain.flatten(settings), "code": processes.code_digest()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror}. Give another folder with --out") from error
    listing = folder / f"bad_images{'' if processes.is_first() else f'_{jax.process_index()}'}.txt"
    listing.unlink(missing_ok=True)  # of another evaluation
    bad = BadImages(listing, sum(counts.values()), loader.max_bad_fraction, display.log)
    cache = checkpoint.locate(path)[0] / "features" if settings.cache else None
    bench = Bench(settings, loader, method, encoder, mesh, opened, tasks, display, bad, cache)
    return bench, params, digests.encoder_digest(weights, trained), saved.step


def _loader(run: ml_collections.ConfigDict, settings: ml_collections.ConfigDict) -> Loader:
    """How the checkpoint's run would read the evaluation's choice of data."""
    data, own = settings.data, build.loader(run)
    view = {"size": data.image_size and _size(data.image_size, own.view.size), "center": data.crop}
    view = {name: value for name, value in view.items() if value is not None}
    if view and own.view.cropping == "none":  # examples of the run's size are shown in another way
        view["cropping"] = "center"
    sizes = {"train": data.size, "test": data.test_size}
    return dataclasses.replace(
        own.with_view(color_jitter=0.0, **view),
        name=data.name or own.name,
        directory=data.directory or own.directory,
        scenes={split: own.scenes[split] if size is None else size for split, size in sizes.items()},
        loading=Loading(data.workers, data.threads, data.buffer),
        max_bad_fraction=data.max_bad_fraction,
        eval_batch_size=data.batch_size,
    )


def contents(run: ml_collections.ConfigDict, settings: ml_collections.ConfigDict) -> dict[str, str]:
    """Which images an evaluation of this run's encoder would be of, by split.

    Raises ValueError where it could not be made, DataError where that is for its images or their labels.
    """
    settings_lib.check(settings)
    loader, silent = _loader(run, settings), Display(quiet=True)
    _check_encoder(settings, dataclasses.replace(build.trained_method(run).backbone(), image_size=loader.view.size))
    opened = {split: _open(loader, split, settings.data[f"{split}_images"], silent) for split in ("train", "test")}
    if settings.protocol in _LABELS:
        chosen_tasks(settings, opened["train"], opened["test"])
    return {split: _told_by(source) for split, source in opened.items()}


def _check_encoder(settings: ml_collections.ConfigDict, encoder: Encoder) -> None:
    """Raises ValueError for an encoder that the protocol, or the size of the images, is not for."""
    patch_grid(encoder.image_size, encoder.network.patch)
    if settings.protocol == "segmentation" and encoder.modality != "image":
        raise ValueError(f"segmentation is of images, and the encoder is of {encoder.modality}s")
    if settings.protocol == "finetune" and not isinstance(encoder.network, ViT):
        raise ValueError("finetune is for our ViT: this encoder is another network")


def _told_by(source: Subset) -> str:
    """Digits that tell images with their labels from others, wherever they lie and whenever they were copied there."""
    labels = source.labels_at(features_lib.sample(len(source), _LABELS_SEEN)) if source.classes else {}
    told = sorted({**source.contents(), **{f"labels of {task}": hashed([values]) for task, values in labels.items()}}.items())
    return hashed(map(str, told))


def _size(given: int | Sequence[int], trained: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes that an evaluation shows, of `data.image_size`; one number is the side of square images, or of frames."""
    if isinstance(given, int):
        return (*trained[:-2], *[given] * len(trained[-2:]))
    if len(given) != len(trained):
        raise ValueError(f"data.image_size {tuple(given)} must have {len(trained)} values, as the encoder's has, {trained}")
    return tuple(given)


def _open(loader: Loader, split: str, wanted: int, display: Display) -> Subset:
    begun = time.monotonic()
    source = loader.open(split)
    rows = features_lib.sample(len(source), wanted or len(source))
    if not len(rows):
        raise DataError(f"{loader.name} has no images in its {split} split")
    display.log(
        f"{loader.name} {split}: {len(rows)} of {len(source)} {loader.view.modality}s ({time.monotonic() - begun:.1f} s)"
    )
    return Subset(source, rows)


def _baselines(bench: Bench, protocol, seed: int) -> list[Subject]:
    """A random encoder, and raw pixels where the protocol can."""
    return [random_init(bench, protocol.random, seed)] + [Subject("pixels", None, "pixels")] * protocol.pixels


def random_init(bench: Bench, name: str, seed: int) -> Subject:
    """An encoder of the same shape with random weights, as pretraining would start with this seed."""
    params = random_encoder(bench.method, seed, bench.mesh)
    return Subject(name, params, digests.digest_of(params))


def _headline(settings: ml_collections.ConfigDict, outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    """Accuracies in per cent with intervals: of each task, and of their mean, which is the headline."""
    tasks = list(outcomes["checkpoint"][0].scores)
    if not tasks:
        names = ("rankme", "lidar", "feature_std")
        measures = {
            subject: {name: float(np.mean([outcome.details["rank"][name] for outcome in found])) for name in names}
            for subject, found in outcomes.items()
        }
        ours = measures.pop("checkpoint")
        return {"task": "rank", "protocol": settings.protocol, **ours, "baselines": measures}
    scores = {name: {t: 100 * np.stack([o.scores[t] for o in found]) for t in tasks} for name, found in outcomes.items()}
    per_task = {task: _compared(settings, {name: of[task] for name, of in scores.items()}) for task in tasks}
    if len(tasks) == 1:
        return {"task": tasks[0], "protocol": settings.protocol, **per_task[tasks[0]]}
    mean = _compared(settings, {name: np.mean([*of.values()], axis=0) for name, of in scores.items()})
    return {"task": f"mean of {', '.join(tasks)}", "protocol": settings.protocol, **mean, "tasks": per_task}


def _compared(settings: ml_collections.ConfigDict, scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One task's accuracy of the checkpoint [seeds, N], with its interval, beside the baselines'."""
    found = {name: summarise(values, seed=settings.seed) for name, values in scores.items()}
    ours = found.pop("checkpoint")
    compared = {"accuracy": ours["mean"], **{key: value for key, value in ours.items() if key != "mean"}}
    compared["baselines"] = {name: value["mean"] for name, value in found.items()}
    compared["better_by"] = {}
    for name in found:
        gain, interval = paired_difference(scores["checkpoint"], scores[name], seed=settings.seed)
        compared["better_by"][name] = {"points": gain, "interval": list(interval)}
    return _rounded(compared)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(float(value), 3)


def file_name(settings: ml_collections.ConfigDict, data: str) -> str:
    """What the tables of an evaluation on a data set are called, without their endings: other settings, another name."""
    place = data.rstrip("/").rsplit("/", 1)[-1].replace(":", "-")
    mark = hashlib.blake2b(json.dumps(plain.to_plain(settings), sort_keys=True).encode(), digest_size=3).hexdigest()
    return f"{settings.protocol}-{Path(place).stem}-{mark}"
