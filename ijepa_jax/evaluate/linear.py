"""The paper's linear probe (appendix A): a sweep of linear heads, trained at once by LARS on shared features.

Every head is one choice of layers (last, or the last four concatenated), of batch normalisation before it or not, of learning
rate and of weight decay. Heads do not know of each other: a pass over the images serves all of them, and all tasks.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

_BATCH_NORM_EPSILON = 1e-6  # of the normalisation without scale and bias before a head, as in MAE's linear probe
_AVERAGED = 0.1  # of its running mean and variance that a batch replaces
_PER_IMAGES = 256  # that learning rates are for


class Head(NamedTuple):
    """What tells a head from the others."""

    layers: str
    norm: str
    learning_rate: float
    weight_decay: float


class Heads(NamedTuple):
    """The state of all heads.

    `params` holds, by task, layers and norm, the kernels [K, D, classes] and biases [K, classes] of K heads, one for each
    learning rate and weight decay; `running` the mean and variance [D] of features by their layers.
    """

    params: Any
    running: Any
    opt_state: Any
    step: jax.Array


Step = Callable[[Heads, Mapping[str, jax.Array]], tuple[Heads, jax.Array]]


def heads_of(settings: ml_collections.ConfigDict) -> list[Head]:
    """All heads of a sweep, in the order in which `classify` gives their predictions."""
    return [Head(*choice) for choice in itertools.product(settings.layers, settings.norms, *_rates(settings))]


def fit(
    settings: ml_collections.ConfigDict,
    batches: Iterator[Mapping[str, jax.Array]],
    tasks: Mapping[str, int],
    *,
    batch_size: int,
    steps_per_epoch: int,
    seed: int,
    watch: Callable[[int, float], None] = lambda step, loss: None,
) -> Heads:
    """Trains all heads on batches of features by layers (float [B, D]) and labels by task (int32 [B]).

    `watch` is called with the number of steps done and the mean loss of the heads, a step late.
    """
    optimizer = _optimizer(settings, batch_size / _PER_IMAGES, steps_per_epoch)
    state, step, late = None, None, None
    for i, batch in enumerate(batches):
        if state is None:
            widths = {layers: batch[layers].shape[1] for layers in settings.layers}
            state = _init(settings, widths, tasks, optimizer, seed)
            step = jax.jit(partial(_step, optimizer=optimizer), donate_argnums=0)
        with jax.default_matmul_precision("float32"):  # the heads' products are small, and accelerators round otherwise
            state, loss = step(state, batch)
        if late is not None:
            watch(i, float(late))
        late = loss
    return state


def classify(state: Heads, settings: ml_collections.ConfigDict, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The class that every head gives every image (float [N, D] by layers): int32 [heads, N] by task."""

    def classes(task: str, layers: str, norm: str) -> np.ndarray:
        moments = state.running[layers] if norm == "batch" else None
        return _classify(state.params[_name(task, layers, norm)], features[layers], moments)

    choices = list(itertools.product(settings.layers, settings.norms))
    tasks = {name.split("/")[0] for name in state.params}
    return {task: np.concatenate([classes(task, *choice) for choice in choices]) for task in tasks}


def _name(task: str, layers: str, norm: str) -> str:
    return f"{task}/{layers}/{norm}"


def _rates(settings: ml_collections.ConfigDict) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(settings.learning_rates), tuple(settings.weight_decays)


def _optimizer(settings: ml_collections.ConfigDict, scale: float, steps_per_epoch: int) -> optax.GradientTransformation:
    """LARS for K heads side by side; trust ratio and weight decay act on each head's kernel by itself, not on biases."""
    rates, decays = (jnp.asarray(values) for values in zip(*itertools.product(*_rates(settings)), strict=True))

    def lars(rate, decay):
        def schedule(step):
            return scale * rate * 0.1 ** (step // (settings.decay_every * steps_per_epoch))

        return optax.lars(schedule, decay, weight_decay_mask=_kernels, trust_ratio_mask=_kernels, momentum=0.9)

    def init(params):
        return jax.vmap(lambda rate, decay, one: lars(rate, decay).init(one))(rates, decays, params)

    def update(gradients, state, params):
        return jax.vmap(lambda rate, decay, *of_one: lars(rate, decay).update(*of_one))(rates, decays, gradients, state, params)

    return optax.GradientTransformation(init, update)


def _kernels(params) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _init(settings, widths: Mapping[str, int], tasks: Mapping[str, int], optimizer, seed: int) -> Heads:
    heads = len(list(itertools.product(*_rates(settings))))
    params = {}
    choices = itertools.product(tasks.items(), settings.layers, settings.norms)
    for i, ((task, classes), layers, norm) in enumerate(choices):
        key = jax.random.fold_in(jax.random.key(seed), i)
        kernel = 0.01 * jax.random.normal(key, (widths[layers], classes))
        params[_name(task, layers, norm)] = {"kernel": jnp.stack([kernel] * heads), "bias": jnp.zeros((heads, classes))}
    running = {layers: {"mean": jnp.zeros(width), "variance": jnp.ones(width)} for layers, width in widths.items()}
    return Heads(params, running, optimizer.init(params), jnp.zeros([], jnp.int32))


def _step(state: Heads, batch: Mapping[str, jax.Array], *, optimizer) -> tuple[Heads, jax.Array]:
    moments = {layers: {"mean": batch[layers].mean(axis=0), "variance": batch[layers].var(axis=0)} for layers in state.running}

    def loss(params):
        total = 0.0
        for name, heads in params.items():
            task, layers, norm = name.split("/")
            logits = _logits(heads, batch[layers], moments[layers] if norm == "batch" else None)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, batch[task][:, None])
            total += each.mean(axis=0).sum()
        return total

    value, gradients = jax.value_and_grad(loss)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # the first batch replaces what there is, later ones a part of it
    share = jnp.where(state.step == 0, 1.0, _AVERAGED)
    running = jax.tree.map(lambda old, new: (1 - share) * old + share * new, state.running, moments)
    count = sum(len(heads["bias"]) for heads in params.values())
    return Heads(params, running, opt_state, state.step + 1), value / count


def _logits(heads: Mapping[str, jax.Array], features: jax.Array, moments: Mapping[str, jax.Array] | None) -> jax.Array:
    """[B, K, classes]."""
    if moments is not None:
        features = (features - moments["mean"][None]) * jax.lax.rsqrt(moments["variance"] + _BATCH_NORM_EPSILON)[None]
    return jnp.einsum("bd,kdc->bkc", features, heads["kernel"]) + heads["bias"][None]


@jax.jit
def _classify_batch(heads, features, moments):
    return _logits(heads, features, moments).argmax(axis=-1).astype(jnp.int32).T


def _classify(heads, features: np.ndarray, moments, rows: int = 4096) -> np.ndarray:
    with jax.default_matmul_precision("float32"):
        parts = [_classify_batch(heads, features[at : at + rows], moments) for at in range(0, len(features), rows)]
    return np.concatenate(jax.device_get(parts), axis=1)
