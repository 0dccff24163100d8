"""Training checkpoints of the authors' released code (`.pth.tar`): whole, with the optimiser's state, both ways."""

import operator
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from ijepa_jax.host.errors import one_line
from ijepa_jax.host.files import unfinished
from ijepa_jax.interop.layout import (
    architecture,
    check_shapes,
    depth_of,
    encoder_names,
    from_reference,
    predictor_names,
    to_reference,
)
from ijepa_jax.interop.tensor_files import by_name
from ijepa_jax.interop.weights import (
    Architecture,
    Tensors,
    Training,
    Weights,
    WeightsError,
    architecture_of,
    check_finite,
    check_names,
    settings_for,
    shown,
)
from ijepa_jax.methods.ijepa import predictor_of

OURS = "ijepa_jax"  # under which a file of ours tells what the authors' files leave to their code
_MODULES = ("encoder", "predictor", "target_encoder")
_KINDS = {"heads": int, "predictor_heads": int, "decoder_heads": int, "epsilon": float}
_KNOWN = (*_MODULES, "opt", "scaler", "epoch", "loss", "batch_size", "world_size", "lr", OURS)
_ADAMW = {"step", "exp_avg", "exp_avg_sq"}


def from_checkpoint(saved: Any, source: str, heads: int | None, base: ml_collections.ConfigDict | None) -> Weights:
    """The target encoder of an authors' training checkpoint, of the objects that `torch_files.read` gives of its file.

    The whole training state comes with it where all of it is there.

    Raises WeightsError where tensors are missing, unexpected or of wrong shapes, or the optimiser's state does not fit.
    """
    if not isinstance(saved, dict) or "target_encoder" not in saved:
        _refuse_by_name(saved, source)
        keys = ", ".join(map(shown, list(saved)[:6])) if isinstance(saved, dict) else type(saved).__name__
        raise WeightsError(f"{source} is no I-JEPA training checkpoint: it holds {keys}, and no target_encoder")
    modules = {name: module_of(saved[name], f"{source} ({name})") for name in _MODULES if name in saved}
    if unknown := [str(name) for name in saved if name not in _KNOWN and isinstance(saved[name], (dict, np.ndarray))]:
        raise WeightsError(f"{source} holds what I-JEPA's training checkpoints have not: {', '.join(unknown[:8])}")
    facts = facts_of(saved, source)
    options = {**heads_told(facts.pop("heads", None), heads, base, source), "epsilon": facts.pop("epsilon", 1e-6)}
    options["image_size"] = facts.pop("image_size", None)
    predictor_heads = facts.pop("predictor_heads", None)
    found = architecture(modules["target_encoder"], f"{source} (target_encoder)", **options)
    if found.class_token:
        raise WeightsError(f"{source} (target_encoder) has a class token, which I-JEPA's encoders have not")
    settings = settings_for(found, "bicubic", base, **facts)
    training = None
    if {*_MODULES, "opt"} <= {*saved}:
        if "predictor" not in settings:
            raise WeightsError(f"{source} is a training state of I-JEPA's networks, which method {settings.method!r} has not")
        if architecture(modules["encoder"], f"{source} (encoder)", **options) != found:
            raise WeightsError(f"{source}: encoder and target_encoder are of different architectures")
        _set_predictor(settings, modules["predictor"], found, source, fixed=base is not None)
        training = _training(saved, modules, source)
        if base is not None:
            _check_base(base, training.batch_size, predictor_heads, source)
        else:
            settings.optim.batch_size = training.batch_size or settings.optim.batch_size
            settings.predictor.heads = None if predictor_heads == found.heads else predictor_heads
    step = training.step if training else 0
    origin = {"format": "reference", "file": source, "epoch": _number(saved, "epoch", source)}
    origin |= {"step": step} if training else {}
    left = (
        [] if training else [f"{name}, which nobody can train on without the rest" for name in modules if name != _MODULES[2]]
    )
    target = from_reference(modules["target_encoder"])
    return Weights(target, settings, origin, training=training, step=step, left_out=tuple(left))


def _check_base(base: ml_collections.ConfigDict, batch_size: int, predictor_heads: int | None, source: str) -> None:
    """Raises WeightsError where a run of these settings would go on otherwise than the file's."""
    if batch_size not in (0, base.optim.batch_size):
        raise WeightsError(
            f"{source} was trained with batches of {batch_size}; the configuration's are {base.optim.batch_size}"
        )
    if predictor_heads not in (None, wanted := predictor_of(base).heads):
        raise WeightsError(f"{source}: its predictor has {predictor_heads} heads; the configuration's has {wanted}")
    if base.predictor.context != "joint":
        raise WeightsError(f"{source}: its predictor is one with predictor.context 'joint', not {base.predictor.context!r}")


def _refuse_by_name(saved: Any, source: str) -> None:
    """Raises WeightsError for what other projects keep as `model`, saying whose it is, where its tensors tell."""
    tensors = saved.get("model") if isinstance(saved, dict) else None
    if isinstance(tensors, dict):
        check_names([*map(str, tensors)], encoder_names(max(depth_of(map(str, tensors)), 1)), f"{source} (model)")


def heads_told(told: int | None, given: int | None, base: ml_collections.ConfigDict | None, source: str) -> dict[str, Any]:
    """How many heads, by the file itself, or else as given, or else as in the settings of the run."""
    if given and told not in (None, given):
        raise WeightsError(f"{source}: it tells of {told} heads, not {given}")
    if not (told or given) and base is not None:
        given = architecture_of(base).heads
    return {"heads": told or given, "told": told is not None}


def _number(saved: dict, key: str, source: str) -> int:
    """A whole number of a file, 0 where it is not there."""
    try:
        return int(saved.get(key) or 0)
    except (TypeError, ValueError, OverflowError):
        raise WeightsError(f"{source} ({key}) is not a number: {shown(saved[key])}") from None


def facts_of(saved: dict, source: str) -> dict[str, Any]:
    """What files that we wrote tell besides: heads, epsilon, the images' size, mean and std."""
    try:
        found = saved.get(OURS, {})
        facts = {name: kind(found[name]) for name, kind in _KINDS.items() if name in found}
        facts |= {name: tuple(map(float, found[name])) for name in ("mean", "std") if name in found}
        if "image_size" in found:
            height, width = map(int, found["image_size"])
            facts["image_size"] = height, width
        return facts
    except (TypeError, ValueError, AttributeError, OverflowError):
        raise WeightsError(f"{source} ({OURS}) is damaged: {shown(found)}") from None


def module_of(tensors: Any, source: str) -> dict[str, np.ndarray]:
    """One module's tensors, their names without the prefix that data-parallel training gives them."""
    named = by_name(tensors, source)
    check_finite(named, source)
    return named


def _set_predictor(settings, tensors: Tensors, encoder: Architecture, source: str, fixed: bool) -> None:
    """Puts the predictor's sizes into the settings; with `fixed` they must be there already."""
    source = f"{source} (predictor)"
    depth = depth_of(tensors)
    check_names([*tensors], predictor_names(max(depth, 1)), source)
    width = tensors["predictor_norm.weight"].size
    grid = encoder.image_size[0] // encoder.patch * (encoder.image_size[1] // encoder.patch)
    shapes = {
        "mask_token": (1, 1, width), "predictor_pos_embed": (1, grid, width), "predictor_embed": (width, encoder.width),
        "attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width), "predictor_proj": (encoder.width, width), "predictor_proj.bias": (encoder.width,),
    }  # fmt: skip
    check_shapes(tensors, shapes, width, source)
    if fixed:
        wanted = predictor_of(settings)
        if (wanted.width, wanted.depth) != (width, depth):
            raise WeightsError(
                f"{source} is {width} wide and {depth} deep; the configuration's is {wanted.width} and {wanted.depth}"
            )
    else:
        settings.predictor.width, settings.predictor.depth = width, depth


def parameter_groups(modules: dict[str, Tensors]) -> list[list[tuple[str, str]]]:
    """(module, tensor) of each parameter by group of the authors' optimiser, which numbers them through in this order."""

    def group(module: str, decayed: bool) -> list[tuple[str, str]]:
        tensors = modules[module].items()
        return [(module, name) for name, t in tensors if ("bias" not in name and t.ndim != 1) == decayed]

    return [group(module, decayed) for decayed in (True, False) for module in ("encoder", "predictor")]


def _training(saved: dict, modules: dict[str, Tensors], source: str) -> Training:
    groups = parameter_groups(modules)
    parameters = [parameter for group in groups for parameter in group]
    moments = tuple({module: {} for module in ("encoder", "predictor")} for _ in range(2))
    states = _states(saved["opt"], groups, source)
    fresh = not any(states)  # saved before the first step
    steps = {0} if fresh else set()
    for (module, name), state in zip(parameters, states, strict=True):
        shape = modules[module][name].shape
        if not (state or fresh or name.endswith("pos_embed")):
            raise WeightsError(f"{source} (opt) has no moments of {module}'s {name}")
        if state:
            steps.add(_number(state, "step", f"{source} (opt)"))
        for moment, key in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
            value = state.get(key) if state else np.zeros(shape, np.float32)
            if not isinstance(value, np.ndarray) or value.shape != shape:
                raise WeightsError(
                    f"{source} (opt): {key} of {module}'s {name} has shape {list(np.shape(value))}, not {list(shape)}"
                )
            moment[module][name] = value
    if len(steps) != 1 or not 0 <= min(steps) < 2**31:
        raise WeightsError(f"{source} (opt): parameters were stepped {sorted(steps)} times: not the same number, from 0 up")
    for moment in moments:
        for module, tensors in moment.items():
            check_finite(tensors, f"{source} (moments of {module})")
    params, first, second = ({name: from_reference(tree[name]) for name in moments[0]} for tree in (modules, *moments))
    batch_size = _number(saved, "batch_size", source) * (_number(saved, "world_size", source) or 1)
    return Training(params, (first, second), steps.pop(), batch_size)


def _states(opt: Any, groups: list[list[tuple[str, str]]], source: str) -> list[dict[str, Any]]:
    """AdamW's state of each parameter, in their order; empty for those that are not trained, position tables."""
    try:
        counts = [len(group["params"]) for group in opt["param_groups"]]
        numbers = [operator.index(number) for group in opt["param_groups"] for number in group["params"]]
        states = [opt["state"].get(number, {}) for number in numbers]
        unknown = {*opt["state"]} - {*numbers} | {key for state in states for key in state.keys() - _ADAMW}
    except (LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{source} (opt) is not the state of a torch optimiser: {repr(error)[:100]}") from None
    if counts != [len(group) for group in groups]:
        raise WeightsError(
            f"{source} (opt) has groups of {counts} parameters; those of this model are {[len(g) for g in groups]}"
        )
    if unknown:
        raise WeightsError(f"{source} (opt) has what AdamW's state has not: {', '.join(sorted(map(str, unknown))[:8])}")
    return states


def write_reference(weights: Weights, folder: Path) -> str:
    """Writes checkpoint.pth.tar, as the authors' code saves it, with all that training goes on from, if it is there.

    Takes the leaves out of the trees of `weights`: each is dropped as torch's copy of it is made. Names start with `module.`,
    as data-parallel training has them. Needs torch, which writes the file.
    """
    torch = installed_torch()
    if weights.training and weights.settings.predictor.context != "joint":
        raise WeightsError("--format reference is for predictors with predictor.context 'joint', which theirs is, not 'alone'")
    file = folder / "checkpoint.pth.tar"
    save(_checkpoint(weights), file, torch)
    return f"torch.load({str(file)!r}, weights_only=True)['target_encoder']"


def installed_torch() -> Any:
    """The module. Raises WeightsError where it is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        raise WeightsError("--format reference is written by torch, which is not installed: pip install torch") from None
    return torch


def save(saved: dict[str, Any], file: Path, torch: Any) -> None:
    """Writes nested dicts, with tensors for arrays; these are taken out of them, one after the other."""
    with unfinished(file) as place:
        try:
            torch.save(_as_torch(saved, torch), place)
        except RuntimeError as error:  # torch's writer of zip archives, which does not tell why
            raise OSError(f"cannot write {file} (disk full?): {one_line(error, 200)}") from error


def _as_torch(saved: dict[str, Any], torch: Any) -> dict[str, Any]:
    """The same objects, with tensors for arrays, in the order of the memory that these are views of, to free that soon."""
    places = sorted(_places(saved), key=lambda place: id(_memory(place[0][place[1]])))
    for holder, key in places:
        holder[key] = torch.from_numpy(np.array(holder[key], np.float32, order="C"))
    return saved


def _places(value: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Where arrays lie in nested dicts: the dict and the key of each."""
    parts = [(value, key) for key, part in value.items() if isinstance(part, np.ndarray)]
    return parts + [place for part in value.values() if isinstance(part, dict) for place in _places(part)]


def _memory(array: np.ndarray) -> np.ndarray:
    """The array that this one is a view of."""
    return _memory(array.base) if isinstance(array.base, np.ndarray) else array


def _checkpoint(weights: Weights) -> dict[str, Any]:
    """The objects of an authors' checkpoint, with NumPy arrays for tensors."""
    training, depth, patch = weights.training, len(weights.encoder["blocks"]), weights.settings.model.patch
    target = to_reference(weights.encoder, encoder_names(depth), patch)
    modules, saved = {"encoder": target, "target_encoder": target}, {"epoch": 0, OURS: told(weights)}
    if training:
        names = {"encoder": encoder_names(depth), "predictor": predictor_names(len(training.params["predictor"]["blocks"]))}
        trained, *moments = (
            {name: to_reference(tree[name], names[name], patch) for name in names}
            for tree in (training.params, *training.moments)
        )
        modules |= trained
        saved |= _bookkeeping(training, weights)
        saved["opt"] = _optimizer_state(training.step, trained, moments, weights.settings)
    named = {module: {f"module.{name}": tensor for name, tensor in modules[module].items()} for module in modules}
    return {**named, **saved}


def told(weights: Weights) -> dict[str, Any]:
    """What the authors' files leave to their code."""
    network, data = architecture_of(weights.settings), weights.settings.data
    return {
        "heads": network.heads, "epsilon": network.epsilon,
        **({"predictor_heads": predictor_of(weights.settings).heads} if "predictor" in weights.settings else {}),
        "image_size": list(data.image_size), "mean": list(data.mean), "std": list(data.std),
    }  # fmt: skip


def _optimizer_state(step: int, modules: dict[str, Tensors], moments: list[dict[str, Tensors]], settings) -> dict[str, Any]:
    """The state dict of the authors' AdamW; position tables have no state there, as they get no gradient."""
    groups, state, numbered = parameter_groups(modules), {}, []
    for group in groups:
        numbered.append(list(range(sum(map(len, numbered)), sum(map(len, numbered)) + len(group))))
        for index, (module, name) in zip(numbered[-1], group, strict=True):
            if not name.endswith("pos_embed"):
                first, second = (moment[module][name] for moment in moments)
                state[index] = {"step": np.array(step, np.float32), "exp_avg": first, "exp_avg_sq": second}
    optim = settings.optim
    common = {"lr": optim.peak_lr, "betas": (optim.b1, optim.b2), "eps": optim.eps, "amsgrad": False, "maximize": False}
    return {
        "state": state,
        "param_groups": [
            {**common, "weight_decay": 0.0 if index > 1 else optim.weight_decay, "WD_exclude": index > 1, "params": params}
            for index, params in enumerate(numbered)
        ],
    }


def _bookkeeping(training: Training, weights: Weights) -> dict[str, Any]:
    """What else such a file holds: the epoch that it ended, the batch, a gradient scaler's state, which ours has not."""
    epoch = weights.origin.get("epoch", 0)  # of a file that was imported, and not trained on since
    if training.examples:
        epoch = training.step // max(1, training.examples // training.batch_size)
    return {
        "epoch": epoch, "batch_size": training.batch_size, "world_size": 1, "loss": 0.0, "lr": weights.settings.optim.peak_lr,
        "scaler": {
            "scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 0,
        },
    }  # fmt: skip
