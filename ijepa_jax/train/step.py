"""The training step: a pure function of state and batch. It knows no method by name."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ijepa_jax.devices.sharding import splits_weights, state_shardings
from ijepa_jax.methods import Batch, Method
from ijepa_jax.methods.optim import Optimizer


@flax.struct.dataclass
class State:
    """Everything that a run carries from step to step. The seed is configuration; keys are folded from (seed, step)."""

    step: jax.Array  # int32, number of steps done
    params: Any  # named sub-trees, float32
    target: Any  # what the method keeps beside them without gradient, such as their moving average, float32, or None
    opt_state: Any


Metrics = dict[str, jax.Array]


def init(method: Method, optimizer: Optimizer, seed: int) -> State:
    """A fresh state; a target that follows something starts as a copy of it."""
    key = jax.random.key(seed)
    params = method.init(key)
    target = method.init_target(params, key)
    return State(jnp.zeros([], jnp.int32), params, target, optimizer.transformation.init(params))


def initial_encoder(method: Method, seed: int) -> Any:
    """The encoder's parameters as a run with this seed starts with them."""
    key = jax.random.key(seed)
    params = method.init(key)
    return method.encoder(params, method.init_target(params, key))


def random_encoder(method: Method, seed: int, mesh: Mesh) -> Any:
    """Likewise, placed on devices as the trained one, which is compared with it."""
    fresh = jax.jit(partial(initial_encoder, method, seed))
    return jax.jit(fresh, out_shardings=state_shardings(jax.eval_shape(fresh), mesh))()


def train_step(
    state: State, batch: Batch, *, method: Method, optimizer: Optimizer, seed: int, accumulation: int = 1
) -> tuple[State, Metrics]:
    """One step on a global batch: gradients, the optimiser, then the target, given the *updated* parameters.

    With `accumulation` > 1 the batch is split into that many parts, whose gradients are summed in float32 with the
    weights that make the sum equal to the whole batch's gradient. Raises ValueError for a method whose loss does not add up
    so, or that does not say (`Method.additive`).
    """
    if accumulation > 1 and not method.additive:
        raise ValueError(
            f"the loss of {type(method).__name__} is not known to be the mean of that of a batch's parts (additive = True): "
            f"with accumulation {accumulation} it would learn something else"
        )
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    loss, metrics, gradients = _gradients(method, state, batch, key, accumulation)
    updates, opt_state = optimizer.transformation.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    momentum = optimizer.momentum(state.step)
    target = method.update_target(state.target, params, momentum)
    split = splits_weights(jax.tree.leaves(state.params)[0])
    # Read past a barrier: norms fused into AdamW's kernels keep these from writing in place, and every leaf is copied.
    read = jax.lax.optimization_barrier({"gradient": gradients, "update": updates, "parameter": params})
    metrics = {
        "loss": loss,
        **metrics,
        **{f"{name}_norm": norm(tree, split) for name, tree in read.items()},
        "learning_rate": optimizer.learning_rate(state.step),
        "weight_decay": optimizer.weight_decay(state.step),
        **({} if target is None else {"momentum": momentum}),
    }
    return State(state.step + 1, params, target, opt_state), metrics


def norm(tree: Any, split: bool = False) -> jax.Array:
    """The Euclidean norm of all leaves together, as `optax.tree.norm`, by one reduction for all leaves of a shape.

    One for each leaf would be a third of the kernels of a step on a GPU. Leaves that are split over devices have one each: XLA
    would gather them for a common one.
    """
    if split:
        return optax.tree.norm(tree)
    squares = defaultdict(list)
    for leaf in jax.tree.leaves(tree):
        squares[leaf.shape].append(jnp.square(leaf))

    def summed(stages: Callable[[int], list[tuple[int, ...]]], squares: list[list[jax.Array]]) -> jax.Array:
        sums = []
        for alike in squares:
            for axes in stages(alike[0].ndim):
                alike = jax.lax.reduce(alike, [jnp.float32(0)] * len(alike), _add_pairs, axes)
            sums += alike
        return jnp.stack(sums).sum()

    # XLA's CPU compiler adds one number after the other: rows by themselves, so that none is lost in a large sum
    by_rows = partial(summed, lambda axes: [(axis,) for axis in reversed(range(axes))])
    at_once = partial(summed, lambda axes: [tuple(range(axes))])
    return jnp.sqrt(jax.lax.platform_dependent([*squares.values()], cpu=by_rows, default=at_once))


def _add_pairs(left: Sequence[jax.Array], right: Sequence[jax.Array]) -> list[jax.Array]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _gradients(method: Method, state: State, batch: Batch, key: jax.Array, accumulation: int):
    """Loss, metrics and gradients of the global batch."""
    gradient = jax.value_and_grad(method.loss, has_aux=True)
    if accumulation == 1:
        (loss, metrics), gradients = gradient(state.params, state.target, batch, key)
        return loss, metrics, gradients
    total = method.weight(batch)

    def add_part(carry, part_and_index):
        part, index = part_and_index
        (loss, metrics), gradients = gradient(state.params, state.target, part, jax.random.fold_in(key, index))
        share = method.weight(part) / total
        return jax.tree.map(lambda total, x: total + share * x, carry, (loss, metrics, gradients)), None

    parts = jax.tree.map(partial(interleaved_parts, accumulation), batch)
    part_shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), parts)
    (loss, metrics), gradients = jax.eval_shape(gradient, state.params, state.target, part_shapes, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (loss, metrics, gradients))
    return jax.lax.scan(add_part, zeros, (parts, jnp.arange(accumulation)))[0]


def interleaved_parts(parts: int, x: jax.Array) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]; part i takes every `parts`-th row, so that no row changes its device."""
    if x.shape[0] % parts:
        raise ValueError(f"a batch of {x.shape[0]} does not divide into {parts} parts for gradient accumulation")
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
