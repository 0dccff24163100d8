"""Meshes and placement, on simulated devices, in a process of their own since devices are counted once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import dataclasses, json
from functools import partial
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from ijepa_jax.devices import sharding
from ijepa_jax.train.step import init, train_step
from tests import small

method, optimizer = small.method(width=64, depth=1, mlp_ratio=16.0), small.optimizer()
method = dataclasses.replace(method, target_norm="whiten")  # over the batch of all devices
batch = small.batch(method, size=8)
results = {}
for data, fsdp in ((4, 1), (2, 2), (-1, 4)):
    mesh = sharding.make_mesh(data, fsdp)
    shapes = jax.eval_shape(partial(init, method, optimizer, 0))
    places = sharding.state_shardings(shapes, mesh)
    state = jax.jit(partial(init, method, optimizer, 0), out_shardings=places)()
    step = sharding.jit_step(partial(train_step, method=method, optimizer=optimizer, seed=0), state, mesh)
    losses = []
    for _ in range(3):
        state, metrics = step(state, sharding.place_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    kernel = state.target["blocks"]["0"]["fc1"]["kernel"]
    results[f"{data}x{fsdp}"] = {
        "losses": losses, "shard": kernel.sharding.shard_shape(kernel.shape), "compilations": step._cache_size(),
        "rows": sharding.batch_sharding(mesh).shard_shape((8, 1))[0],
    }
from ijepa_jax import build
from ijepa_jax.methods import config
siblings = {}
for name in ("lejepa", "mae", "pixels", "salt"):
    settings = config.with_method(small.config(), name)
    if name == "salt":
        settings.salt.teacher = "random"
    if name == "lejepa":
        settings.lejepa.update({"local_views": 1, "local_size": (16, 16), "projector_width": 64, "slices": 32})
    if name == "mae":
        settings.mae.update({"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2})
    settings.model.width, settings.model.mlp_ratio, settings.model.depth = 64, 16.0, 1
    method = build.method(build.completed(settings))
    batch, siblings[name] = small.batch(method, size=16), []
    step = partial(train_step, method=method, optimizer=optimizer, seed=0)
    fresh = jax.jit(partial(init, method, optimizer, 0))()
    state, alone, mesh = fresh, jax.jit(step), sharding.make_mesh(2, 2)
    for _ in range(2):
        state, metrics = alone(state, batch)
    siblings[name].append(float(metrics["loss"]))  # of rows that are not divided, as the mesh divides them
    state = jax.device_put(fresh, sharding.state_shardings(fresh, mesh))
    step = sharding.jit_step(step, state, mesh)
    for _ in range(2):
        state, metrics = step(state, sharding.place_batch(batch, mesh))
    kernel = state.params["encoder"]["blocks"]["0"]["fc1"]["kernel"]
    siblings[name] += [float(metrics["loss"]), step._cache_size(), kernel.sharding.shard_shape(kernel.shape)[1]]
print(json.dumps({"meshes": results, "siblings": siblings}))
"""


@pytest.fixture(scope="module")
def results():
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_mesh_computes_the_same(results):
    first = results["meshes"]["4x1"]["losses"]
    for mesh in results["meshes"].values():
        assert mesh["losses"] == pytest.approx(first, rel=1e-5)
        assert mesh["compilations"] == 1 and mesh["rows"] == 2


def test_large_parameters_are_split_along_fsdp(results):
    assert {name: mesh["shard"] for name, mesh in results["meshes"].items()} == {
        "4x1": [64, 1024], "2x2": [64, 512], "-1x4": [64, 256],
    }  # fmt: skip


@pytest.mark.parametrize("method", ["lejepa", "mae", "pixels", "salt"])
def test_so_does_every_sibling(results, method):
    alone, divided, compilations, columns = results["siblings"][method]
    assert divided == pytest.approx(alone, rel=1e-5)
    assert (compilations, columns) == (1, 512)
