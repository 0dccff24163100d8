"""Replays recorded steps of the authors' code through the step that training uses, and compares every number.

    python tests/parity.py RECORDING.npz

Of SIGReg (a file with directions) it prints `value_error`, `gradient_error` and `loss_error`, the largest over all kinds of
samples and of views' losses, relative to the largest value of each array, or absolute where that is 0; the bar is 2e-6.

A recording of I-JEPA or of MAE holds initial and final weights, images, masks, losses, schedules and first-step activations
and gradients, in fp32. Prints one JSON line and exits with 1 when a bar is missed. The key third of every qkv bias
is left out of gradients and weights: its true gradient is zero, and Adam turns the rounding noise there into steps.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ijepa_jax.interop.layout import from_reference
from ijepa_jax.interop.mae import split
from ijepa_jax.methods import IJepa
from ijepa_jax.methods.lejepa import objective
from ijepa_jax.methods.mae import Decoder, Mae, masks_of
from ijepa_jax.methods.masks import MaskSampler
from ijepa_jax.methods.optim import make_optimizer
from ijepa_jax.methods.sigreg import Quadrature, sigreg
from ijepa_jax.model.predictor import Predictor
from ijepa_jax.model.vit import ViT, normalise
from ijepa_jax.train.step import State, train_step

BARS = {
    "loss_error": 5e-6,
    "first_loss_error": 1e-6,
    "schedule_error": 1e-6,
    "output_error": 1e-5,
    "gradient_error": 1e-6,
    "weight_error": 2e-5,
}
SIGREG_BAR = 2e-6


def replay(path: str | Path) -> dict[str, float]:
    """The errors of a replay of one recording, named as in BARS."""
    with np.load(path, allow_pickle=False) as file:
        recording = {key: file[key] for key in file.files}
    if "directions" in recording:
        return replay_sigreg(recording)
    if "ids_restore" in recording:
        return replay_mae(recording)
    meta = json.loads(str(recording["meta_json"]))
    method, optimizer = _method(meta), _optimizer(meta)
    params = {name: from_reference(_tensors(recording, f"init/{name}/")) for name in ("encoder", "predictor")}
    target = from_reference(_tensors(recording, "init/target_encoder/"))
    params, target = jax.tree.map(jnp.asarray, (params, target))
    first = _batch(recording, 0)
    errors = {
        "output_error": _output_error(method, params, target, first, recording),
        "gradient_error": _gradient_error(method, params, target, first, recording),
    }
    state = State(jnp.zeros([], jnp.int32), params, target, optimizer.transformation.init(params))
    step = jax.jit(partial(train_step, method=method, optimizer=optimizer, seed=0), donate_argnums=0)
    received = []
    for index in range(meta["steps"]):
        state, metrics = step(state, _batch(recording, index))
        received.append(jax.device_get(metrics))
    losses = np.abs(np.array([m["loss"] for m in received]) - recording["loss"])
    errors |= {
        "loss_error": losses.max(),
        "first_loss_error": losses[0],
        "schedule_error": _schedule_error(received, recording),
        "weight_error": _weight_error(state, recording),
    }
    return {name: float(error) for name, error in errors.items()}


def replay_sigreg(recording: dict[str, np.ndarray]) -> dict[str, float]:
    """The errors of the statistic and its gradients, for all kinds of samples, and of the loss of views."""
    given = json.loads(str(recording["settings"]))
    slices, quadrature = recording["directions"], Quadrature(given["knots"], given["t_max"])
    errors: dict[str, list[float]] = {"value_error": [], "gradient_error": [], "loss_error": []}

    def compare(name: str, ours: jax.Array, key: str) -> None:
        recorded = recording[key]
        errors[name].append(_largest(np.float64(ours) - recorded) / (_largest(recorded) or 1.0))

    for kind in (key.removesuffix("/per_slice") for key in recording if key.endswith("/per_slice")):
        of_kind = jax.jit(jax.value_and_grad(lambda x: sigreg(x, slices, quadrature)))
        value, gradient = of_kind(recording[f"{kind}/x"])
        compare("value_error", value, f"{kind}/value")
        compare("gradient_error", gradient, f"{kind}/gradient")
    for reach, knots, value in recording["other_quadratures"]:
        found = sigreg(recording["shifted/x"], slices, Quadrature(int(knots), float(reach)))
        errors["value_error"].append(abs(float(found) / value - 1))
    views = recording["views/x"]
    compare("value_error", sigreg(views, slices, quadrature), "views/sigreg_per_view")
    for centred, invariance, ending in (
        (len(views), "views/invariance_all_views", ""),
        (int(recording["views/global_views"]), "views/invariance_global_centre", "_global_centre"),
    ):
        of_views = jax.value_and_grad(lambda z, n=centred: objective(z, slices, given["lamb"], n, quadrature), has_aux=True)
        (loss, parts), gradient = jax.jit(of_views)(views)
        compare("loss_error", loss, f"views/loss{ending}")
        compare("loss_error", parts["invariance"], invariance)
        compare("loss_error", parts["sigreg"], "views/sigreg")
        compare("gradient_error", gradient, f"views/gradient{ending}")
    return {name: _worst(found) for name, found in errors.items()}


def replay_mae(recording: dict[str, np.ndarray]) -> dict[str, float]:
    """Likewise, of MAE. Outputs are those of the encoder, of the decoder, and both kinds of pixels to be told."""
    given = json.loads(str(recording["settings"]))
    method = _mae(given)
    total, warmup = (given[name] * given["steps_per_epoch"] for name in ("epochs", "warmup_epochs"))
    optimizer = method.optimiser(
        total_steps=total, warmup_steps=warmup, start_lr=0.0, peak_lr=given["lr"], final_lr=given["min_lr"],
        weight_decay=given["weight_decay"], final_weight_decay=given["weight_decay"], momentum=1.0, final_momentum=1.0,
        b1=given["betas"][0], b2=given["betas"][1], eps=given["adam_eps"],
    )  # fmt: skip
    params = jax.tree.map(jnp.asarray, _mae_tree(recording, "init/"))
    first = _mae_batch(recording, 0, given["kept_patches"])
    images = normalise(first["image"], method.mean, method.std)
    other = dataclasses.replace(method, normalised=not method.normalised)

    def loss_of(of: Mae):
        return jax.jit(jax.value_and_grad(lambda p: of.loss(p, None, first, jax.random.key(0))[0]))(params)

    latent = method.network.apply({"params": params["encoder"]}, images, first["context"][:, 0], with_class=True)
    predicted = jax.jit(method.predict)(params, images, first, jax.random.key(0))
    plain, normed = (of.goals(images) for of in sorted((method, other), key=lambda of: of.normalised))
    outputs = {"latent0": latent, "prediction0": predicted, "patches0": plain, "normalised_patches0": normed}
    errors = {"output_error": _worst(_largest(value - recording[name]) for name, value in outputs.items())}
    losses, gradients = {}, {}
    for of, name in ((method, "grad0/"), (other, "grad0_other/")):
        losses[f"loss0_norm_pix_{str(of.normalised).lower()}"], found = loss_of(of)
        gradients[name] = _largest_difference(found, _mae_tree(recording, name))
    errors["gradient_error"] = _worst(gradients.values())
    errors["first_loss_error"] = _worst(abs(float(value) - float(recording[name])) for name, value in losses.items())
    state = State(jnp.zeros([], jnp.int32), params, None, optimizer.transformation.init(params))
    step = jax.jit(partial(train_step, method=method, optimizer=optimizer, seed=0), donate_argnums=0)
    received, weights = [], []
    for index in range(given["steps"]):
        state, metrics = step(state, _mae_batch(recording, index, given["kept_patches"]))
        received.append(jax.device_get(metrics))
        if index == 1:  # after two steps
            weights.append(_largest_difference(state.params, _mae_tree(recording, "after2/")))
    weights.append(_largest_difference(state.params, _mae_tree(recording, "final/")))
    rates = np.array([metrics["learning_rate"] for metrics in received])
    scale = np.abs(recording["learning_rate"]).max()  # the first one is 0
    errors |= {
        "loss_error": float(np.abs(np.array([metrics["loss"] for metrics in received]) - recording["loss"]).max()),
        "schedule_error": float(np.abs(rates - recording["learning_rate"]).max() / scale),
        "weight_error": _worst(weights),
    }
    return {name: float(error) for name, error in errors.items()}


def _mae(given: dict) -> Mae:
    grid = (given["image_size"] // given["patch"],) * 2
    encoder = ViT(
        given["patch"], given["width"], given["depth"], given["heads"], given["mlp_ratio"], epsilon=given["norm_eps"],
        class_token=True,
    )  # fmt: skip
    decoder = Decoder(
        given["decoder_width"], given["decoder_depth"], given["decoder_heads"], 3 * given["patch"] ** 2, given["mlp_ratio"],
        epsilon=given["norm_eps"], class_token=True,
    )  # fmt: skip
    masks = masks_of(grid, given["mask_ratio"], 0)
    size, (mean, std) = (given["image_size"],) * 2, (tuple(given[name]) for name in ("mean", "std"))
    return Mae(encoder, decoder, masks, size, 3, mean, std, given["norm_pix_loss"])


def _mae_tree(recording: dict, prefix: str) -> dict[str, dict]:
    tensors = _tensors(recording, prefix)
    encoder, decoder = split(tensors)
    return {"encoder": from_reference(encoder), "decoder": from_reference(decoder)}


def _mae_batch(recording: dict, step: int, kept: int) -> dict[str, jax.Array]:
    order = np.argsort(recording["ids_restore"][step], axis=1).astype(np.int32)[:, None]
    return {"image": jnp.asarray(recording["images"][step]), "context": order[..., :kept], "target": order[..., kept:]}


def _method(meta: dict) -> IJepa:
    size = meta["image_size"]
    heads = meta["num_heads"]
    encoder = ViT(
        meta["patch_size"], meta["embed_dim"], meta["depth"], heads, meta["mlp_ratio"], epsilon=meta["layer_norm_eps"]
    )
    predictor = Predictor(
        meta["predictor_embed_dim"], meta["predictor_depth"], heads, meta["mlp_ratio"], epsilon=meta["layer_norm_eps"]
    )
    grid = (size // meta["patch_size"],) * 2
    return IJepa(encoder, predictor, MaskSampler(grid, context_patches=4), (size, size))


def _optimizer(meta: dict):
    per_epoch = meta["steps_per_epoch"]
    return make_optimizer(
        total_steps=int(meta["schedule_scale"] * meta["epochs"] * per_epoch),
        warmup_steps=int(meta["warmup_epochs"] * per_epoch),
        start_lr=meta["start_lr"],
        peak_lr=meta["lr"],
        final_lr=meta["final_lr"],
        weight_decay=meta["weight_decay"],
        final_weight_decay=meta["final_weight_decay"],
        momentum=meta["ema"][0],
        final_momentum=meta["ema"][1],
        **meta["adam"],
    )


def _tensors(recording: dict, prefix: str) -> dict[str, np.ndarray]:
    """One module's tensors; position tables are computed here, not taken from the recording."""
    tensors = {key.removeprefix(prefix): value for key, value in recording.items() if key.startswith(prefix)}
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("pos_embed")}


def _batch(recording: dict, step: int) -> dict[str, jax.Array]:
    target = recording[f"step{step}/target_indices"].swapaxes(0, 1)
    return {
        "image": jnp.asarray(recording[f"step{step}/images_nchw"].transpose(0, 2, 3, 1)),
        "context": jnp.asarray(recording[f"step{step}/context_indices"].swapaxes(0, 1)),
        "target": jnp.asarray(target),
        "target_length": jnp.full(target.shape[:2], target.shape[2], jnp.int32),
    }


def _output_error(method: IJepa, params, target, batch, recording) -> float:
    """Largest error of both encoders' outputs, the normalised targets and the predictions at the first step."""

    @jax.jit
    def outputs(params, target, batch):
        images = normalise(batch["image"], method.mean, method.std)
        context = method.encode_context(params["encoder"], images, batch, jax.random.key(0))
        goal = method.gather_targets(method.encode_target(target, images), batch["target"])
        return (
            method.network.apply({"params": target}, images),
            context,
            goal,
            method.predict(params["predictor"], context, batch),
        )

    encoded, context, goal, prediction = outputs(params, target, batch)
    (b, m, c, t, d), k = prediction.shape, context.shape[2]
    goal = goal.swapaxes(0, 1)[:, None]
    if len(recording["step0/targets"]) == m * c * b:  # the reference repeats each target block for every context block
        goal = jnp.repeat(goal, c, axis=1)
    ours = {
        "target_encoder_output": encoded,
        "context_encoder_output": context.swapaxes(0, 1).reshape(c * b, k, d),
        "predictions": prediction.transpose(1, 2, 0, 3, 4).reshape(m * c * b, t, d),
        "targets": goal,
    }
    return _worst(_largest(value - recording[f"step0/{name}"].reshape(value.shape)) for name, value in ours.items())


def _gradient_error(method: IJepa, params, target, batch, recording) -> float:
    gradients = jax.jit(jax.grad(lambda p: method.loss(p, target, batch, jax.random.key(0))[0]))(params)
    recorded = {name: from_reference(_tensors(recording, f"step0/grad/{name}/")) for name in params}
    return _largest_difference(gradients, recorded)


def _weight_error(state: State, recording) -> float:
    final = {name: from_reference(_tensors(recording, f"final/{name}/")) for name in ("encoder", "predictor", "target_encoder")}
    return _largest_difference({**state.params, "target_encoder": state.target}, final)


def _schedule_error(received: list[dict], recording) -> float:
    names = {"learning_rate": "lr", "weight_decay": "weight_decay", "momentum": "ema_momentum"}
    return _worst(float(np.max(np.abs([m[ours] for m in received] / recording[theirs] - 1))) for ours, theirs in names.items())


def _largest_difference(ours: dict, theirs: dict) -> float:
    """Largest absolute difference of two equal trees, key-bias thirds left out."""

    def difference(path, a, b):
        a, b = np.asarray(a), np.asarray(b)
        if [entry.key for entry in path[-2:]] == ["qkv", "bias"]:
            a, b = np.delete(a.reshape(3, -1), 1, axis=0), np.delete(b.reshape(3, -1), 1, axis=0)
        return _largest(a - b)

    return _worst(jax.tree.leaves(jax.tree_util.tree_map_with_path(difference, ours, theirs)))


def _largest(x) -> float:
    return float(np.abs(np.asarray(x)).max())


def _worst(errors: Iterable[float]) -> float:
    """The largest, or NaN where there is one, which `max` would drop."""
    return float(np.max([*errors]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", help="an .npz file of recorded steps")
    errors = replay(parser.parse_args().recording)
    bars = BARS if "value_error" not in errors else dict.fromkeys(errors, SIGREG_BAR)
    missed = [name for name, bar in bars.items() if not errors[name] <= bar]
    print(json.dumps({**errors, "missed": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
