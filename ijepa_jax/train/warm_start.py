"""A warm start: given encoder weights put into a fresh state."""

from typing import Any

import jax
import numpy as np

from ijepa_jax.methods import Method
from ijepa_jax.model import positions
from ijepa_jax.model.stacks import laid_out
from ijepa_jax.model.vit import ViT
from ijepa_jax.train import checkpoint
from ijepa_jax.train.picking import Place, followed, picked
from ijepa_jax.train.run import Run
from ijepa_jax.train.step import State


def warm_start(run: Run, state: State) -> tuple[State, dict[str, Any]]:
    """Puts given encoder weights into a fresh state, wherever the method has its encoder, or what its target follows.

    Returns the state, and what is noted of where it came from.
    """
    path = run.config.warm_start
    if run.encoder is None:
        raise ValueError(f"warm_start {path}: {run.method.title} has no encoder to start from it")
    weights, saved = checkpoint.restore_encoder(path)
    _check_same_function(run, saved)
    if isinstance(run.encoder.network, ViT):
        weights = laid_out(weights, run.encoder.network.scan)
    origin = saved.notes.get("origin", {"format": "ijepa_jax", "file": path})
    if "positions" in weights and run.config.model.positions == "sincos":
        weights = _without_positions(run, weights)
    wanted, given = _shapes(run.method.encoder(state.params, state.target)), _shapes(weights)
    wrong = sorted(name for name in {*wanted, *given} if wanted.get(name) != given.get(name))
    if wrong:
        show = "; ".join(f"{name}: wanted {wanted.get(name)}, given {given.get(name)}" for name in wrong[:5])
        raise ValueError(f"warm_start {path} does not fit the model in {len(wrong)} tensors: {show}")
    run.display.log(f"warm start from {path}, checkpoint {saved.step}")
    return _with_encoder(run.method, state, weights), {"origin": {**origin, "warm_start": True}}


def _with_encoder(method: Method, state: State, weights: Any) -> State:
    """A state that has these weights where the method picks its encoder, and where what its target follows has one."""
    kept, new = {"params": state.params, "target": state.target}, {}
    for choose in (method.encoder, lambda params, _: followed(method, params)):
        if (chosen := picked(kept, choose)) is None:
            raise ValueError(f"warm_start: the encoder of {method.title} is computed, so there is no place for weights")
        if jax.tree.structure(chosen) == jax.tree.structure(weights):
            new |= dict(zip((place.path for place in jax.tree.leaves(chosen)), jax.tree.leaves(weights), strict=True))

    def replaced(path, old):
        weight = new.get(Place(path).path)
        return old if weight is None else jax.device_put(weight.astype(old.dtype), old.sharding)

    return state.replace(**jax.tree_util.tree_map_with_path(replaced, kept))


def _check_same_function(run: Run, saved: checkpoint.Saved) -> None:
    """Raises ValueError where the same weights would make another encoder here, which their shapes do not show."""
    given, wanted = saved.method().backbone(), run.encoder
    of = [(name, getattr(given.network, name, None), getattr(wanted.network, name, None)) for name in ("heads", "epsilon")]
    if differs := [f"model.{name}={there:g}" for name, there, here in of if there != here and there is not None]:
        raise ValueError(
            f"warm_start {run.config.warm_start} has another encoder than these settings: set {', '.join(differs)}"
        )
    if (given.mean, given.std) != (wanted.mean, wanted.std):
        run.display.log(f"the weights to start from were made with data.mean={given.mean}, data.std={given.std}")


def _without_positions(run: Run, weights: dict) -> dict:
    """Imported weights for a model that computes its positions, which must be the same."""
    computed = positions.sincos(run.encoder.network.width, run.encoder.grid)
    of_class = weights.get("class_position", np.zeros(1))
    if computed.shape != weights["positions"].shape or np.abs(computed - weights["positions"]).max() > 1e-5 or of_class.any():
        raise ValueError(
            f"warm_start {run.config.warm_start} brings positions that are not the sine-cosine ones of a grid of "
            f"{run.encoder.grid}: set model.positions=table and the data.image_size that they are for"
        )
    return {name: leaf for name, leaf in weights.items() if name not in ("positions", "class_position")}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by path: {"blocks/0/fc1/bias": (128,), ...}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
