"""Runs one thing against another: settings x seeds -> runs of the launcher -> one table, as Markdown and JSON, and a plot.

    python tests/study.py tests/studies/context_modes.py --seeds 3 --equal compute
    python tests/study.py tests/studies/fashion_mnist.py --only "random masks" --seeds 3 --parallel 2
    python tests/study.py FILE.py --config configs/tiny.py --config.optim.steps=10 --runs DIR

A study is a file with CONFIG (one of configs/), VARIANTS ({name: {setting: value}}) and, if it likes, SETTINGS (of all runs),
EVALUATE (files of configs/evaluate, run on every encoder) and METRICS (names in metrics.jsonl, of which the table shows means
over the last tenth of training, and the JSON those of every tenth). Methods of one's own are settings like others: `"method":
"mine.py:Mine"`; so is another configuration, `"config": FILE`. Others are compared with the first variant, seed by seed.

The first variant has the steps that its configuration says; the others get as many as show as many images (`--equal images`) or
as make its model FLOPs (`--equal compute`), with schedules, probes and checkpoints stretched to them. A variant that gives
`optim.steps` itself keeps these.

All variants of a seed run before the next seed, one run at a time on all cores, or `--parallel 2` on half of them each. Those
that are finished are only read and those that were stopped continue, so that the same command goes on where it ended. study.md,
study.json and study.png beside the runs are written anew after every run. Accuracies are the final weights', in per cent;
differences are paired by seed, with Student's 95% interval over seeds.
"""

import argparse
import dataclasses
import json
import math
import os
import re
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ml_collections
from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ijepa_jax import build, cli
from ijepa_jax.settings import plain
from ijepa_jax.visualize.summary import knn_probes, linear_probes, mean_accuracy

ROOT = Path(__file__).resolve().parent.parent
_STRETCHED = ("optim.warmup", "probe.every", "checkpoint.every")  # to the length of a run
_LINE_SECONDS = 60.0  # between lines on what runs
_PARTS = 10  # of a run, that means of metrics are taken over


class Refused(SystemExit):
    """A study that cannot be run as it is given."""

    def __init__(self, message: str):
        super().__init__(f"error: {message}")


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
        return f"{re.sub(r'[^A-Za-z0-9.]+', '_', self.variant)}_{self.seed}"

    @property
    def overrides(self) -> list[str]:
        """The settings as the launcher takes them."""
        return [_override(key, value) for key, value in self.settings.items()]


# which runs there are


def trials(study: Mapping[str, Any], given: argparse.Namespace) -> list[Trial]:
    """All runs of a study, seed by seed. Raises Refused for settings that the launcher would refuse."""
    made = []
    for seed in range(given.seeds):
        reference = None
        for variant, settings in study["VARIANTS"].items():
            trial = _trial(study, given, variant, settings, seed, reference)
            reference = reference or trial
            made += [trial] if not given.only or variant in given.only or trial is reference else []
    names = {trial.name: trial.variant for trial in made}
    if len(names) < len(made):
        raise Refused("two variants' names differ in signs alone: rename one")
    return made


def _trial(
    study: Mapping[str, Any],
    given: argparse.Namespace,
    variant: str,
    settings: Mapping[str, Any],
    seed: int,
    first: Trial | None,
) -> Trial:
    own = {**study["SETTINGS"], **settings}
    file = own.pop("config", study["CONFIG"])
    asked = _read(variant, file, own)
    asked = _configured(variant, file, own | _stretched(variant, file, asked.optim.steps, own))
    cost = _flops(asked)
    steps = asked.optim.steps
    if first and "optim.steps" not in settings:
        wanted = first.config.optim
        steps = round(wanted.steps * wanted.batch_size / asked.optim.batch_size)
        if given.equal == "compute":
            if cost is None or first.flops is None:
                raise Refused(
                    f"{variant if first.flops else first.variant}: its method does not tell its FLOPs: --equal images"
                )
            steps = round(first.flops / cost)
    own |= {"optim.steps": steps, "seed": seed, **_stretched(variant, file, steps, own)}
    return Trial(variant, seed, file, own, _configured(variant, file, own), None if cost is None else cost * steps)


def _stretched(variant: str, file: str, steps: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of schedules and intervals, where the settings do not, stretched to so many steps."""
    base = plain.flatten(_read(variant, file, {}))
    if not base["optim.steps"]:
        raise Refused(f"{variant}: {file} gives epochs: choose a configuration whose length is in steps")
    kinds = {key: type(base[key]) for key in _STRETCHED if key not in settings}
    return {key: kind(round(base[key] * steps / base["optim.steps"])) for key, kind in kinds.items()}


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
        return build.completed(cli.read(words).config)
    except (cli.UsageError, ValueError) as error:
        raise Refused(f"{variant}: {cli.plain(error)}") from error


def _flops(config: ml_collections.ConfigDict) -> int | None:
    """Model FLOPs of a step."""
    found = build.method(config).flops()
    return None if found is None else sum(found.values()) * config.optim.batch_size


def _override(key: str, value: Any) -> str:
    return f"--config.{key}={value}"


# running them


class Runner:
    """Runs trials in processes of their own, and leaves none behind."""

    def __init__(self, given: argparse.Namespace, evaluations: Sequence[str]):
        self._given, self._evaluations = given, evaluations
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._cores: SimpleQueue = SimpleQueue()
        for i in range(given.parallel):
            self._cores.put(cores[i :: given.parallel] or cores)
        self._running: dict[str, subprocess.Popen] = {}
        self.ending = False

    def workdir(self, trial: Trial) -> Path:
        return self._given.runs / trial.name

    def log(self, trial: Trial) -> Path:
        return self._given.runs / f"{trial.name}.log"

    def __call__(self, trial: Trial) -> dict[str, Any]:
        """What a trial came to, once it and its evaluations are done. Raises RuntimeError, with its last line, if it fails."""
        cores = self._cores.get()
        try:
            if self.finished(trial) is None:
                config = ["--config", trial.config_file, "--workdir", str(self.workdir(trial))]
                self._launch(trial, ["pretrain", *config, *trial.overrides], cores)
            for file in self._evaluations:
                if not self._evaluated(trial, file):
                    step = ["--config", file, "--checkpoint", str(self.workdir(trial)), "--config.step=-1"]
                    self._launch(trial, ["evaluate", *step, "--out", str(self._out(trial, file))], cores)
            return result(
                trial, self.workdir(trial), {Path(file).stem: self._evaluated(trial, file) for file in self._evaluations}
            )
        finally:
            self._cores.put(cores)

    def finished(self, trial: Trial) -> dict[str, Any] | None:
        """The report of a trial that was run before. Raises Refused where its workdir holds another run."""
        file = self.workdir(trial) / "report" / "report.json"
        if not file.is_file():
            return None
        report = json.loads(file.read_text())
        differences = plain.differences(dict(plain.flat(report["config"])), plain.flatten(trial.config))
        if differences:
            said = ", ".join(f"{key} {kept} and not {asked}" for key, (kept, asked) in differences.items())
            raise Refused(f"{self.workdir(trial)} holds another run, with {said}: give another folder by --runs")
        return report

    def _out(self, trial: Trial, file: str) -> Path:
        return self.workdir(trial) / "study" / Path(file).stem

    def _evaluated(self, trial: Trial, file: str) -> dict[str, Any] | None:
        found = sorted(self._out(trial, file).glob("*.json"))
        return json.loads(found[0].read_text()) if found else None

    def _launch(self, trial: Trial, words: Sequence[str], cores: Sequence[int]) -> None:
        if self.ending:
            raise RuntimeError("not started")
        command = [sys.executable, str(ROOT / "launch.py"), *words]
        with self.log(trial).open("a") as log:
            # XLA starts as many threads as it is given cores; Ctrl-C is for this process, which then ends the others
            pinned = ["taskset", "-c", ",".join(map(str, cores))] if len(cores) and shutil.which("taskset") else []
            process = subprocess.Popen([*pinned, *command], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            self._running[trial.name] = process
            code = process.wait()
            del self._running[trial.name]
        if code:
            raise RuntimeError(f"exit code {code}: {self.last_line(trial)}")

    def last_line(self, trial: Trial) -> str:
        """Of its log."""
        lines = self.log(trial).read_text(errors="replace").split("\n") if self.log(trial).is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "starting")

    def running(self, some: Sequence[Trial]) -> list[Trial]:
        return [trial for trial in some if trial.name in self._running]

    def end(self) -> None:
        """Lets what runs save itself, and end."""
        self.ending = True
        for process in list(self._running.values()):
            process.send_signal(signal.SIGTERM)


def run(planned: Sequence[Trial], runner: Runner, parallel: int, show: Callable[[list[dict[str, Any]]], None]) -> list[str]:
    """Runs all trials, `show`s what there is after each, and returns what failed, in lines."""
    found: dict[str, dict[str, Any]] = {}
    failed: list[str] = []
    started = time.monotonic()
    with ThreadPoolExecutor(parallel) as pool:
        waiting: dict[Future, Trial] = {pool.submit(runner, trial): trial for trial in planned}
        try:
            while waiting:
                done, _ = wait(waiting, timeout=_LINE_SECONDS, return_when=FIRST_COMPLETED)
                for trial in [] if done else runner.running(planned):
                    print(f"  {trial.name}: {runner.last_line(trial)}", flush=True)
                for future in done:
                    trial = waiting.pop(future)
                    try:
                        found[trial.name] = future.result()
                    except RuntimeError as error:
                        failed.append(f"{trial.name}: {error} (see {runner.log(trial)})")
                        print(f"failed: {failed[-1]}", flush=True)
                        continue
                    print(_line(found[trial.name], len(found) + len(failed), len(planned), started), flush=True)
                if done and found:
                    show([found[trial.name] for trial in planned if trial.name in found])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.end()
            raise
    return failed


def _line(found: Mapping[str, Any], number: int, of: int, started: float) -> str:
    scores = ", ".join(f"{name} {value:.1f}" for name, value in found["scores"].items())
    left = (time.monotonic() - started) / number * (of - number)
    what = f"[{number}/{of}] {found['variant']}, seed {found['seed']}: {scores}; {found['seconds']:.0f} s"
    return f"{what}; about {left / 60:.0f} min left"


# what they came to


def result(trial: Trial, workdir: Path, evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a finished run came to, as plain numbers.

    `scores` are of the trained encoder, and `random_init` and `pixels` of what it is compared with: accuracies in per cent
    (`linear` and `knn` are the report's, others those of evaluations), and RankMe.
    """
    report = json.loads((workdir / "report" / "report.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    columns = {"scores": "trained", "random_init": "random_init", "pixels": "pixels"}
    found: dict[str, dict[str, float]] = {name: {} for name in columns}
    kinds = {"linear": linear_probes(report), "knn": knn_probes(report)}
    for name, column in columns.items():
        means = {kind: mean_accuracy(probes, column) for kind, probes in kinds.items()}
        found[name] |= {kind: value for kind, value in means.items() if value is not None}
        if column in report.get("rankme", {}):
            found[name]["rankme"] = report["rankme"][column]
    for name, evaluation in evaluations.items():
        if "accuracy" in evaluation:
            found["scores"][name] = evaluation["accuracy"]
            for column, value in evaluation["baselines"].items():
                found.setdefault(column, {})[name] = value
    tasks = {f"{kind}/{task}" if task else kind: probe["trained"] for kind, of in kinds.items() for task, probe in of.items()}
    return {
        "variant": trial.variant, "seed": trial.seed, "settings": dict(trial.settings), **found, "tasks": tasks,
        "steps": report["steps"], "images": report["steps"] * trial.config.optim.batch_size, "flops": trial.flops,
        "seconds": report["seconds"], "params_digest": report["params_digest"],
        "metrics": _metrics(lines, report["steps"]), "probed": _probed(lines),
    }  # fmt: skip


def _metrics(lines: Sequence[Mapping[str, Any]], steps: int) -> dict[str, list[float | None]]:
    """What the loss told of each tenth of the run, in the mean."""
    parts: list[dict[str, list[float]]] = [{} for _ in range(_PARTS)]
    for line in (line for line in lines if "loss" in line):
        part = parts[min((line["step"] - 1) * _PARTS // steps, _PARTS - 1)]
        for key, value in line.items():
            if isinstance(value, int | float) and key != "step":
                part.setdefault(key, []).append(value)
    return {key: [statistics.fmean(part[key]) if key in part else None for part in parts] for key in parts[-1]}


def _probed(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The probes during training, on their smaller samples: step, and the mean over tasks of each kind."""
    found = []
    for line in (line for line in lines if any(key.startswith("probe/") for key in line)):
        kinds = {kind: [line[key] for key in line if key.startswith(f"probe/{kind}")] for kind in ("linear", "knn")}
        found.append({"step": line["step"], **{kind: statistics.fmean(values) for kind, values in kinds.items() if values}})
    return found


def summary(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each variant: of each score mean, spread over seeds, what the same network with random weights has, and the
    paired difference from the first variant."""
    variants = list(dict.fromkeys(one["variant"] for one in results))
    by_seed = {(one["variant"], one["seed"]): one for one in results}
    rows = []
    for variant in variants:
        own = [one for one in results if one["variant"] == variant]
        row = {"variant": variant, "seeds": len(own), "scores": {}}
        row |= {key: own[0][key] for key in ("steps", "images", "flops")}
        row["seconds"] = statistics.fmean(one["seconds"] for one in own)
        for name in own[0]["scores"]:
            pairs = [(one, by_seed[variants[0], one["seed"]]) for one in own if (variants[0], one["seed"]) in by_seed]
            apart = [one["scores"][name] - base["scores"][name] for one, base in pairs if name in base["scores"]]
            row["scores"][name] = spread([one["scores"][name] for one in own])
            if all(name in one["random_init"] for one in own):
                row["scores"][name]["random_init"] = statistics.fmean(one["random_init"][name] for one in own)
            if variant != variants[0] and apart:
                row["scores"][name]["difference"] = spread(apart)
        row["metrics"] = {
            name: statistics.fmean(one["metrics"][name][-1] for one in own)
            for name in own[0]["metrics"]
            if all(one["metrics"].get(name, [None])[-1] is not None for one in own)
        }
        rows.append(row)
    return rows


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation over seeds and Student's 95% interval of the mean: the last two of two values or more."""
    found: dict[str, Any] = {"mean": statistics.fmean(values), "values": list(values)}
    if len(values) > 1:
        found["std"] = statistics.stdev(values)
        half = float(student.ppf(0.975, len(values) - 1)) * found["std"] / math.sqrt(len(values))
        found["interval"] = [found["mean"] - half, found["mean"] + half]
    return found


def baselines(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What does not depend on the variant's network: of the first variant's runs, in the mean over seeds."""
    first = [one for one in results if one["variant"] == results[0]["variant"]]
    kinds = [kind for kind in ("supervised", "pixels") if first[0].get(kind)]
    return {kind: {name: statistics.fmean(one[kind][name] for one in first) for name in first[0][kind]} for kind in kinds}


def table(results: Sequence[Mapping[str, Any]], metrics: Sequence[str] = ()) -> list[str]:
    """The summary as rows of Markdown, at its end what does not depend on the network."""
    rows, scores = summary(results), list(dict.fromkeys(name for one in results for name in one["scores"]))
    head = ["", "seeds", "steps", "TFLOP", "s", *(cell for name in scores for cell in (name, "random init", "difference"))]
    head += metrics
    lines = [head, ["---"] * len(head)]
    for row in rows:
        flops = "" if row["flops"] is None else f"{row['flops'] / 1e12:.4g}"
        cells = [row["variant"], str(row["seeds"]), str(row["steps"]), flops, f"{row['seconds']:.0f}"]
        for name in scores:
            found = row["scores"].get(name)
            random_init = f"{found['random_init']:.1f}" if found and "random_init" in found else ""
            cells += [_cell(found), random_init, _difference(found)] if found else [""] * 3
        lines.append([*cells, *(f"{row['metrics'][name]:.3g}" if name in row["metrics"] else "" for name in metrics)])
    for kind, values in baselines(results).items():
        cells = [cell for name in scores for cell in (f"{values[name]:.1f}" if name in values else "", "", "")]
        lines.append([kind.replace("_", " "), "", "", "", "", *cells, *[""] * len(metrics)])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _cell(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:.1f}" + (f" ± {found['std']:.1f}" if "std" in found else "")


def _difference(found: Mapping[str, Any]) -> str:
    if "difference" not in found:
        return ""
    apart = found["difference"]
    interval = " ({:+.1f} .. {:+.1f})".format(*apart["interval"]) if "interval" in apart else ""
    return f"{apart['mean']:+.1f}{interval}"


def draw(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Probe against model FLOPs: final accuracies of every run, and those on the way, on their smaller samples."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in ("linear", "knn") if kind in results[0]["scores"]]
    by_compute = all(one["flops"] for one in results)
    figure = Figure(figsize=(13, 4.2 * len(kinds)), layout="constrained")
    variants = list(dict.fromkeys(one["variant"] for one in results))
    colours = {variant: f"C{i % 10}" for i, variant in enumerate(variants)}
    marks = {variant: "os^Dv*P"[i // 10 % 7] for i, variant in enumerate(variants)}
    for kind, (final, during) in zip(kinds, figure.subplots(len(kinds), 2, squeeze=False), strict=True):
        for one in results:
            look, whole = {"color": colours[one["variant"]]}, one["flops"] / 1e12 if by_compute else one["images"]
            named = (
                {"label": one["variant"]}
                if one is next(other for other in results if other["variant"] == one["variant"])
                else {}
            )
            final.plot(whole, one["scores"][kind], marks[one["variant"]], markersize=7, **look, **named)
            probed = [line for line in one["probed"] if kind in line]
            at = [line["step"] / one["steps"] * whole for line in probed]
            during.plot(at, [line[kind] for line in probed], marker=marks[one["variant"]], markersize=3, linewidth=1, **look)
        for name, style in (("random_init", "--"), ("pixels", ":")):
            if kind in results[0].get(name, {}):  # random init: of the first variant's network
                final.axhline(results[0][name][kind], color="gray", linestyle=style, label=name.replace("_", " "))
        for axis, title in ((final, "final weights"), (during, "on the way, smaller samples")):
            axis.set(title=f"{kind} probe, {title}", ylabel="accuracy, %")
            axis.set_xlabel("model TFLOPs" if by_compute else "images seen")
            axis.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)


# the command


def main() -> int:
    """Runs what is not there yet, and writes it all."""
    given = _arguments()
    study = _study(given.study)
    study["CONFIG"] = given.config or study["CONFIG"]
    study["SETTINGS"] = {**study.get("SETTINGS", {}), **given.overrides}
    if unknown := [*{*given.only} - study["VARIANTS"].keys()]:
        raise Refused(f"no variant {', '.join(unknown)} in {given.study}: there is {', '.join(study['VARIANTS'])}")
    planned = trials(study, given)
    given.runs.mkdir(parents=True, exist_ok=True)

    def show(results: list[dict[str, Any]]) -> None:
        write(given.runs, given.study, results, study.get("METRICS", ()))

    if given.dry_run:
        for trial in planned:
            flops = "" if trial.flops is None else f", {trial.flops / 1e12:.4g} TFLOP"
            print(f"{trial.name}: {trial.config.optim.steps} steps{flops}: {' '.join(trial.overrides)}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    runner = Runner(given, study.get("EVALUATE", ()))
    done = [trial for trial in planned if runner.finished(trial)]  # a folder of other runs is refused before time is spent
    planned = done if given.finished else planned
    try:
        failed = run(planned, runner, given.parallel, show)
    except KeyboardInterrupt:
        print("interrupted: runs are saved, and the same command continues", file=sys.stderr)
        return 130
    written = given.runs / "study.md"
    print(f"\n{written.read_text() if written.is_file() else 'nothing was finished'}")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def write(folder: Path, title: str, results: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """study.json, study.md and study.png."""
    rows = {"study": title, "rows": summary(results), "baselines": baselines(results), "runs": list(results)}
    (folder / "study.json").write_text(json.dumps(rows, indent=1) + "\n")
    (folder / "study.md").write_text("\n".join(table(results, metrics)) + "\n")
    if results[0]["scores"].keys() & {"linear", "knn"}:
        draw(folder / "study.png", results)


def _study(file: str) -> dict[str, Any]:
    if not Path(file).is_file():
        raise Refused(f"no study {file!r}: see tests/studies/")
    study = runpy.run_path(file)
    if missing := [name for name in ("CONFIG", "VARIANTS") if not study.get(name)]:
        raise Refused(f"{file} is no study: it has no {' and no '.join(missing)}")
    return study


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("study", help="a file with CONFIG and VARIANTS")
    parser.add_argument("--config", metavar="FILE", help="in place of the study's CONFIG")
    parser.add_argument("--runs", type=Path, help="where workdirs, logs and results go; by default runs/study/NAME")
    parser.add_argument("--seeds", type=_natural, default=2)
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="these, and the first")
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
