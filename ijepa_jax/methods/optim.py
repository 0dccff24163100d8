"""Optimisation of the paper's appendix A: AdamW with a decay mask, schedules as functions of the step, EMA momentum."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.Array | int], jax.Array]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The gradient transformation and the schedules it follows, all functions of the 0-based step."""

    transformation: optax.GradientTransformation
    learning_rate: Schedule
    weight_decay: Schedule
    momentum: Schedule


def make_optimizer(
    *,
    total_steps: float,
    warmup_steps: float,
    start_lr: float,
    peak_lr: float,
    final_lr: float,
    weight_decay: float,
    final_weight_decay: float,
    momentum: float,
    final_momentum: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    clip: float | None = None,
    moment_dtype: str | None = None,
    first: int = 1,
) -> Optimizer:
    """AdamW as published. `total_steps` is the schedule's length, `clip` an optional bound on the global gradient norm.

    `first` is the number of the first step in the learning rate's schedule: 1 as in I-JEPA's code, 0 as in MAE's.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warm-up of {warmup_steps:g} steps must be shorter than the schedule of {total_steps:g} steps")
    counted_from_1 = warmup_cosine(start_lr, peak_lr, final_lr, warmup_steps, total_steps)
    learning_rate = lambda step: counted_from_1(step + (first - 1))  # noqa: E731
    decay = cosine(weight_decay, final_weight_decay, total_steps)
    adamw = optax.adamw(learning_rate, b1, b2, eps, mu_dtype=moment_dtype, weight_decay=decay, mask=decay_mask)
    # always two links, so that the optimiser's state has one shape and clipping can be changed when a run continues
    bound = optax.identity() if clip is None else optax.clip_by_global_norm(clip)
    transformation = optax.chain(bound, adamw)
    return Optimizer(transformation, learning_rate, decay, linear(momentum, final_momentum, total_steps))


def decay_mask(params) -> dict:
    """Which leaves weight decay acts on: kernels, mask and class tokens (as the references), never biases or norms.

    By name and not by rank: parameters stacked by a scan over layers have biases of rank 2.
    """
    decayed = ("kernel", "mask_token", "class_token")
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in decayed, params)


def moving_average(momentum: jax.Array, average, params):
    """momentum * average + (1 - momentum) * params, leaf by leaf; position tables, which are not trained, stay what they are.

    Were they averaged, rounding would move them.
    """

    def blend(path, old, new):
        return old if path[-1].key in ("positions", "class_position") else momentum * old + (1 - momentum) * new

    return jax.tree_util.tree_map_with_path(blend, average, params)


def scale_by_layer(decay: float, depth: int) -> optax.GradientTransformation:
    """Layer-wise decay, for fine-tuning: updates of block i of `depth` (from 1) are scaled by decay ** (depth + 1 - i).

    The patch embedding and a class token count as block 0, what comes after the blocks is not scaled (as in BEiT and MAE).
    For parameters that hold an encoder as `encoder`; put it last in a chain, so that it scales weight decay too.
    """

    def scale(path, update):
        names = [entry.key for entry in path]
        if names[0] != "encoder" or names[1] not in ("blocks", "patch_embed", "class_token"):
            return update
        if names[1] != "blocks":
            return update * decay ** (depth + 1)
        if names[2] == "scanned":
            return update * decay ** jnp.arange(depth, 0, -1.0).reshape(-1, *(1,) * (update.ndim - 1))
        return update * decay ** (depth - int(names[2]))

    def scaled(updates, params=None):
        del params
        return jax.tree_util.tree_map_with_path(scale, updates)

    return optax.stateless(scaled)


def warmup_cosine(start: float, peak: float, final: float, warmup: float, total: float) -> Schedule:
    """Linear warm-up from `start` to `peak`, then a cosine to `final`; the step counts from 1 here, as in the reference."""

    def schedule(step):
        t = step + 1.0
        rising = start + t / max(warmup, 1.0) * (peak - start)
        return jnp.where(t < warmup, rising, _cosine_blend(peak, final, t - warmup, total - warmup))

    return schedule


def cosine(start: float, final: float, total: float) -> Schedule:
    """A cosine from `start` to `final`, counted from 1 and never past `final`: the reference's weight decay."""
    return lambda step: _cosine_blend(start, final, step + 1.0, total)


def linear(start: float, final: float, total: float) -> Schedule:
    """A line from `start` to `final`, counted from 0 and never past `final`: the reference's EMA momentum."""
    return lambda step: start + jnp.minimum(step / total, 1.0) * (final - start)


def _cosine_blend(start, final, t, total):
    """final + (start - final) * (1 + cos(pi * t / total)) / 2, in a form in which nothing cancels in float32."""
    t = jnp.clip(t, 0.0, total)
    remaining, done = (jnp.square(jnp.sin(0.5 * jnp.pi * part / total)) for part in (total - t, t))
    return start * remaining + final * done
