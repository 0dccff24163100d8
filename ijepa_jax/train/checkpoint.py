"""Checkpoints of a run, with Orbax: asynchronous, atomic, verified; each holds the state and the settings that made it.

The position in the data needs no file of its own: batch n is a pure function of (settings, n), and n is the state's step.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from ijepa_jax import build
from ijepa_jax.devices import processes
from ijepa_jax.host.errors import one_line
from ijepa_jax.host.files import absolute, set_aside
from ijepa_jax.methods import Method, identity
from ijepa_jax.methods import config as config_lib
from ijepa_jax.train.digests import fingerprint, leaves_of, name_of
from ijepa_jax.train.picking import TRAINED, Place, followed, picked
from ijepa_jax.train.step import State

Log = Callable[[str], None]
_UNFINISHED = ".orbax-checkpoint-tmp"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: one line that says which and why; `damaged`: its files are not what was saved."""

    def __init__(self, message: str, damaged: bool = False):
        super().__init__(message)
        self.damaged = damaged


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
        opened = functools.partial(
            _Manager,
            self.folder,
            options=options,
            item_names=("state", "notes"),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()},
        )
        try:
            self._manager = opened()
        except FileNotFoundError:  # one of them was removed meanwhile, by a run that this one takes over from
            self._manager = opened()

    def save(self, state: Any, step: int, settings: dict[str, Any], score: float | None = None, **notes: Any) -> None:
        """Saves in the background; `score` is the probe by which the best checkpoint is kept, `notes` are kept with it."""
        notes = {"settings": settings, "fingerprint": fingerprint(state), "score": score, **notes}
        notes["checksum"] = _checksum(notes)
        with self._failures_named():
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes)),
                metrics=None if score is None else {"score": score},
            )
        if not saved:
            raise CheckpointError(f"checkpoint {step} was not saved: {self.folder} holds {self.steps()}")

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def best_step(self, log: Log = _say) -> int | None:
        """The step of the best checkpoint by probe score, None without scores; damaged ones are reported."""
        scores = {}
        for step in self.steps():
            try:
                scores[step] = _saved_score(self.folder / str(step))
            except CheckpointError as error:
                if not error.damaged:
                    raise
                log(f"{error}: not considered")
        scored = [(score, step) for step, score in scores.items() if score is not None]
        return max(scored)[1] if scored else None

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
            CheckpointError: there are checkpoints, but none can be read, or the newest is of another network, optimiser or
                version of this code. A run never starts from zero over them.
        """
        for unfinished in self._unfinished():
            log(f"checkpoint {unfinished} was never finished: ignored")
        while True:
            problems, steps = [], self.steps()
            for step in reversed(steps):
                restored, problem = self._try(step, shapes)
                if restored is not None:
                    return restored
                problems.append(problem)
                log(f"{problem}: trying the one before it")
            if not problems:
                return None
            self._manager.reload()
            if processes.all_succeeded(self.steps() == steps):  # else a run that was taken over from has saved meanwhile
                raise CheckpointError(f"no readable checkpoint: {'; '.join(problems)}. Restore a copy, or use another workdir")

    def _try(self, step: int, shapes: State) -> tuple[Restored | None, str]:
        """The checkpoint of one step, verified against the fingerprint taken when it was saved; or what is wrong with it."""
        folder, notes, state = self.folder / str(step), None, None
        problem = str(_damaged(folder, "another process cannot read it"))
        for _ in range(2):  # what a store fails to answer once is not damaged
            try:
                notes = self.notes(step)
                saved = self._sums(step, notes)
                _refuse_other_leaves(folder, [*saved], [name_of(*leaf) for leaf in leaves_of(shapes)])
                with _named(folder):
                    asked = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
                    state = self._manager.restore(step, args=asked)["state"]
                break
            except CheckpointError as error:
                if not error.damaged:
                    raise
                problem = str(error)
        # the fingerprint is a program of all processes: none may start it unless all will
        if not processes.all_succeeded(state is not None):
            return None, problem
        if wrong := _difference(step, saved, fingerprint(state), state.step):
            return None, str(_damaged(folder, wrong))
        return Restored(state, notes, step), ""

    def parts(self, step: int, wanted: Sequence[str]) -> dict[str, Any]:
        """Sub-trees of a checkpoint's state, of NumPy arrays, each leaf verified; those that it has not are left out.

        They are named by their paths: `params/encoder` gives {"params": {"encoder": ...}}.
        """
        folder, notes = self.folder / str(step), self.notes(step)
        item = folder / "state"
        with _named(folder), ocp.PyTreeCheckpointer() as checkpointer:
            saved = _tree(checkpointer, item)
            tree = jax.tree.map(lambda leaf: 0, _branches(saved, {*wanted, "step"}))
            there = {Place(path).path for path, _ in leaves_of(tree)}
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            asked = ocp.args.PyTreeRestore(tree, restore_args=arguments, partial_restore=True)
            trees = checkpointer.restore(item, asked) if tree else {}
        starts = tuple(f"{part}{end}" for part in (*wanted, "step") for end in "/ ")
        sums = self._sums(step, notes).items()
        sums = {name: value for name, value in sums if name.startswith(starts) or name.partition(" ")[0] in there}
        if wrong := _difference(step, sums, fingerprint(trees), trees.get("step", step)):
            raise _damaged(folder, wrong)
        return {name: tree for name, tree in trees.items() if name != "step" or "step" in wanted}

    def encoder(self, step: int, choose: Callable[[Any, Any], Any]) -> Any:
        """What `choose` takes of a checkpoint's (parameters, target): NumPy arrays; None where it takes nothing.

        It is asked first what it would take of the arrays' paths. Where it only picks, no others are read.
        """
        folder = self.folder / str(step)
        with _named(folder), ocp.PyTreeCheckpointer() as checkpointer:
            saved = _tree(checkpointer, folder / "state")
        chosen = picked({key: saved.get(key) for key in TRAINED}, choose)
        if chosen is None:
            trees = self.parts(step, TRAINED)
            try:
                return choose(*(trees.get(key) for key in TRAINED))
            except Exception as error:
                reason = f"{type(error).__name__}: {one_line(error, 200)}"
                raise CheckpointError(
                    f"{_shown(folder)} does not hold what the method takes for its encoder ({reason})"
                ) from error
        trees = self.parts(step, [place.path for place in jax.tree.leaves(chosen)])
        return jax.tree.map(lambda place: place.of(trees), chosen)

    def _sums(self, step: int, notes: dict[str, Any]) -> dict[str, int]:
        """The checksums of a checkpoint's arrays by their names, which older ones have as a list without names."""
        folder, sums = self.folder / str(step), notes["fingerprint"]
        if isinstance(sums, dict):
            return sums
        with _named(folder), ocp.PyTreeCheckpointer() as checkpointer:
            tree = _tree(checkpointer, folder / "state")
            order = [field.name for field in dataclasses.fields(State)] if "step" in tree else sorted(tree)
            return dict(zip((name_of(*leaf) for part in order for leaf in leaves_of({part: tree[part]})), sums, strict=True))

    def set_aside(self, after: int) -> None:
        """Renames damaged checkpoints newer than step `after`, so that their steps can be saved again."""
        damaged = [step for step in self.steps() if step > after]
        if not damaged:  # nor is there anything to reload: a save that a run taken over from has just finished is not ours
            return
        if processes.is_first():
            for step in damaged:
                set_aside(self.folder / str(step))
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
            raise CheckpointError(f"cannot write checkpoints to {self.folder} (disk full?): {one_line(error, 200)}") from error

    def notes(self, step: int) -> dict[str, Any]:
        """What was noted with a checkpoint: its settings, its fingerprint, and where imported weights came from.

        Raises CheckpointError.
        """
        notes = _read_notes(self.folder / str(step))
        try:
            config_lib.from_plain(notes["settings"])
        except (ValueError, TypeError) as error:
            if "checksum" not in notes:  # nothing says that these are the settings it was saved with
                raise _damaged(self.folder / str(step), str(error)) from None
            raise CheckpointError(f"{_shown(self.folder / str(step))}: {error}") from None
        return notes


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which would stop at a score that it cannot read: without one, a checkpoint is just not the best."""

    def metrics(self, step: int) -> dict[str, float] | None:
        try:
            score = _saved_score(self.directory / str(step))
        except CheckpointError:
            return None
        return None if score is None else {"score": score}


def _read_notes(folder: epath.Path) -> dict[str, Any]:
    """The notes of one checkpoint, verified by their checksum, which older ones do not have."""
    with _named(folder):
        notes = json.loads((folder / "notes" / "metadata").read_text())
        whole = isinstance(notes["settings"]["method"], str) and isinstance(notes["fingerprint"], dict | list)
        checksum = notes.get("checksum")
    if not whole or checksum not in (None, _checksum(notes)):
        raise _damaged(folder, "its notes are not what was saved")
    return notes


def _checksum(notes: dict[str, Any]) -> str:
    kept = {key: value for key, value in notes.items() if key != "checksum"}
    text = json.dumps(json.loads(json.dumps(kept)), sort_keys=True)  # as it will be when it is read
    return hashlib.sha256(text.encode()).hexdigest()


def _saved_score(folder: epath.Path) -> float | None:
    """The probe score that a checkpoint was saved with; older ones have it in Orbax's file only, where it may be damaged."""
    notes = _read_notes(folder)
    if "score" in notes:
        return notes["score"]
    try:
        score = float(json.loads((folder / "metrics" / "metrics").read_text())["score"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return score if np.isfinite(score) else None


@contextlib.contextmanager
def _named(folder: epath.Path):
    """Makes one line of whatever damaged bytes make JSON, Orbax and TensorStore raise."""
    try:
        yield
    except CheckpointError:
        raise
    except (PermissionError, MemoryError) as error:
        raise CheckpointError(f"cannot read {_shown(folder)}: {one_line(error, 200)}") from error
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error) or processes.lost(error):
            raise
        raise _damaged(folder, one_line(error, 200)) from error


def _shown(folder: epath.Path) -> str:
    return f"checkpoint {folder.name} in {folder.parent}"


def _damaged(folder: epath.Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{_shown(folder)} is damaged ({reason})", damaged=True)


def _refuse_other_leaves(folder: epath.Path, saved: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises CheckpointError, naming what differs, where a whole checkpoint holds other arrays than the ones asked for."""
    there, here = (dict(name.split(" ", 1) for name in names) for names in (saved, wanted))
    differ = [
        f"{leaf} is {there.get(leaf, 'missing')} there and {here.get(leaf, 'missing')} here"
        for leaf in sorted({*there, *here})
        if there.get(leaf) != here.get(leaf)
    ]
    if differ:
        raise CheckpointError(
            f"{_shown(folder)} is of another network, method or optimiser than these settings make, in {len(differ)} arrays: "
            f"{'; '.join(differ[:3])}. Use its settings, or another workdir"
        )


def _tree(checkpointer: ocp.PyTreeCheckpointer, item: epath.Path) -> dict[str, Any]:
    """What arrays a state is said to hold."""
    described = checkpointer.metadata(item).item_metadata
    if described is None:
        raise ValueError("the description of its arrays cannot be read")
    return described.tree


def _branches(tree: Any, paths: set[str]) -> Any:
    """The branches of nested dicts that lie at some paths, and those on the way there; lists are taken as a whole."""
    if not isinstance(tree, dict):
        return tree
    chosen = {}
    for name in sorted({path.partition("/")[0] for path in paths} & tree.keys()):
        below = {path.partition("/")[2] for path in paths if path.partition("/")[0] == name}
        if branch := tree[name] if "" in below else _branches(tree[name], below):
            chosen[name] = branch
    return chosen


def _difference(named: int, saved: dict[str, int], read: dict[str, int], step: Any) -> str:
    """What is wrong with arrays that are not what was saved, or not of the step that names their checkpoint, if anything."""
    wrong = [name for name in sorted({*saved, *read}) if saved.get(name) != read.get(name)]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return f"not what was saved are {', '.join(wrong[:3])}{more}"
    return "" if int(step) == named else f"a copy under another name: it holds the state of step {int(step)}"


def is_step(folder: epath.Path) -> bool:
    """Whether a path is that of one checkpoint in a workdir, WORKDIR/checkpoints/STEP."""
    return folder.parent.name == "checkpoints" and folder.name.isascii() and folder.name.isdigit()


def locate(path: epath.PathLike, step: int = 0) -> tuple[epath.Path, int | None]:
    """The workdir and the step that a path means, which is that of a workdir, or of one checkpoint, WORKDIR/checkpoints/STEP.

    The step is -1 for the newest, None for the best. Links are followed.

    Raises CheckpointError for what is no workdir, and where two steps are asked for.
    """
    try:
        folder, exact = absolute(path), None
    except ValueError as error:  # an object store that cannot be reached from here
        raise CheckpointError(str(error)) from error
    folder = folder if "://" in str(folder) else epath.Path(Path(folder).resolve())
    if is_step(folder):
        folder, exact = folder.parent.parent, int(folder.name)
        if step not in (0, exact):
            raise CheckpointError(f"{path} is one checkpoint, and that of step {step} is asked for: give the workdir")
    try:
        found = (folder / "checkpoints").is_dir()
    except Exception as error:  # object stores' libraries have exceptions of their own, and may be missing
        raise CheckpointError(f"cannot look into {path}: {one_line(error, 200)}") from error
    if not found:
        how = f"; foreign weights become one by: python launch.py import --from {path} --out DIR" if folder.exists() else ""
        raise CheckpointError(f"{path} is not a workdir: it has no folder 'checkpoints'{how}")
    return folder, exact if exact is not None else step or None


@dataclasses.dataclass(frozen=True)
class Saved:
    """Some of what a checkpoint holds: named trees of NumPy arrays, and the notes kept with them."""

    trees: dict[str, Any]
    notes: dict[str, Any]
    step: int

    def config(self) -> ml_collections.ConfigDict:
        """The settings of the run that saved it."""
        return config_lib.from_plain(self.notes["settings"])

    def method(self) -> Method:
        """The method that it was trained by, to be used."""
        return build.trained_method(self.config())


def quiet(function):
    """Keeps what Orbax says (that it only reads, that files that nothing depends on are damaged) out of notebooks."""

    @functools.wraps(function)
    def quietly(*arguments, **options):
        logger = logging.getLogger("absl")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            return function(*arguments, **options)
        finally:
            logger.setLevel(level)

    return quietly


@quiet
def restore_parts(path: str, step: int = 0, parts: Sequence[str] = ("target",), log: Log = _say) -> Saved:
    """Parts of a workdir's checkpoint: `target`, `params` (or `params/encoder`), `opt_state`, and imported weights' `head`.

    `step` 0 stands for the best checkpoint by probe score, or else the newest, -1 for the newest; a path that leads to one
    checkpoint, WORKDIR/checkpoints/STEP, for that. Parts that are not there are left out; every array that is read is verified.
    Raises CheckpointError.
    """
    with _opened(path, step, log) as (checkpoints, step):
        return Saved(checkpoints.parts(step, parts), checkpoints.notes(step), step)


@quiet
def restore_encoder(
    path: str, step: int = 0, parts: Sequence[str] = (), *, online: bool = False, log: Log = _say
) -> tuple[Any, Saved]:
    """The encoder's parameters (NumPy) of a workdir's checkpoint, which its method tells, and other parts, as `restore_parts`.

    `online`: instead, the encoder that its target follows. Raises CheckpointError where there is no encoder.
    """
    with _opened(path, step, log) as (checkpoints, step):
        saved = Saved(checkpoints.parts(step, parts) if parts else {}, checkpoints.notes(step), step)
        method, name, code = saved.method(), saved.notes["settings"]["method"], saved.notes["settings"].get(config_lib.CODE, {})
        if code and identity(saved.config().method)["source"] != code["source"]:
            log(f"{path}: the code of method {name!r} is not what it was trained with")
        if method.backbone() is None:
            raise CheckpointError(f"{path} holds no encoder but what method {name!r} trains: give another run's workdir")
        if online and saved.notes.get("encoder_only"):
            raise CheckpointError(f"{path} holds a target encoder only: it was imported without its training state")
        choose = (lambda params, _: followed(method, params)) if online else method.encoder
        return checkpoints.encoder(step, choose), saved


@contextlib.contextmanager
def _opened(path: str, step: int, log: Log) -> Iterator[tuple[Checkpoints, int]]:
    """The checkpoints of a workdir, and which of them is meant; see `restore_parts`."""
    workdir, step = locate(path, step)
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise CheckpointError(f"{path} holds no finished checkpoint")
        if step is None:
            step = checkpoints.best_step(log)
        if step in (None, -1):
            step = steps[-1]
        if step not in steps:
            raise CheckpointError(f"{path} has no checkpoint of step {step}: it has {', '.join(map(str, steps))}")
        yield checkpoints, step


def _score(metrics) -> float:
    return metrics["score"]
