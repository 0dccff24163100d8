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
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_mesh_computes_the_same(results):
    first = results["4x1"]["losses"]
    for mesh in results.values():
        assert mesh["losses"] == pytest.approx(first, rel=1e-5)
        assert mesh["compilations"] == 1 and mesh["rows"] == 2


def test_large_parameters_are_split_along_fsdp(results):
    assert results["4x1"]["shard"] == [64, 1024]
    assert results["2x2"]["shard"] == [64, 512]
    assert results["-1x4"]["shard"] == [64, 256]
