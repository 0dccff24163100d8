"""Replays recorded steps of the authors' code through the step that training uses, and compares every number.

    python tests/parity.py RECORDING.npz

A recording holds initial and final weights, images, masks, losses, schedules and first-step activations and gradients, in
fp32 (key names: see `replay`). Prints one JSON line and exits with 1 when a bar is missed. The key third of every qkv bias
is left out of gradients and weights: its true gradient is zero, and Adam turns the rounding noise there into steps.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ijepa_jax.interop.layout import from_reference
from ijepa_jax.methods import IJepa
from ijepa_jax.methods.masks import MaskSampler
from ijepa_jax.methods.optim import make_optimizer
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


def replay(path: str | Path) -> dict[str, float]:
    """The errors of a replay of one recording, named as in BARS."""
    with np.load(path, allow_pickle=False) as file:
        recording = {key: file[key] for key in file.files}
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
    return max(_largest(value - recording[f"step0/{name}"].reshape(value.shape)) for name, value in ours.items())


def _gradient_error(method: IJepa, params, target, batch, recording) -> float:
    gradients = jax.jit(jax.grad(lambda p: method.loss(p, target, batch, jax.random.key(0))[0]))(params)
    recorded = {name: from_reference(_tensors(recording, f"step0/grad/{name}/")) for name in params}
    return _largest_difference(gradients, recorded)


def _weight_error(state: State, recording) -> float:
    final = {name: from_reference(_tensors(recording, f"final/{name}/")) for name in ("encoder", "predictor", "target_encoder")}
    return _largest_difference({**state.params, "target_encoder": state.target}, final)


def _schedule_error(received: list[dict], recording) -> float:
    names = {"learning_rate": "lr", "weight_decay": "weight_decay", "momentum": "ema_momentum"}
    return max(float(np.max(np.abs([m[ours] for m in received] / recording[theirs] - 1))) for ours, theirs in names.items())


def _largest_difference(ours: dict, theirs: dict) -> float:
    """Largest absolute difference of two equal trees, key-bias thirds left out."""

    def difference(path, a, b):
        a, b = np.asarray(a), np.asarray(b)
        if [entry.key for entry in path[-2:]] == ["qkv", "bias"]:
            a, b = np.delete(a.reshape(3, -1), 1, axis=0), np.delete(b.reshape(3, -1), 1, axis=0)
        return _largest(a - b)

    return max(jax.tree.leaves(jax.tree_util.tree_map_with_path(difference, ours, theirs)))


def _largest(x) -> float:
    return float(np.abs(np.asarray(x)).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", help="an .npz file of recorded steps")
    errors = replay(parser.parse_args().recording)
    missed = [name for name, bar in BARS.items() if not errors[name] <= bar]
    print(json.dumps({**errors, "missed": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
