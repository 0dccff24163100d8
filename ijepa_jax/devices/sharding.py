"""Where arrays live: the device mesh, the placement of batches, and the sharding of the training state."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")
_SMALL = 2**16  # leaves of fewer scalars are replicated: gathering them costs more than they weigh


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices: batches are split along both axes, parameters along `fsdp`; -1 takes the devices left.

    `devices` may be others than this program's, of a topology that it only compiles for.
    """
    count, noun = (jax.device_count(), "devices") if devices is None else (len(devices), "chips")
    shape = [data, fsdp]
    if -1 in shape:
        known = max(1, shape[1 - shape.index(-1)])
        shape[shape.index(-1)] = count // known
    if min(shape) < 1 or shape[0] * shape[1] != count:
        raise ValueError(f"mesh data={data}, fsdp={fsdp} does not make up the {count} {noun} there are")
    # Auto: the compiler places intermediate values (the default, Explicit axes, is not supported by Linen's layers).
    return jax.make_mesh(tuple(shape), AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis of every array of a batch is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from this process's rows of a batch, each row sent only to the device that works on it.

    The rows become those of the global arrays that this process's devices hold: of a mesh that orders its devices by their
    place, as on TPU pods, these need not be consecutive. The batch is the same, but for the order of its rows.
    """
    return {key: _place(value, mesh, len(value) * jax.process_count()) for key, value in batch.items()}


def place_rows(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """A global array from all its rows, in their order, which every process has."""
    return _place(rows, mesh, len(rows))


def _place(rows: np.ndarray, mesh: Mesh, count: int) -> jax.Array:
    """A global array of `count` rows from all of them, or from as many as are this process's."""
    sharding, shape = batch_sharding(mesh), (count, *rows.shape[1:])
    starts = {device: index[0].start or 0 for device, index in sharding.addressable_devices_indices_map(shape).items()}
    each = count // mesh.size
    if len(rows) < count:  # the rows are this process's: its devices take them in their order
        order = sorted(starts.values())
        starts = {device: order.index(start) * each for device, start in starts.items()}
    # device_put, as a transfer that is asked for: others are disallowed while a run trains
    parts = [jax.device_put(rows[start : start + each], device) for device, start in starts.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def all_rows(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, np.ndarray]:
    """All processes' rows of a batch, from this process's; all must call this. They come in `place_batch`'s order."""
    if jax.process_count() == 1:
        return batch
    return jax.device_get(_gather(mesh)(place_batch(batch, mesh)))


@functools.cache
def _gather(mesh: Mesh) -> Callable:
    return jax.jit(lambda placed: placed, out_shardings=replicated(mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(shapes: Any, mesh: Mesh) -> Any:
    """A sharding for every leaf of a state (shape structures): large ones split along `fsdp`, small ones replicated."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _leaf_spec(leaf.shape, mesh.shape["fsdp"])), shapes)


def jit_step(step: Callable, state: Any, mesh: Mesh, compiler_options: dict | None = None) -> Callable:
    """Compiles `step(state, batch) -> (state, metrics)`, donating the state and keeping every leaf of it where it is.

    Were the outputs' places left to the compiler, a leaf could come back elsewhere, and the second step compile again.
    """
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(places, replicated(mesh)), compiler_options=compiler_options)


def splits_weights(leaf: jax.Array) -> bool:
    """Whether the mesh that a parameter lives on, as a function that is being traced sees it, splits parameters."""
    mesh = jax.typeof(leaf).sharding.mesh
    return not mesh.empty and mesh.shape.get("fsdp", 1) > 1


def _leaf_spec(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    """Splits the last dimension that divides: on TPUs, splitting another makes the compiler pad and shift what it reduces."""
    divisible = [axis for axis, length in enumerate(shape) if length % parts == 0]
    if parts == 1 or not divisible or np.prod(shape) < _SMALL:
        return PartitionSpec()
    return PartitionSpec(*(None,) * divisible[-1], "fsdp")
