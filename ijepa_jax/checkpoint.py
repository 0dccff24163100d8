"""Checkpoints of a run, with Orbax: asynchronous, atomic, verified; each holds the state and the settings that made it.

The position in the data needs no file of its own: batch n is a pure function of (settings, n), and n is the state's step.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from ijepa_jax import processes
from ijepa_jax.step import State
from ijepa_jax.workdir import absolute

Log = Callable[[str], None]
_UNFINISHED = ".orbax-checkpoint-tmp"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: one line that says which and why."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A state read back, and what was noted when it was saved."""

    state: State
    notes: dict[str, Any]
    step: int


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: str, *, keep: int = 2, keep_every: int = 0, read_only: bool = False):
        """Keeps the newest `keep` checkpoints, the best by probe score, and every `keep_every`-th step's for good."""
        self.folder = absolute(workdir) / "checkpoints"
        kept = [policies.LatestN(keep), policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=_score,
            create=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=options,
            item_names=("state", "notes"),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()},
        )

    def save(self, state: Any, step: int, settings: dict[str, Any], score: float | None = None, **notes: Any) -> None:
        """Saves in the background; `score` is the probe by which the best checkpoint is kept, `notes` are kept with it."""
        notes = {"settings": settings, "fingerprint": fingerprint(state), **notes}
        with self._failures_named():
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes)),
                metrics=None if score is None else {"score": score},
            )

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step of the best checkpoint by probe score, None without scores."""
        scores = {step: metrics["score"] for step in self.steps() if (metrics := self._manager.metrics(step))}
        return max(scores, key=lambda step: (scores[step], step)) if scores else None

    def wait(self) -> None:
        """Returns when everything saved so far is on disk; raises CheckpointError for what went wrong in the background."""
        with self._failures_named():
            self._manager.wait_until_finished()

    def close(self) -> None:
        with self._failures_named():
            self._manager.close()

    def restore(self, shapes: State, log: Log) -> Restored | None:
        """The newest checkpoint that can be read, with the shapes and shardings asked for; None where there is none.

        Unfinished and damaged ones are reported. A damaged one is set aside (renamed, not deleted), so that the run can
        save that step again.

        Raises:
            CheckpointError: there are checkpoints, but none can be read. A run never starts from zero over them.
        """
        for unfinished in self._unfinished():
            log(f"checkpoint {unfinished} was never finished: ignored")
        problems = []
        for step in reversed(self.steps()):
            restored, problem = self._try(step, shapes)
            if restored is not None:
                return restored
            problems.append(f"checkpoint {step} in {self.folder} is damaged ({problem})")
            log(f"{problems[-1]}: trying the one before it")
        if problems:
            raise CheckpointError(f"no readable checkpoint: {'; '.join(problems)}. Restore a copy, or use another workdir")
        return None

    def _try(self, step: int, shapes: State) -> tuple[Restored | None, str]:
        """The checkpoint of one step, verified against the fingerprint taken when it was saved; or what is wrong with it."""
        notes, state, problem = None, None, "another process cannot read it"
        for _ in range(2):  # what a store fails to answer once is not damaged
            try:
                notes, state = self.notes(step), self._state(step, shapes)
                break
            except (PermissionError, MemoryError) as error:
                raise CheckpointError(f"cannot read checkpoint {step} in {self.folder}: {_first_line(error)}") from error
            except Exception as error:
                if "RESOURCE_EXHAUSTED" in str(error):
                    raise
                problem = _first_line(error)
        # the fingerprint is a program of all processes: none may start it unless all will
        if not processes.all_succeeded(state is not None):
            return None, problem
        if fingerprint(state) != notes["fingerprint"]:
            return None, "its contents are not what was saved"
        return Restored(state, notes, step), ""

    def _state(self, step: int, shapes: State) -> State:
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes)))["state"]

    def set_aside(self, after: int) -> None:
        """Renames damaged checkpoints newer than step `after`, so that their steps can be saved again."""
        damaged = [step for step in self.steps() if step > after]
        if not damaged:  # nor is there anything to reload: a save that a run taken over from has just finished is not ours
            return
        if processes.is_first():
            for step in damaged:
                names = (f"damaged-{step}{f'.{i}' if i else ''}" for i in itertools.count())
                free = next(self.folder / name for name in names if not (self.folder / name).exists())
                (self.folder / str(step)).rename(free)
        processes.wait_for_all("damaged checkpoints set aside")
        self._manager.reload()

    def _unfinished(self) -> list[str]:
        """Names of what saves that were cut short have left: on gs://, where folders cannot be renamed, just a step's."""
        finished = {str(step) for step in self.steps()}
        names = sorted(path.name for path in self.folder.glob("*"))
        return [name for name in names if _UNFINISHED in name or (name.isdigit() and name not in finished)]

    @contextlib.contextmanager
    def _failures_named(self):
        try:
            yield
        except Exception as error:
            if processes.lost(error):
                raise
            raise CheckpointError(f"cannot write checkpoints to {self.folder} (disk full?): {_first_line(error)}") from error

    def notes(self, step: int) -> dict[str, Any]:
        """What was noted with a checkpoint: its settings, its fingerprint, and where imported weights came from."""
        return self._manager.restore(step, args=ocp.args.Composite(notes=ocp.args.JsonRestore()))["notes"]


def is_step(folder: epath.Path) -> bool:
    """Whether a path is that of one checkpoint in a workdir, WORKDIR/checkpoints/STEP."""
    return folder.parent.name == "checkpoints" and folder.name.isdigit()


@dataclasses.dataclass(frozen=True)
class Saved:
    """Some of what a checkpoint holds: named trees of NumPy arrays, and the notes kept with them."""

    trees: dict[str, Any]
    notes: dict[str, Any]
    step: int


def quiet(function):
    """Keeps what Orbax warns of (that it only reads, that there are no metrics) out of notebooks."""

    @functools.wraps(function)
    def quietly(*arguments, **options):
        logger = logging.getLogger("absl")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            return function(*arguments, **options)
        finally:
            logger.setLevel(level)

    return quietly


@quiet
def restore_parts(path: str, step: int = 0, parts: Sequence[str] = ("target",)) -> Saved:
    """Parts of a workdir's checkpoint: `target`, `params`, `opt_state`, and `head` where imported weights had one.

    `step` 0 stands for the best checkpoint by probe score, or else the newest, -1 for the newest; a path that leads to one
    checkpoint, WORKDIR/checkpoints/STEP, for that. Parts that are not there are left out. Raises CheckpointError.
    """
    folder = absolute(path)
    if is_step(folder):
        if step not in (0, int(folder.name)):
            raise CheckpointError(f"{path} is one checkpoint, and that of step {step} is asked for: give the workdir")
        folder, step = folder.parent.parent, int(folder.name)
    if not (folder / "checkpoints").is_dir():
        raise CheckpointError(f"{path} is not a workdir: it has no folder 'checkpoints'")
    checkpoints = Checkpoints(folder, read_only=True)
    steps = checkpoints.steps()
    if not steps:
        raise CheckpointError(f"{path} holds no finished checkpoint")
    best = checkpoints.best_step()
    step = {0: steps[-1] if best is None else best, -1: steps[-1]}.get(step, step) if step not in steps else step
    if step not in steps:
        raise CheckpointError(f"{path} has no checkpoint of step {step}: it has {', '.join(map(str, steps))}")
    notes = checkpoints.notes(step)
    if (method := notes["settings"]["method"]) != "ijepa":
        raise CheckpointError(f"{path} holds no encoder but what method {method!r} trains: give the workdir of an I-JEPA run")
    item = folder / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(item).item_metadata.tree
        wanted = {
            part: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), saved[part]) for part in parts if part in saved
        }
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        asked = ocp.args.PyTreeRestore(wanted, restore_args=arguments, partial_restore=True)
        trees = checkpointer.restore(item, asked) if wanted else {}
    return Saved(trees, notes, step)


def restore_encoder(path: str, step: int = 0) -> tuple[Any, dict[str, Any], int]:
    """The target encoder's parameters (NumPy) of a workdir's checkpoint, its settings and step, as `restore_parts`."""
    saved = restore_parts(path, step)
    return saved.trees["target"], saved.notes["settings"], saved.step


@jax.jit
def _leaf_sums(state: State) -> list[jax.Array]:
    """For each leaf, the sum modulo 2**32 of its bit patterns: the same on any mesh, changed by any flipped bit."""
    return [
        jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32).sum(dtype=jnp.uint32)
        for leaf in jax.tree.leaves(state)
    ]


def fingerprint(state: Any) -> list[int]:
    """Checksums of every leaf of a state, computed where the state lies: on devices, or as NumPy arrays on the host."""
    leaves = jax.tree.leaves(state)
    if all(isinstance(leaf, np.ndarray) for leaf in leaves):
        words = (np.ascontiguousarray(leaf).view(f"uint{8 * leaf.dtype.itemsize}") for leaf in leaves)
        return [int(word.sum(dtype=np.uint32)) for word in words]
    return [int(x) for x in jax.device_get(_leaf_sums(state))]


def digest_of(params: Any) -> str:
    """sha256 over the leaves of a parameter tree (NumPy or JAX), in the order of their paths; all processes must call it."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(processes.fetch(leaf) if isinstance(leaf, jax.Array) else leaf).tobytes())
    return digest.hexdigest()


def _score(metrics) -> float:
    return metrics["score"]


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
