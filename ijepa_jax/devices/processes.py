"""Several processes as one run: how they start, check that they agree, stop together, and notice that one is gone.

JAX's distributed runtime does the work: its coordination service connects the processes, notices lost ones by heartbeats, and
passes a preemption notice (SIGTERM) of one to all, with a step at which all are to save. With one process nothing here
does anything.
"""

import functools
import hashlib
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_LOST_AFTER = 60  # seconds without a heartbeat, after which JAX's runtime ends the processes that are left


class Disagreement(ValueError):
    """The processes do not run the same thing: one line that says which process differs in what."""


class ProcessLost(RuntimeError):
    """Another process of the run is gone; what was saved last is good."""


# What the messages of a broken connection hold: gloo's, NCCL's and the coordination service's.
_LOST = ("onnection", "Gloo", "NCCL", "heartbeat", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Socket", "peer")


def lost(error: BaseException) -> bool:
    """Whether an error says that another process of the run is gone."""
    return jax.process_count() > 1 and any(sign in str(error) for sign in _LOST)


def start(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Connects the processes of a run; must come before anything else that uses JAX's devices.

    Without arguments, the cluster says who is who: Cloud TPU pods, Slurm, Open MPI and Kubernetes are known to JAX; elsewhere
    the process is alone. Otherwise give all three: `coordinator` ("HOST:PORT" of process 0), the `count` of processes and the
    `index` of this one. Raises ValueError for a part of them, and RuntimeError if the others do not come.
    """
    given = (coordinator, count, index)
    if None in given and given != (None, None, None):
        raise ValueError(f"give coordinator, num_processes and process_id together: they are {given}")
    if coordinator and not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"coordinator {coordinator!r} must be HOST:PORT")
    try:
        jax.distributed.initialize(coordinator, count, index, heartbeat_timeout_seconds=_LOST_AFTER)
    except ValueError as error:
        if coordinator or "coordinator_address should be defined" not in str(error):
            raise


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Raises `Disagreement` in every process unless all have the same facts (names to values that JSON can hold)."""
    if jax.process_count() == 1:
        return
    everyone = gather_objects({"place": place(), "facts": dict(facts)})
    first = everyone[0]["facts"]
    for other in everyone:
        names = sorted({*first, *other["facts"]})
        different = [name for name in names if first.get(name) != other["facts"].get(name)]
        if different:
            shown = "; ".join(f"{name} is {other['facts'].get(name)!r}, there {first.get(name)!r}" for name in different[:5])
            raise Disagreement(f"{other['place']} differs from {everyone[0]['place']} in {len(different)} points: {shown}")


def gather_objects(mine: Any) -> list[Any]:
    """What every process has, of things that JSON can hold, in the order of the processes."""
    if jax.process_count() == 1:
        return [mine]
    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(text)))
    texts = multihost_utils.process_allgather(np.pad(text, (0, int(sizes.max()) - len(text))))
    return [json.loads(bytes(row[:size])) for row, size in zip(np.asarray(texts), sizes.tolist(), strict=True)]


def all_succeeded(mine: bool) -> bool:
    """Whether something worked in every process."""
    return mine if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(mine))))


def wait_for_all(name: str) -> None:
    """Returns when every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def fetch(array: jax.Array) -> np.ndarray:
    """A whole array on this host, wherever its parts lie; all processes must call this."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(jax.device_get(array))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def asked_to_stop(step: int) -> bool:
    """Whether all processes are to save and leave after this step, because one was sent SIGTERM; call it at every step."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def is_first() -> bool:
    """Whether this is the process that talks and writes for all."""
    return jax.process_index() == 0


def named(message: str) -> str:
    """A message with the process that it comes from, where there are several."""
    several = jax.distributed.is_initialized() and jax.process_count() > 1
    return f"{place()}: {message}" if several else message


def place() -> str:
    """This process by its index and host, for people."""
    return f"process {jax.process_index()} on {socket.gethostname()}"


def leave_others(code: int) -> None:
    """Ends this process at once if there are others: an orderly end would wait for them, who may wait for this one."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@functools.cache
def code_digest() -> str:
    """A hash of this package's source."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent.parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
