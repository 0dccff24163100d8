"""The protocols by name: each takes a bench, a subject and a seed, and tells how well every test image came out."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ijepa_jax.data.segments import patch_classes
from ijepa_jax.data.source import DataError
from ijepa_jax.devices import sharding
from ijepa_jax.evaluate import attentive, finetune, knn, linear, logistic, rank
from ijepa_jax.evaluate import features as features_lib
from ijepa_jax.evaluate.augment import RandAugment
from ijepa_jax.evaluate.bench import Bench, Split, Subject
from ijepa_jax.methods import Method
from ijepa_jax.methods.optim import Optimizer, decay_mask, warmup_cosine
from ijepa_jax.train.step import init, train_step

CKA_IMAGES = 2000  # whose layers are compared
HELD_OUT = 10  # one of so many training images, where a head is chosen on them


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Per task, how well each test image came out, float [N] in 0 .. 1, and what else there is to say."""

    scores: Mapping[str, np.ndarray]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A way of measuring, and what it can be applied to."""

    run: Callable[[Bench, Subject, int], Outcome]
    pixels: bool = True  # whether raw pixels can be evaluated too
    random: str = "random_init"  # what an encoder that starts from random weights is called


def by_knn(bench: Bench, subject: Subject, seed: int) -> Outcome:
    """Weighted k-nearest-neighbour classification."""
    settings, train, test = bench.settings.knn, *_both(bench, subject, ("last",), seed)
    nearest = knn.neighbours(train.features["last"], test.features["last"], settings.k)
    votes = partial(knn.vote, nearest, temperature=settings.temperature)
    return _judged(test, lambda task, classes: votes(train.labels[task], classes=classes), bench.tasks)


def by_logistic(bench: Bench, subject: Subject, seed: int) -> Outcome:
    """L2-regularised logistic regression by L-BFGS: what low-shot results are quoted with, and the probe during training."""
    train, test = _both(bench, subject, ("last",), seed)
    basis = logistic.prepare(train.features["last"])
    l2, room = tuple(bench.settings.logistic.l2), max(bench.tasks.values())
    found = {
        task: logistic.classify(basis, train.labels[task], test.features["last"], classes=classes, l2=l2, room=room)
        for task, classes in bench.tasks.items()
    }
    judged = _judged(test, lambda task, _: found[task].classes, bench.tasks)
    return Outcome(judged.scores, {"logistic": {task: {"l2": one.l2} for task, one in found.items()}})


def by_linear(bench: Bench, subject: Subject, seed: int) -> Outcome:
    """The paper's sweep of linear heads: the best one's predictions, and what every one reached."""
    settings = bench.settings.linear
    if subject.params is None:  # of pixels there is but one layer
        settings = settings.copy_and_resolve_references()
        settings.layers = ("last",)
    test = bench.split(subject, settings.layers, "test")
    train = _kept(bench, subject, settings, settings.layers, seed)
    train, chosen_on = (train, test) if settings.select == "test" else _held_out(train, seed)
    state = _fit_linear(bench, subject, settings, train, seed)
    scores, found = {}, {}
    chosen, tested = (linear.classify(state, settings, split.features) for split in (chosen_on, test))
    for task in bench.tasks:
        of_heads = (chosen[task] == chosen_on.labels[task]).mean(axis=1)
        correct = tested[task] == test.labels[task]
        best = int(of_heads.argmax())
        scores[task] = correct[best].astype(np.float32)
        heads = [
            {**head._asdict(), "accuracy": 100 * float(row.mean())}
            for head, row in zip(linear.heads_of(settings), correct, strict=True)
        ]
        found[task] = {"best": heads[best], "heads": heads}
    return Outcome(scores, {"linear": found})


def by_attentive(bench: Bench, subject: Subject, seed: int) -> Outcome:
    """V-JEPA's attentive probe."""
    settings = bench.settings.attentive
    train = _kept(bench, subject, settings, ("patches",), seed)
    count, network = _count(bench, train, seed), bench.encoder.network
    width, heads = network.width, settings.heads or getattr(network, "heads", 1)
    if subject.params is None:
        width, heads = bench.encoder.patch_values, settings.heads or 1
    if width % heads:
        raise ValueError(f"attentive.heads {heads} do not divide features of width {width}")
    method = attentive.Attentive(tuple(bench.tasks.items()), heads, width, getattr(network, "automatic", False))
    batch_size = bench.batch_size(settings.batch_size, count)
    steps = bench.check_steps(settings.epochs * (count // batch_size), "attentive")
    rate = warmup_cosine(settings.learning_rate, settings.learning_rate, 0.0, 0, steps)
    optimizer = _adamw(rate, settings.weight_decay)
    batches = bench.training_features(subject, ("patches",), batch_size, steps, seed, train)
    params = _train(bench, method, optimizer, batches, steps, seed)
    extract, logits = bench.extract(subject, ("patches",)), jax.jit(method.logits)
    # patches of all test images at a time would not fit in memory
    return _judged_by_logits(bench, lambda images: jax.device_get(logits(params, extract(images)["patches"])))


def by_finetune(bench: Bench, subject: Subject, seed: int) -> Outcome:
    """Full fine-tuning: of random weights, this is supervised training from scratch."""
    settings, tasks = bench.settings.finetune, tuple(bench.tasks.items())
    remat = bench.encoder.network.remat if settings.remat == "pretraining" else settings.remat
    network = dataclasses.replace(bench.encoder.network, drop_path=settings.drop_path, remat=remat)
    encoder = dataclasses.replace(bench.encoder, network=network)
    method = finetune.FineTuned(encoder, tasks, settings.mixup, settings.cutmix, settings.smoothing)
    count = len(bench.chosen(seed))
    batch_size = bench.batch_size(settings.batch_size, count)
    per_epoch = count // batch_size
    steps = bench.check_steps(settings.epochs * per_epoch, "finetune")
    optimizer = finetune.make_optimizer(settings, per_epoch, steps, network.depth)
    augment = RandAugment(magnitude=settings.rand_augment) if settings.rand_augment else None
    if augment and bench.encoder.modality == "signal":
        bench.display.log("finetune.rand_augment changes pixels: signals are cut at random, mixed, and else left as they are")
        augment = None
    batches = bench.training_images(batch_size, steps, seed, augment)
    params = _train(bench, method, optimizer, batches, steps, seed, {"encoder": subject.params})
    everywhere = jax.jit(method.logits, out_shardings=sharding.replicated(bench.mesh))

    def extract(images: np.ndarray) -> features_lib.Features:
        return jax.device_get(everywhere(params, sharding.place_batch({"examples": images}, bench.mesh)["examples"]))

    return _judged_by_logits(bench, extract)


def by_rank(bench: Bench, subject: Subject, seed: int) -> Outcome:
    """How much of its feature space the encoder uses, and how alike its layers are; no labels, and no accuracy."""
    settings = bench.settings.rank
    features, _ = bench.features(subject, ("last",), "test")
    found = {"rankme": rank.rankme(features["last"]), "feature_std": rank.feature_std(features["last"])}
    found["lidar"] = rank.lidar(bench.views(subject, settings.images, settings.views, seed))
    if subject.params is not None:
        layers, _ = bench.features(subject, ("layers",), "test", CKA_IMAGES)
        found["cka"] = rank.cka_table(list(layers["layers"].swapaxes(0, 1))).round(4).tolist()
    return Outcome({}, {"rank": found})


def by_segmentation(bench: Bench, subject: Subject, seed: int) -> Outcome:
    """What is seen in each patch, told from it alone by a linear classifier; an image's score is its share of right patches."""
    names, segments = getattr(bench.train, "segment_names", None), {}
    if names is None:
        raise DataError("segmentation needs images with masks: of the data known here, the generated scenes have them")
    if bench.loader.view.center != 1:
        raise ValueError(f"segmentation needs data.crop 1.0, as masks are of whole images: it is {bench.loader.view.center}")
    splits = {}
    for split in ("train", "test"):
        features, rows = bench.features(subject, ("patches",), split)
        splits[split] = features["patches"]
        segments[split] = patch_classes(bench.splits[split].segments_at(rows), bench.encoder.grid)
    chosen = np.random.default_rng(seed).permutation(segments["train"].size)[: bench.settings.segmentation.patches]
    flat = {split: patches.reshape(-1, patches.shape[-1]) for split, patches in splits.items()}
    predicted = logistic.classify(
        flat["train"][chosen], segments["train"].ravel()[chosen], flat["test"],
        classes=len(names), l2=tuple(bench.settings.segmentation.l2),
    )  # fmt: skip
    strength, predicted, truth = predicted.l2, predicted.classes.reshape(segments["test"].shape), segments["test"]
    seen = [i for i in range(len(names)) if (predicted == i).any() or (truth == i).any()]
    union = {names[i]: 100 * _iou(predicted == i, truth == i) for i in seen}
    details = {"mean_iou": float(np.mean([*union.values()])), "iou": union, "l2": strength}
    return Outcome({"segments": (predicted == truth).mean(axis=1)}, {"segmentation": details})


BY_NAME = {
    "knn": Protocol(by_knn),
    "logistic": Protocol(by_logistic),
    "linear": Protocol(by_linear),
    "attentive": Protocol(by_attentive),
    "finetune": Protocol(by_finetune, pixels=False, random="supervised"),
    "segmentation": Protocol(by_segmentation),
    "rank": Protocol(by_rank),
}


def _both(bench: Bench, subject: Subject, kinds: tuple[str, ...], seed: int) -> tuple[Split, Split]:
    return bench.split(subject, kinds, "train", seed), bench.split(subject, kinds, "test")


def _judged(test: Split, predict: Callable[[str, int], np.ndarray], tasks: Mapping[str, int]) -> Outcome:
    return Outcome({task: (predict(task, classes) == test.labels[task]).astype(np.float32) for task, classes in tasks.items()})


def _judged_by_logits(bench: Bench, extract: features_lib.Extract) -> Outcome:
    """Judges a function from images to logits by task."""
    test = bench.labelled(*bench.collect(bench.test, extract), "test")
    return _judged(test, lambda task, _: test.features[task].argmax(axis=-1), bench.tasks)


def _kept(bench: Bench, subject: Subject, settings, kinds: tuple[str, ...], seed: int) -> Split | None:
    """Features of the training images, where they are computed once; None where every epoch crops the images anew."""
    return None if settings.augment else bench.split(subject, kinds, "train", seed)


def _count(bench: Bench, train: Split | None, seed: int) -> int:
    """The number of training images."""
    return len(bench.chosen(seed)) if train is None else len(next(iter(train.labels.values())))


def _held_out(train: Split, seed: int) -> tuple[Split, Split]:
    """The training images without a tenth of them, and that tenth."""
    count = len(next(iter(train.labels.values())))
    held_out = np.isin(np.arange(count), np.random.default_rng(seed).permutation(count)[: max(1, count // HELD_OUT)])

    def part(of: np.ndarray) -> Split:
        return Split({k: v[of] for k, v in train.features.items()}, {k: v[of] for k, v in train.labels.items()})

    return part(~held_out), part(held_out)


def _fit_linear(bench: Bench, subject: Subject, settings, train: Split | None, seed: int) -> linear.Heads:
    count = _count(bench, train, seed)
    batch_size = bench.batch_size(settings.batch_size, count)
    per_epoch = count // batch_size
    steps = bench.check_steps(settings.epochs * per_epoch, "linear")
    bench.display.start("step", steps)
    state = linear.fit(
        settings,
        bench.training_features(subject, tuple(settings.layers), batch_size, steps, seed, train),
        bench.tasks,
        batch_size=batch_size,
        steps_per_epoch=per_epoch,
        seed=seed,
        watch=lambda step, loss: bench.display.update(step, f"loss {loss:.4f}"),
    )
    bench.display.stop()
    return state


def _adamw(rate, weight_decay: float) -> Optimizer:
    transformation = optax.adamw(rate, weight_decay=weight_decay, mask=decay_mask)
    return Optimizer(transformation, rate, lambda step: weight_decay, lambda step: 1.0)


def _train(
    bench: Bench, method: Method, optimizer: Optimizer, batches, steps: int, seed: int, start: Mapping[str, Any] | None = None
) -> Any:
    """Trains a method by the step that pretraining uses; returns its parameters. `start` replaces some of the fresh ones."""
    fresh = jax.jit(partial(init, method, optimizer, seed))
    state = jax.jit(fresh, out_shardings=sharding.state_shardings(jax.eval_shape(fresh), bench.mesh))()
    if start:
        # copies, as the step overwrites its state, and other seeds start from the same weights
        places = jax.tree.map(lambda leaf: leaf.sharding, {name: state.params[name] for name in start})
        given = jax.jit(partial(jax.tree.map, jnp.copy), out_shardings=places)(start)
        state = state.replace(params={**state.params, **given})
    step = sharding.jit_step(partial(train_step, method=method, optimizer=optimizer, seed=seed), state, bench.mesh)
    bench.display.start("step", steps)
    late = None
    for done, batch in enumerate(batches):
        state, metrics = step(state, batch)
        if late is not None:
            bench.display.update(done, f"loss {float(late['loss']):.4f}")
        late = metrics
    bench.display.stop()
    return state.params


def _iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float((predicted & truth).sum() / (predicted | truth).sum())
