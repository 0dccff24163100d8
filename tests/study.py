"""Runs one thing against another: settings x seeds -> runs of the launcher -> one table, as Markdown and JSON, and a plot.

    python tests/study.py tests/studies/context_modes.py --seeds 3 --equal compute
    python tests/study.py tests/studies/fashion_mnist.py --only "random masks" --seeds 3 --parallel 2
    python tests/study.py FILE.py --config configs/tiny.py --config.optim.steps=10 --runs DIR

A study is a file with CONFIG (one of configs/), VARIANTS ({name: {setting: value}}) and, if it likes, SETTINGS (of all runs),
EVALUATE (files of configs/evaluate, run on every encoder) and METRICS (names in metrics.jsonl, of which the table shows means
over the last tenth of training, and the JSON those of every tenth; with "loss" among them study.md tells whether these and
RankMe rank the runs of a method, of which there must be 8, as probes do, and told.png shows it). Methods of one's own are
settings like others: `"method": "mine.py:Mine"`; so is another configuration, `"config": FILE`. Others are compared with the
first variant, seed by seed.

The first variant has the steps that its configuration says; the others get as many as show as many images (`--equal images`) or
as make its model FLOPs (`--equal compute`), with warm-up, probes and checkpoints stretched to them. A variant that gives
`optim.steps` itself keeps these.

All variants of a seed run before the next seed, one run at a time on all cores, or `--parallel 2` on half of them each. Those
that are finished are only read and those that were stopped continue, so that the same command goes on where it ended. study.md,
study.json and study.png beside the runs hold all that is finished, whichever were asked for, and are written anew after every
run. Accuracies are the final weights', in per cent; differences are paired by seed, with Student's 95% interval over seeds;
seconds are of runs that were not interrupted. NAME.json beside a run is what it was started with; a run of other settings is
refused, and so is one that would go on with other code of its method.
"""

import argparse
import dataclasses
import functools
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ml_collections
from etils import epath

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ijepa_jax import build, cli
from ijepa_jax.host.errors import one_line
from ijepa_jax.host.files import write_whole
from ijepa_jax.methods import broken, identity
from ijepa_jax.methods import config as config_lib
from ijepa_jax.settings import evaluation, plain
from launch import training_images
from tests import study_results

ROOT = Path(__file__).resolve().parent.parent
_WARMUP = "optim.warmup"
_STRETCHED = (_WARMUP, "probe.every", "checkpoint.every")  # to the length of a run
_INDIFFERENT = ("checkpoint.", "log.", "profile.", "probe.every")  # change neither weights nor scores
_LINE_SECONDS = 60.0  # between lines on what runs
_STOPPED = 75  # exit code of a run that was asked to stop, and saved itself
_LONGEST = 200  # bytes of a variant's name: it is a folder's


class Refused(SystemExit):
    """A study that cannot be run as it is given."""

    def __init__(self, message: str):
        super().__init__(f"error: {message}")


class Failed(Exception):
    """A run that came to nothing; others go on."""


# what is asked


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study's file says: see the top of this file."""

    file: str
    config: str
    variants: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)  # {file: plain settings}
    metrics: Sequence[str] = ()

    @property
    def reference(self) -> str:
        """The variant that others are compared with."""
        return next(iter(self.variants))

    @property
    def common(self) -> dict[str, Any]:
        """The settings of all runs, but for which file they start from."""
        return {key: value for key, value in self.settings.items() if key != "config"}


def read(file: str, config: str = "", settings: Mapping[str, Any] | None = None) -> Study:
    """A study's file, with a configuration in place of its own and more settings of all runs. Raises Refused."""
    if not Path(file).is_file():
        raise Refused(f"no study {file!r}: see tests/studies/")
    try:
        said = runpy.run_path(file)
    except (Exception, SystemExit) as error:
        raise Refused(str(broken(file, error)).replace("method ", "study ", 1)) from error
    if missing := [name for name in ("CONFIG", "VARIANTS") if not said.get(name)]:
        raise Refused(f"{file} is no study: it has no {' and no '.join(missing)}")
    variants, lists = said["VARIANTS"], {name: said.get(name, ()) for name in ("EVALUATE", "METRICS")}
    if not isinstance(variants, Mapping) or not all(isinstance(of, Mapping) for of in [*variants.values()]):
        raise Refused(f"{file}: VARIANTS must be {{name: {{setting: value}}}}")
    if not isinstance(said.get("SETTINGS", {}), Mapping):
        raise Refused(f"{file}: SETTINGS must be {{setting: value}}, not {said['SETTINGS']!r}")
    for name, value in lists.items():
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str | Path) for one in value):
            raise Refused(f"{file}: {name} must be a list of names, not {value!r}")
    of_all = {**said.get("SETTINGS", {}), **(settings or {})}
    for variant, own in variants.items():
        if not isinstance(variant, str) or not re.fullmatch(r"[^|\n]*\w[^|\n]*", variant) or len(variant.encode()) > _LONGEST:
            raise Refused(f"{file}: {variant!r} is no name of a variant: it heads a row and a folder, so letters, and no '|'")
        if "seed" in {**of_all, **own}:
            raise Refused(f"{variant}: a study gives the seeds itself, all variants the same: --seeds, not the setting seed")
    evaluations = {str(path): _protocol(str(path)) for path in lists["EVALUATE"]}
    if len({Path(path).stem for path in evaluations}) < len(evaluations):
        raise Refused(f"{file}: two files of EVALUATE have one name: their scores need two")
    return Study(file, config or str(said["CONFIG"]), variants, of_all, evaluations, tuple(map(str, lists["METRICS"])))


def _protocol(file: str) -> dict[str, Any]:
    """An evaluation's settings, on final weights, as its result keeps them."""
    try:
        found = cli.read(["evaluate", "--checkpoint", ".", *_protocol_words(file)]).config
        evaluation.check(found)
    except (cli.UsageError, ValueError) as error:
        raise Refused(f"EVALUATE: {cli.plain(error)}") from error
    if found.protocol == "rank":
        raise Refused(f"EVALUATE: {file} gives no accuracy, and reports have RankMe")
    return json.loads(json.dumps(plain.to_plain(found)))


def _protocol_words(file: str) -> list[str]:
    return ["--config", file, _override("step", -1)]


@dataclasses.dataclass(frozen=True)
class Trial:
    """A run of the study: its variant, seed, settings as they are given, and as the launcher completes them."""

    variant: str
    seed: int
    config_file: str
    settings: Mapping[str, Any]
    config: ml_collections.ConfigDict
    flops: int | None  # of the whole run; None where the method does not tell

    @property
    def name(self) -> str:
        """Of its workdir and log."""
        return f"{self.stem}_{self.seed}"

    @property
    def stem(self) -> str:
        """The variant's name as that of a folder."""
        return re.sub(r"[^\w.]+", "_", self.variant)

    @property
    def overrides(self) -> list[str]:
        """The settings as the launcher takes them."""
        return [_override(key, value) for key, value in {**self.settings, "seed": self.seed}.items()]

    @property
    def asked(self) -> dict[str, Any]:
        """All that it is started with, as JSON types, and what its method's code is now."""
        code = {key: value for key, value in _identity(self.config.method).items() if key != "file"}  # wherever that is
        return {"settings": plain.to_plain(self.config), "code": code}

    def at(self, seed: int) -> "Trial":
        """The same with another seed."""
        config = ml_collections.ConfigDict(self.config)
        config.seed = seed
        return dataclasses.replace(self, seed=seed, config=config)


def trials(study: Study, equal: str = "images") -> list[Trial]:
    """A run of each variant, the reference first, of seed 0. Raises Refused for settings that the launcher would refuse."""
    made: list[Trial] = []
    for variant in study.variants:
        made.append(_trial(study, variant, made[0] if made else None, equal))
    if len({trial.stem for trial in made}) < len(made):
        raise Refused("two variants' names differ in signs alone: rename one")
    return made


def _trial(study: Study, variant: str, first: Trial | None, equal: str) -> Trial:
    own = {**study.settings, **study.variants[variant]}
    file = own.pop("config", study.config)
    stretched = _stretched(study, variant, file)
    asked = _read(variant, file, own)
    steps = asked.optim.steps
    if not steps:
        raise Refused(f"{variant} counts epochs: runs are compared by steps, give optim.steps")
    cost = _flops(variant, asked)
    if first and "optim.steps" not in study.variants[variant]:
        wanted = first.config.optim
        steps = round(wanted.steps * wanted.batch_size / asked.optim.batch_size)
        if equal == "compute":
            if cost is None or first.flops is None:
                whose = variant if first.flops else first.variant
                raise Refused(f"{whose}: its method does not tell its FLOPs: --equal images")
            steps = round(first.flops / cost)
        if not steps:
            raise Refused(f"{variant}: a single step of it is more than all of {first.variant}: it would get none")
    own |= {"optim.steps": steps, **stretched(steps)}
    return Trial(variant, 0, file, own, _configured(variant, file, own), None if cost is None else cost * steps)


def _stretched(study: Study, variant: str, file: str) -> Callable[[int], dict[str, Any]]:
    """From a run's steps to its warm-up and intervals: as long, of the run, as they are of that which says them.

    That is the configuration, or the settings of all runs with the steps that these have; a variant's own stay as they are.
    """
    own, common = plain.flatten(_read(variant, file, {})), plain.flatten(_read(variant, file, study.common))
    said = {key: common if key in study.common else own for key in _STRETCHED}
    if not common["optim.steps"] or (not said[_WARMUP]["optim.steps"] and _WARMUP not in study.variants[variant]):
        raise Refused(f"{variant}: {file} counts epochs: give optim.steps and {_WARMUP} in SETTINGS, or a file in steps")

    def at(length: int) -> dict[str, Any]:
        found = {}
        for key in said.keys() - study.variants[variant].keys():
            value, of = said[key][key], said[key]["optim.steps"] or common["optim.steps"]
            found[key] = type(value)(max(round(value * length / of), min(value, 1)))  # what is not 0 stays so
        return found

    return at


def _configured(variant: str, file: str, settings: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A file and settings, checked as the launcher checks them."""
    config = _read(variant, file, settings)
    try:
        build.run_method(config)
    except ValueError as error:
        raise Refused(f"{variant}: {error}") from error
    return config


def _read(variant: str, file: str, settings: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A file and settings, as the launcher reads them."""
    try:
        words = ["pretrain", "--config", file, *(_override(key, value) for key, value in settings.items())]
        return build.completed(cli.read(words, training_images).config)
    except (cli.UsageError, ValueError) as error:
        raise Refused(f"{variant}: {cli.plain(error)}") from error


def _flops(variant: str, config: ml_collections.ConfigDict) -> int | None:
    """Model FLOPs of a step."""
    try:
        found = build.method(config).flops()
        return None if found is None else sum(found.values()) * config.optim.batch_size
    except Exception as error:
        raise Refused(f"{variant}: {error if isinstance(error, ValueError) else broken(config.method, error)}") from error


_identity = functools.cache(identity)  # as of the start: a file may change while runs of it go on


def _override(key: str, value: Any) -> str:
    return f"--config.{key}={value}"


# running it


class Runner:
    """Runs trials in processes of their own, and leaves none behind."""

    def __init__(self, folder: Path, parallel: int, evaluations: Mapping[str, Mapping[str, Any]]):
        self.folder, self._evaluations = folder, evaluations
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._cores: SimpleQueue = SimpleQueue()
        for i in range(parallel):
            self._cores.put(cores[i::parallel] or cores)
        self._running: dict[str, subprocess.Popen] = {}
        self._lock = threading.Lock()
        self.ending = False

    def workdir(self, trial: Trial) -> Path:
        return self.folder / trial.name

    def log(self, trial: Trial) -> Path:
        return self.folder / f"{trial.name}.log"

    def __call__(self, trial: Trial) -> None:
        """Runs what there is not yet of a trial. Raises Failed, with the last line of its log."""
        cores = self._cores.get()
        try:
            if self.report(trial) is None:
                if not self.workdir(trial).is_dir():
                    _write(self.folder / f"{trial.name}.json", json.dumps(trial.asked, indent=1) + "\n")
                config = ["--config", trial.config_file, "--workdir", str(self.workdir(trial)), f"--stopped-code={_STOPPED}"]
                self._launch(trial, ["pretrain", *config, *trial.overrides], cores)
                if self.report(trial) is None:
                    raise Failed("it ended without a report")
            for file in self.missing(trial):
                out = self._evaluated_in(trial, file)
                words = [*_protocol_words(file), "--checkpoint", str(self.workdir(trial)), "--out", str(out)]
                self._launch(trial, ["evaluate", *words], cores)
            if missing := self.missing(trial):
                raise Failed(f"{', '.join(missing)} left no result")
        finally:
            self._cores.put(cores)

    def report(self, trial: Trial) -> dict[str, Any] | None:
        """The report of a finished trial; None: there is none that can be read."""
        found = _json(self.workdir(trial) / "report" / "report.json")
        return found if found and found.get("steps") else None

    def check(self, trial: Trial) -> None:
        """Raises Refused where a trial's workdir holds a run of other settings, or one that other code began."""
        kept = self._started(trial)
        if not kept:
            return
        try:
            found = plain.to_plain(config_lib.from_plain(kept["settings"]))
            differences = plain.differences(found, trial.asked["settings"])
            said = ", ".join(f"{key} {it[0]}" for key, it in differences.items() if not key.startswith(_INDIFFERENT))
        except ValueError as error:
            said = one_line(error)
        if not said and self.report(trial) is None and self.other_code(trial):
            said = "an earlier version of its method's code"
        if said:
            raise Refused(
                f"{self.workdir(trial)} holds another run, with {said}: give another folder by --runs, or delete this one"
            )

    def other_code(self, trial: Trial) -> bool:
        """Whether a trial was started with other code of its method than there is now."""
        kept = self._started(trial).get("code")
        return kept is not None and kept != trial.asked["code"]

    def _started(self, trial: Trial) -> dict[str, Any]:
        """What a trial was started with, as `Trial.asked`; of a run that was not started here, its settings alone."""
        workdir = self.workdir(trial)
        if not workdir.is_dir():
            return {}
        kept = _json(workdir.with_name(f"{trial.name}.json")) or {}
        settings = _json(workdir / "config.json") or (self.report(trial) or {}).get("config")
        return kept if "settings" in kept else {"settings": settings} if settings else {}

    def outcome(self, trial: Trial) -> dict[str, Any] | None:
        """What a trial came to as plain numbers, with the evaluations that there are; None: it is not finished."""
        report = self.report(trial)
        if report is None:
            return None
        evaluations = {Path(file).stem: self._evaluated(trial, file, report) for file in self._evaluations}
        found = {name: result for name, result in evaluations.items() if result}
        return {
            "variant": trial.variant, "seed": trial.seed, "flops": trial.flops, "method": trial.config.method,
            "settings": {key: value if isinstance(value, int | float) else str(value) for key, value in trial.settings.items()},
            "images": report["steps"] * trial.config.optim.batch_size,
            **study_results.of_run(report, self.workdir(trial), found),
        }  # fmt: skip

    def missing(self, trial: Trial) -> list[str]:
        """The evaluations that a trial lacks."""
        report = self.report(trial) or {}
        return [file for file in self._evaluations if self._evaluated(trial, file, report) is None]

    def _evaluated_in(self, trial: Trial, file: str) -> Path:
        return self.workdir(trial) / "study" / Path(file).stem

    def _evaluated(self, trial: Trial, file: str, report: Mapping[str, Any]) -> dict[str, Any] | None:
        """The result of an evaluation as it is now, of the encoder as it is now."""
        digest = report.get("encoder_digest")
        for place in sorted(self._evaluated_in(trial, file).glob("*.json")):
            found = _json(place) or {}
            if digest and found.get("encoder_digest") == digest and found.get("settings") == self._evaluations[file]:
                return found
        return None

    def _launch(self, trial: Trial, words: Sequence[str], cores: Sequence[int]) -> None:
        command = [sys.executable, str(ROOT / "launch.py"), *words]
        # XLA starts as many threads as it is given cores; Ctrl-C is for this process, which then ends the others
        pinned = ["taskset", "-c", ",".join(map(str, cores))] if len(cores) and shutil.which("taskset") else []
        with self.log(trial).open("a") as log:
            with self._lock:
                if self.ending:
                    raise Failed("not started")
                process = subprocess.Popen([*pinned, *command], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
                self._running[trial.name] = process
            code = process.wait()
            del self._running[trial.name]
        if code == _STOPPED and words[0] == "pretrain":
            raise Failed("it was stopped from outside and saved itself; the same command continues")
        if code:
            raise Failed(f"exit code {code}: {self.last_line(trial)}")

    def last_line(self, trial: Trial) -> str:
        """Of its log."""
        lines = self.log(trial).read_text(errors="replace").split("\n") if self.log(trial).is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "starting")

    def running(self, some: Sequence[Trial]) -> list[Trial]:
        return [trial for trial in some if trial.name in self._running]

    def end(self) -> None:
        """Lets what runs save itself, and end."""
        with self._lock:
            self.ending = True
            for process in list(self._running.values()):
                process.send_signal(signal.SIGTERM)


def run(todo: Sequence[Trial], runner: Runner, parallel: int, show: Callable[[Trial], None]) -> list[str]:
    """Runs trials, `show`s each that is finished, and returns what failed, in lines."""
    failed: list[str] = []
    started = time.monotonic()
    with ThreadPoolExecutor(parallel) as pool:
        waiting: dict[Future, Trial] = {pool.submit(runner, trial): trial for trial in todo}
        try:
            while waiting:
                done, _ = wait(waiting, timeout=_LINE_SECONDS, return_when=FIRST_COMPLETED)
                for trial in [] if done else runner.running(todo):
                    print(f"  {trial.name}: {runner.last_line(trial)}", flush=True)
                for future in done:
                    trial = waiting.pop(future)
                    try:
                        future.result()
                    except Failed as error:
                        failed.append(f"{trial.name}: {error} (see {runner.log(trial)})")
                        print(f"failed: {failed[-1]}", flush=True)
                    if (found := runner.outcome(trial)) is not None:
                        left = (time.monotonic() - started) / (len(todo) - len(waiting)) * len(waiting)
                        print(
                            f"[{len(todo) - len(waiting)}/{len(todo)}] {_line(found)}; about {left / 60:.0f} min left",
                            flush=True,
                        )
                        show(trial)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.end()
            raise
    return failed


def _line(found: Mapping[str, Any]) -> str:
    scores = ", ".join(f"{name} {value:.1f}" for name, value in found["scores"].items())
    seconds = "" if found["seconds"] is None else f"; {found['seconds']:.0f} s"
    return f"{found['variant']}, seed {found['seed']}: {scores}{seconds}"


def _json(file: Path) -> dict[str, Any] | None:
    """What a file holds; None: nothing that can be read."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(file: Path, content: str) -> None:
    write_whole(epath.Path(file), content)


# the command


def main() -> int:
    """Runs what is not there yet, and writes it all."""
    given = _arguments()
    study = read(given.study, given.config, given.overrides)
    if unknown := [*{*given.only} - study.variants.keys()]:
        raise Refused(f"no variant {', '.join(unknown)} in {given.study}: there is {', '.join(study.variants)}")
    each = trials(study, given.equal)
    runner = Runner(given.runs, given.parallel, study.evaluations)
    chosen = [trial for trial in each if not given.only or trial.variant in given.only or trial is each[0]]
    asked = [trial.at(seed) for seed in range(given.seeds) for trial in chosen]
    for trial in asked:
        runner.check(trial)  # before time is spent
    names = {trial.name for trial in asked}
    others = [trial for trial in _there(runner, each) if trial.name not in names and not _left_out(runner, trial)]
    todo = [trial for trial in asked if runner.report(trial) is None or runner.missing(trial)]
    if given.dry_run:
        for trial in asked:
            state = "continues" if runner.workdir(trial).is_dir() else "to run"
            flops = "" if trial.flops is None else f", {trial.flops / 1e12:.4g} TFLOP"
            print(f"{trial.name}: {state if trial in todo else 'finished'}, {trial.config.optim.steps} steps{flops}: ", end="")
            print(" ".join(trial.overrides))
        return 0
    try:
        given.runs.mkdir(parents=True, exist_ok=True)
        _write(given.runs / "study.md", "nothing was finished\n")
    except OSError as error:
        raise Refused(f"cannot write to {given.runs}: {error.strerror}: give another folder by --runs") from error
    for name in ("study.json", "study.png", "told.png"):
        (given.runs / name).unlink(missing_ok=True)
    finished: dict[str, dict[str, Any]] = {}

    def show(trial: Trial | None = None) -> None:
        for one in [*asked, *others]:  # another call may have finished some
            if (one is trial or one.name not in finished) and (outcome := runner.outcome(one)) is not None:
                finished[one.name] = outcome
        if finished:
            results = _in_order(finished, study)
            notes = _notes(
                study, results, [one.name for one in [*asked, *others] if one.name in finished and runner.other_code(one)]
            )
            study_results.write(given.runs, study.file, study.reference, results, study.metrics, notes)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _interrupt)
    show()
    try:
        failed = run([] if given.finished else todo, runner, given.parallel, show)
    except KeyboardInterrupt:
        print("interrupted: runs are saved, and the same command continues", file=sys.stderr)
        return 130
    print(f"\n{(given.runs / 'study.md').read_text()}")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def _there(runner: Runner, each: Sequence[Trial]) -> list[Trial]:
    """All variants at all seeds that have a folder."""
    found = []
    for trial in each:
        words = (place.name.removeprefix(f"{trial.stem}_") for place in runner.folder.glob(f"{trial.stem}_*/"))
        found += [trial.at(seed) for seed in sorted(int(word) for word in words if re.fullmatch("[0-9]+", word))]
    return found


def _left_out(runner: Runner, trial: Trial) -> bool:
    """Whether a trial that was not asked for is of other settings; says so."""
    try:
        runner.check(trial)
    except Refused as error:
        print(f"left out of the table: {trial.name}: {error}", file=sys.stderr)
        return True
    return False


def _in_order(finished: Mapping[str, Mapping[str, Any]], study: Study) -> list[Mapping[str, Any]]:
    order = [*study.variants]
    return sorted(finished.values(), key=lambda one: (order.index(one["variant"]), one["seed"]))


def _notes(study: Study, results: Sequence[Mapping[str, Any]], other_code: Sequence[str]) -> list[str]:
    """What a reader of the table should know."""
    notes = []
    if not any(one["variant"] == study.reference for one in results):
        notes.append(f"there is nothing of {study.reference!r}, with which others would be compared")
    if other_code:
        notes.append(
            f"the method's code is another since these ran: {', '.join(other_code)}; delete their folders to run them anew"
        )
    there = {name for one in results for name in one["metrics"]}
    if unknown := [name for name in study.metrics if name not in there]:
        notes.append(f"no run has METRICS {', '.join(unknown)}: there is {', '.join(sorted(there))}")
    return notes


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("study", help="a file with CONFIG and VARIANTS")
    parser.add_argument("--config", metavar="FILE", default="", help="in place of the study's CONFIG")
    parser.add_argument("--runs", type=Path, help="where workdirs, logs and results go; by default runs/study/NAME")
    parser.add_argument("--seeds", type=_natural, default=2, help="how many: 0, 1, ...")
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="run these, and the first")
    parser.add_argument("--equal", choices=("images", "compute"), default="images", help="what all variants get as much of")
    parser.add_argument("--parallel", type=_natural, default=1, help="runs at a time")
    parser.add_argument("--dry-run", action="store_true", help="name the runs and their settings, and run nothing")
    parser.add_argument("--finished", action="store_true", help="table and draw what is finished, and run nothing")
    given, left = parser.parse_known_args()
    if wrong := [word for word in left if not re.fullmatch(r"--config\.[\w.]+=.*", word)]:
        parser.error(f"{' '.join(wrong)} is not known; settings of all runs are --config.KEY=VALUE")
    given.overrides = dict(word.removeprefix("--config.").split("=", 1) for word in left)
    given.runs = (given.runs or Path("runs/study") / Path(given.study).stem).resolve()
    return given


def _natural(word: str) -> int:
    if not word.isdigit() or not int(word):
        raise argparse.ArgumentTypeError(f"{word!r} must be a whole number from 1 up")
    return int(word)


if __name__ == "__main__":
    sys.exit(main())
