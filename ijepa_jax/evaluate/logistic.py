"""Linear probe without augmentation: L2-regularised multinomial logistic regression by L-BFGS, on frozen features.

Features are standardised, then one compiled program fits the heads of a whole sweep of L2 strengths, each starting at the
solution for the strength before it. Each head minimises

    mean over images of the cross-entropy + l2 / 2 * (sum of squared weights; the bias is free)

which is scikit-learn's LogisticRegression with `C = 1 / (l2 * N)` on the same standardised features.

Plain L-BFGS needs hundreds of steps where features are correlated (pixels, or an encoder that uses few directions), so the
problem is first turned to the principal axes, which changes neither penalty nor solution, and each axis is scaled by the
curvature to expect there. Ten to a hundred steps then suffice.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ijepa_jax.evaluate.knn import checked_features, checked_labels
from ijepa_jax.settings.evaluation import L2

# By which held-out logits are scaled before strengths are compared: without, log-loss takes too strong a penalty.
_TEMPERATURES = tuple(2.0 ** (-i / 2) for i in range(13))
STEPS = 200  # a bound for each strength: L-BFGS mostly ends at its tolerance long before
# Bounds on the norm of the gradient where L-BFGS ends, in coordinates whose curvature is about 1:
_FIT = 1e-6  # probabilities to three digits, of separable classes too
_PROBE = 1e-4  # accuracy to 0.1 points
_SELECTION = 1e-2  # enough to rank strengths


class Basis(NamedTuple):
    """Training features, standardised and turned to their principal axes; made by `prepare`. R = min(N, D)."""

    mean: jax.Array  # [D]
    scale: jax.Array  # [D], standard deviations; 1 for constant features
    axes: jax.Array  # [D, R], orthonormal columns
    scores: jax.Array  # [N, R + 1], the standardised features along the axes, then a column of ones for the bias


class Heads(NamedTuple):
    """Linear classifiers, one for each of L regularisation strengths, on standardised features."""

    mean: jax.Array  # [D]
    scale: jax.Array  # [D]
    weight: jax.Array  # [L, D, classes]
    bias: jax.Array  # [L, classes]


def prepare(features) -> Basis:
    """Standardises and turns training features (float [N, D]). Worth keeping where several tasks are probed on the same ones.

    Raises:
      ValueError: features that are not two-dimensional, or not finite.
    """
    with jax.default_matmul_precision("float32"):
        return _prepare(jax.device_put(checked_features(features, "training")))


def fit(features, labels, *, classes: int, l2=L2, steps: int = STEPS) -> Heads:
    """Fits one head for each strength of regularisation.

    Args:
      features: float [N, D], or the `Basis` that `prepare` makes of them.
      labels: int [N], in 0 .. classes - 1, of at least two classes.
      classes: number of classes.
      l2: float [L], strengths of regularisation, all positive; quickest in descending order.
      steps: most L-BFGS steps; fewer are taken where the gradient vanishes before.

    Returns:
      Heads, to be used with `logits`.

    Raises:
      ValueError: wrong shapes, NaN or infinite features, labels out of range or all of one class, l2 not positive.
    """
    basis = features if isinstance(features, Basis) else prepare(features)
    labels, l2 = _checked(labels, basis, classes, l2)
    with jax.default_matmul_precision("float32"):
        return _fit(basis, *jax.device_put((labels, l2)), classes=classes, steps=steps)


def logits(heads: Heads, features) -> jax.Array:
    """The heads' outputs on features (float [M, D]): float32 [L, M, classes]. Raises ValueError as `fit` does."""
    features = checked_features(features, "test")
    if features.shape[1] != len(heads.mean):
        raise ValueError(f"test features have {features.shape[1]} dimensions, training features {len(heads.mean)}")
    with jax.default_matmul_precision("float32"):
        return _logits(heads, jax.device_put(features))


def probe(train, train_labels, test, test_labels, *, classes: int, l2=L2, steps: int = STEPS, room: int | None = None) -> float:
    """Accuracy in per cent, on test images (labels int [M]), of `classify`, whose other arguments these are. Raises as it."""
    predicted = classify(train, train_labels, test, classes=classes, l2=l2, steps=steps, room=room).classes
    test_labels = checked_labels(test_labels, len(test), classes, "test")
    return 100.0 * float(np.mean(predicted == test_labels))


class Classified(NamedTuple):
    """What a classifier says of test images, and how strongly it was regularised."""

    classes: np.ndarray  # int [M]
    l2: float


def classify(train, train_labels, test, *, classes: int, l2=L2, steps: int = STEPS, room: int | None = None) -> Classified:
    """The classes that a linear classifier on frozen features gives test images.

    The L2 strength is the one of `l2` whose head has the least log-loss on a tenth of the training images held out of a first
    fit, each at the temperature that suits it (the stronger of equals); the head is then fitted again on all of them. Test
    images decide nothing.

    Args:
      train: float [N, D], or the `Basis` that `prepare` makes of them.
      train_labels: int [N].
      test: float [M, D].
      classes, l2, steps: as for `fit`.
      room: number of classes that the program is compiled for, at least `classes`: tasks that share it share a program.

    Raises:
      ValueError: as `fit`.
    """
    basis = train if isinstance(train, Basis) else prepare(train)
    strengths = np.sort(np.atleast_1d(l2))[::-1]
    labels, l2 = _checked(train_labels, basis, classes, strengths)
    device = jax.device_put((labels, _held_out(len(labels)), l2, np.int32(classes)))
    with jax.default_matmul_precision("float32"):
        head, best = _select_and_fit(basis, *device, room=room or classes, steps=steps)
    return Classified(jax.device_get(logits(head, test))[0, :, :classes].argmax(axis=-1), float(strengths[best]))


def _checked(labels, basis: Basis, classes: int, l2) -> tuple[np.ndarray, np.ndarray]:
    labels = checked_labels(labels, len(basis.scores), classes, "training")
    if np.all(labels == labels[0]):
        raise ValueError(f"training labels are all {labels[0]}: a classifier needs at least two classes")
    l2 = np.atleast_1d(np.asarray(l2, np.float32))
    if l2.ndim != 1 or not l2.size or not np.all(np.isfinite(l2) & (l2 > 0)):
        raise ValueError(f"l2 must be positive numbers, got {l2.tolist()}")
    return labels, l2


def _held_out(count: int) -> np.ndarray:
    """A tenth (at least one) of `count` images, always the same: int [n]."""
    return np.random.default_rng(0).permutation(count)[: max(1, count // 10)]


@jax.jit
def _prepare(features) -> Basis:
    mean, std = features.mean(axis=0), features.std(axis=0)
    # A spread of the size of rounding errors is none: dividing by it would turn noise into features.
    scale = jnp.where(std > 1e-6 * jnp.abs(features).max(axis=0), std, 1.0)
    standard = (features - mean[None]) / scale[None]
    inner, span = standard, None
    if standard.shape[1] > len(standard):  # fewer images than dimensions: first to the space they span
        span, _ = jnp.linalg.qr(standard.T)
        inner = standard @ span
    _, turn = jnp.linalg.eigh(inner.T @ inner / len(inner))
    scores = jnp.pad(inner @ turn, ((0, 0), (0, 1)), constant_values=1.0)
    return Basis(mean, scale, turn if span is None else span @ turn, scores)


@partial(jax.jit, static_argnames=("classes", "steps"))
def _fit(basis, labels, l2, *, classes: int, steps: int) -> Heads:
    """One head for each of l2 [L], fitted to all images."""
    start = jnp.zeros((classes, basis.scores.shape[1]))
    return _heads(basis, _path(basis.scores, labels, jnp.ones(len(labels)), l2, start, classes, _FIT, steps))


@partial(jax.jit, static_argnames=("room", "steps"))
def _select_and_fit(basis, labels, held_out, l2, classes, *, room: int, steps: int) -> tuple[Heads, jax.Array]:
    """Fits one head to all images, with the strength (its place in l2 [L], descending) that does best on those held out."""
    start = jnp.zeros((room, basis.scores.shape[1]))
    swept = _path(basis.scores, labels, jnp.ones(len(labels)).at[held_out].set(0), l2, start, classes, _SELECTION, steps)

    def loss(head):
        given = _without_absent(basis.scores[held_out] @ head.T, classes)
        at = lambda scale: optax.softmax_cross_entropy_with_integer_labels(scale * given, labels[held_out]).mean()  # noqa: E731
        return jax.lax.map(at, jnp.array(_TEMPERATURES)).min()

    best = jnp.argmin(jax.lax.map(loss, swept))  # of equals the first, the strongest
    final = _path(basis.scores, labels, jnp.ones(len(labels)), l2[best][None], swept[best], classes, _PROBE, steps)
    return _heads(basis, final), best


def _without_absent(logits, classes):
    """Logits [N, room], of which only the first `classes` stand for any."""
    return jnp.where(jnp.arange(logits.shape[-1])[None] < classes, logits, -1e9)


def _path(scores, labels, image_weight, l2, start, classes, tolerance: float, steps: int):
    """Minimises the regularised cross-entropy for each strength in turn, each starting at the solution before it.

    scores [N, R + 1], labels [N], image_weight [N], l2 [L], start [classes, R + 1] -> weights [L, classes, R + 1].
    """
    mean_square = jnp.mean(scores**2, axis=0, keepdims=True)
    penalised = (jnp.arange(scores.shape[1]) < scores.shape[1] - 1)[None]  # all but the bias

    def solve(start, l2):
        # At uniform predictions the curvature along an axis is its mean square / classes, plus l2: measure steps by it.
        unit = jax.lax.rsqrt(mean_square / classes + l2 * penalised)

        def objective(scaled):
            weight = scaled * unit
            # With classes first, the product here and the one in its gradient both go along rows: up to 6 times faster on CPU.
            loss = optax.softmax_cross_entropy_with_integer_labels(_without_absent(scores @ weight.T, classes), labels)
            return jnp.sum(image_weight * loss) / jnp.sum(image_weight) + l2 / 2 * jnp.sum(penalised * weight**2)

        weight = _minimise(objective, start / unit, tolerance, steps) * unit
        return weight, weight

    return jax.lax.scan(solve, start, l2)[1]


def _minimise(objective, start, tolerance: float, steps: int):
    """Runs L-BFGS until the norm of the gradient is within the tolerance."""
    # A full step is nearly always right, so that backtracking costs one evaluation a step. rtol is the resolution of a
    # float32 loss: without it the last steps find no descent.
    search = optax.scale_by_backtracking_linesearch(20, decrease_factor=0.5, increase_factor=4.0, rtol=1e-6, store_grad=True)
    solver = optax.lbfgs(memory_size=10, linesearch=search)

    def unfinished(carry):
        step, _, _, _, gradient = carry
        return (step < steps) & (jnp.linalg.norm(gradient) > tolerance)

    def advance(carry):
        step, point, state, value, gradient = carry
        updates, state = solver.update(gradient, state, point, value=value, grad=gradient, value_fn=objective)
        point = optax.apply_updates(point, updates)
        return step + 1, point, state, optax.tree.get(state, "value"), optax.tree.get(state, "grad")

    value, gradient = jax.value_and_grad(objective)(start)
    return jax.lax.while_loop(unfinished, advance, (0, start, solver.init(start), value, gradient))[1]


def _heads(basis: Basis, weight) -> Heads:
    """Turns weights along the axes [L, classes, R + 1] back to standardised features."""
    return Heads(basis.mean, basis.scale, jnp.einsum("dr,lcr->ldc", basis.axes, weight[..., :-1]), weight[..., -1])


@jax.jit
def _logits(heads: Heads, features):
    standard = (features - heads.mean[None]) / heads.scale[None]
    return jnp.einsum("md,ldc->lmc", standard, heads.weight) + heads.bias[:, None]
