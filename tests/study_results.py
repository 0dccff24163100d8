"""What a study's runs came to (see study.py): plain numbers of each, means and paired differences of all, a table, a plot."""

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from scipy.stats import rankdata
from scipy.stats import t as student

from ijepa_jax.host.files import write_whole
from ijepa_jax.train.metrics import read
from ijepa_jax.visualize.summary import knn_probes, linear_probes, mean_accuracy

_DRAWN = ("linear", "knn")
_FEWEST, _RESAMPLINGS = 8, 5000  # runs of a method that are ranked, and for the interval of their correlation
_PARTS = 10  # of a run, that means of metrics are taken over

Run = Mapping[str, Any]


# of one run


def of_run(report: Mapping[str, Any], workdir: Path, evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a finished run came to, as plain numbers.

    `scores` are of the trained encoder, and `random_init`, `pixels` and others of what it is compared with: accuracies in per
    cent (`linear` and `knn` are the report's, others those of evaluations), and RankMe.
    """
    lines = read(workdir)
    columns = {"scores": "trained", "random_init": "random_init", "pixels": "pixels"}
    found: dict[str, dict[str, float]] = {name: {} for name in columns}
    kinds = {"linear": linear_probes(report), "knn": knn_probes(report)}
    for name, column in columns.items():
        means = {kind: mean_accuracy(probes, column) for kind, probes in kinds.items()}
        found[name] |= {kind: value for kind, value in means.items() if value is not None}
        if column in report.get("rankme", {}):
            found[name]["rankme"] = report["rankme"][column]
    for stem, evaluation in evaluations.items():
        name = f"{stem}, protocol" if stem in found["scores"] else stem
        found["scores"][name] = evaluation["accuracy"]
        for column, value in evaluation["baselines"].items():
            found.setdefault(column, {})[name] = value
    tasks = {f"{kind}/{task}" if task else kind: probe["trained"] for kind, of in kinds.items() for task, probe in of.items()}
    return {
        **found, "tasks": tasks, "steps": report["steps"], "params_digest": report["params_digest"],
        "seconds": None if report.get("resumed_from") else report["seconds"],  # those are of its last process alone
        "metrics": _metrics(lines, report["steps"]), "probed": _probed(lines),
    }  # fmt: skip


def _metrics(lines: Sequence[Mapping[str, Any]], steps: int) -> dict[str, list[float | None]]:
    """What the loss told of each tenth of the run, in the mean; of each step where there are fewer than ten."""
    count = min(_PARTS, steps)
    parts: list[dict[str, list[float]]] = [{} for _ in range(count)]
    for line in (line for line in lines if "loss" in line):
        part = parts[min((line["step"] - 1) * count // steps, count - 1)]
        for key, value in line.items():
            if isinstance(value, int | float) and math.isfinite(value) and key != "step":
                part.setdefault(key, []).append(value)
    names = dict.fromkeys(key for part in parts for key in part)
    return {key: [statistics.fmean(part[key]) if key in part else None for part in parts] for key in names}


def _probed(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The probes during training, on their smaller samples: step, and the mean over tasks of each kind."""
    found = []
    for line in (line for line in lines if any(key.startswith("probe/") for key in line)):
        kinds = {kind: [line[key] for key in line if key.startswith(f"probe/{kind}")] for kind in _DRAWN}
        found.append({"step": line["step"], **{kind: statistics.fmean(values) for kind, values in kinds.items() if values}})
    return found


# of all


def summary(results: Sequence[Run], reference: str) -> list[dict[str, Any]]:
    """A row for each variant: of each score mean, spread over seeds, what the same network with random weights has, and the
    paired difference from the variant that is the reference."""
    base = {one["seed"]: one for one in results if one["variant"] == reference}
    rows = []
    for variant in dict.fromkeys(one["variant"] for one in results):
        own = [one for one in results if one["variant"] == variant]
        row = {
            "variant": variant,
            "seeds": len(own),
            "scores": {},
            **{key: own[0][key] for key in ("steps", "images", "flops")},
        }
        row["seconds"] = _mean([one["seconds"] for one in own if one["seconds"] is not None])
        for name in dict.fromkeys(name for one in own for name in one["scores"]):
            scored = [one for one in own if name in one["scores"]]
            pairs = [(one, base[one["seed"]]) for one in scored if name in base.get(one["seed"], {"scores": ()})["scores"]]
            row["scores"][name] = spread([one["scores"][name] for one in scored])
            if all(name in one["random_init"] for one in scored):
                row["scores"][name]["random_init"] = statistics.fmean(one["random_init"][name] for one in scored)
            if variant != reference and pairs:
                apart = [one["scores"][name] - other["scores"][name] for one, other in pairs]
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


def baselines(results: Sequence[Run], reference: str) -> dict[str, dict[str, float]]:
    """What does not depend on the network, in the mean over seeds: of the reference's runs, or of the first there are."""
    whose = reference if any(one["variant"] == reference for one in results) else results[0]["variant"]
    own, found = [one for one in results if one["variant"] == whose], {}
    for kind in ("supervised", "pixels"):
        names = dict.fromkeys(name for one in own for name in one.get(kind, ()))
        found[kind] = {name: _mean([one[kind][name] for one in own if name in one.get(kind, ())]) for name in names}
    return {kind: values for kind, values in found.items() if values}


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def told(results: Sequence[Run], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """How the runs of each method that has enough of them are ranked by what can be had without labels, and by probes.

    A row for each method and measure, these being the metrics' last values and RankMe: by kind of probe values and scores of
    all runs that have both, and Spearman's rank correlation with its 95% interval, by 5,000 resamplings of runs.
    """
    rows = []
    for method in dict.fromkeys(one["method"] for one in results):
        own = [one for one in results if one["method"] == method]
        measured = {name: [one["metrics"].get(name, [None])[-1] for one in own] for name in metrics}
        measured["rankme"] = [one["scores"].get("rankme") for one in own]
        for measure, values in measured.items():
            row: dict[str, Any] = {"method": method, "measure": measure}
            for kind in _DRAWN:
                pairs = zip(values, (one["scores"].get(kind) for one in own), strict=True)
                pairs = np.array([pair for pair in pairs if None not in pair]).reshape(-1, 2).T  # of those that did not diverge
                if min(len({*of}) for of in pairs) >= _FEWEST // 2 and pairs.shape[1] >= _FEWEST:
                    row[kind] = _ranked(pairs)
            if row.keys() & _DRAWN:
                rows.append(row)
    return rows


def _ranked(pairs: np.ndarray) -> dict[str, Any]:
    count = pairs.shape[1]
    drawn = np.random.default_rng(0).integers(0, count, (_RESAMPLINGS, count))
    ranks = rankdata(pairs[:, np.concatenate([np.arange(count)[None], drawn])], axis=-1)  # those of all runs first
    ranks -= ranks.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # of one value alone
        found = ranks.prod(0).sum(-1) / np.sqrt(np.square(ranks).sum(-1).prod(0))
    interval = np.nanpercentile(found[1:], [2.5, 97.5])
    values, scores = pairs.tolist()
    return {"values": values, "scores": scores, "correlation": float(found[0]), "interval": [float(end) for end in interval]}


# to look at


def write(
    folder: Path, title: str, reference: str, results: Sequence[Run], metrics: Sequence[str], notes: Sequence[str]
) -> None:
    """study.json, study.md and study.png."""
    rows, fixed = summary(results, reference), baselines(results, reference)
    kept = {
        "study": title,
        "reference": reference,
        "notes": list(notes),
        "rows": rows,
        "baselines": fixed,
        "runs": list(results),
    }
    lines = [*table(rows, fixed, metrics), *(f"\nNote: {note}." for note in notes)]
    if "loss" in metrics and (ranks := told(results, metrics)):
        kept["told"] = ranks
        lines += ["", *told_table(ranks)]
    write_whole(epath.Path(folder / "study.json"), json.dumps(kept, indent=1, allow_nan=False) + "\n")
    write_whole(epath.Path(folder / "study.md"), "\n".join(lines) + "\n")
    if any(one["scores"].keys() & _DRAWN for one in results):
        _save(figure_of(results), folder / "study.png")
    if "told" in kept:
        _save(told_figure(ranks), folder / "told.png")


def _save(figure: Any, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format="png")
    write_whole(epath.Path(path), picture.getvalue())


def table(rows: Sequence[Mapping[str, Any]], fixed: Mapping[str, Mapping[str, float]], metrics: Sequence[str]) -> list[str]:
    """A summary as rows of Markdown, at its end what does not depend on the network."""
    scores = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    metrics = [name for name in metrics if any(name in row["metrics"] for row in rows)]
    head = ["", "seeds", "steps", "TFLOP", "s", *(cell for name in scores for cell in (name, "random init", "difference"))]
    head += metrics
    lines = [head, ["---"] * len(head)]
    for row in rows:
        flops, seconds = ("" if row[key] is None else f"{row[key] / unit:{form}}" for key, unit, form in _UNITS)
        cells = [row["variant"], str(row["seeds"]), str(row["steps"]), flops, seconds]
        for name in scores:
            found = row["scores"].get(name)
            random_init = f"{found['random_init']:.1f}" if found and "random_init" in found else ""
            cells += [_cell(found), random_init, _difference(found)] if found else [""] * 3
        lines.append([*cells, *(f"{row['metrics'][name]:.3g}" if name in row["metrics"] else "" for name in metrics)])
    for kind, values in fixed.items():
        cells = [cell for name in scores for cell in (f"{values[name]:.1f}" if name in values else "", "", "")]
        lines.append([kind, "", "", "", "", *cells, *[""] * len(metrics)])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def told_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What `told` found, as rows of Markdown."""
    lines = [["method", "what is told without labels", "probe", "runs", "rank correlation"], ["---"] * 5]
    for row in rows:
        for kind, found in ((kind, row[kind]) for kind in _DRAWN if kind in row):
            correlation = "{:+.2f} ({:+.2f} .. {:+.2f})".format(found["correlation"], *found["interval"])
            lines.append([row["method"], row["measure"], kind, str(len(found["values"])), correlation])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def told_figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Every run of each method as a dot: a probe of it against what `told` compares; a line of plots for each method."""
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(row["method"] for row in rows))
    most = max(sum(row["method"] == method for row in rows) for method in methods)
    figure = Figure(figsize=(3.6 * most, 3.4 * len(methods)), layout="constrained")
    for method, axes in zip(methods, figure.subplots(len(methods), most, squeeze=False), strict=True):
        own = [row for row in rows if row["method"] == method]
        for axis in axes[len(own) :]:
            axis.set_axis_off()
        for row, axis in zip(own, axes, strict=False):
            kind = next(kind for kind in _DRAWN if kind in row)
            axis.plot(row[kind]["values"], row[kind]["scores"], "o", color="C0", markersize=5)
            axis.set_title("{}: {:+.2f} ({:+.2f} .. {:+.2f})".format(method, row[kind]["correlation"], *row[kind]["interval"]))
            axis.set(xlabel=row["measure"], ylabel=f"{kind} probe, %")
            axis.grid(alpha=0.3)
    return figure


_UNITS = (("flops", 1e12, ".4g"), ("seconds", 1, ".0f"))


def _cell(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:.1f}" + (f" ± {found['std']:.1f}" if "std" in found else "")


def _difference(found: Mapping[str, Any]) -> str:
    if "difference" not in found:
        return ""
    apart = found["difference"]
    interval = " ({:+.1f} .. {:+.1f})".format(*apart["interval"]) if "interval" in apart else ""
    return f"{apart['mean']:+.1f}{interval}"


def figure_of(results: Sequence[Run]) -> Any:
    """Probe against model FLOPs: final accuracies of every run, and those on the way, on their smaller samples.

    A row for each kind of probe; against images seen where a method does not tell its FLOPs.
    """
    from matplotlib.figure import Figure

    kinds = [kind for kind in _DRAWN if any(kind in one["scores"] for one in results)]
    by_compute = all(one["flops"] for one in results)
    figure = Figure(figsize=(13, 4.2 * len(kinds)), layout="constrained")
    variants = list(dict.fromkeys(one["variant"] for one in results))
    colours = {variant: f"C{i % 10}" for i, variant in enumerate(variants)}
    marks = {variant: "os^Dv*P"[i // 10 % 7] for i, variant in enumerate(variants)}
    for kind, (final, during) in zip(kinds, figure.subplots(len(kinds), 2, squeeze=False), strict=True):
        named: set[str] = set()
        for one in results:
            variant, whole = one["variant"], one["flops"] / 1e12 if by_compute else one["images"]
            look = {"color": colours[variant]}
            label = {} if variant in named else {"label": variant}
            named.add(variant)
            if kind in one["scores"]:
                final.plot(whole, one["scores"][kind], marks[variant], markersize=7, **look, **label)
            probed = [line for line in one["probed"] if kind in line]
            at = [line["step"] / one["steps"] * whole for line in probed]
            during.plot(at, [line[kind] for line in probed], marker=marks[variant], markersize=3, linewidth=1, **look)
        for name, style in (("random_init", "--"), ("pixels", ":")):
            if kind in results[0].get(name, {}):  # random init: of the first variant's network
                final.axhline(results[0][name][kind], color="gray", linestyle=style, label=name.replace("_", " "))
        for axis, title in ((final, "final weights"), (during, "on the way, smaller samples")):
            axis.set(title=f"{kind} probe, {title}", ylabel="accuracy, %")
            axis.set_xlabel("model TFLOPs" if by_compute else "images seen")
            axis.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    return figure
