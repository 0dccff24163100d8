"""What came out of a run, in a few sentences, and what should make one doubt it."""

from ijepa_jax.visualize.page import as_text, kind_of, worded

_FAR_BELOW = 0.5  # of the random encoder's, past which a sign of collapse is worth a warning
_NEAR_ONE = 1.5  # of an effective rank
# Metrics of the last step, each near zero only on collapse; METHOD: targets are layer-normalised, so that 1 is much.
_LEAST = {
    "target_std": (0.05, "target tokens hardly differ from each other"),
    "prediction_std": (0.02, "all predictions are nearly the same"),
    "target_image_std": (0.01, "whole images hardly differ from each other"),
}
_SPREADS = {"rankme": "RankMe", "lidar": "LiDAR", "feature_std": "The spread of features"}


def in_words(report: dict) -> str:
    """A paragraph of Markdown: accuracy beside the baselines', steps, time and speed; what `report` lacks is left out."""
    return " ".join(part for part in (_accuracy(report), _effort(report)) if part)


def warnings(report: dict) -> list[str]:
    """Sentences of Markdown on what looks wrong: an encoder no better than its baselines, or signs of collapse."""
    return [*_not_better(report), *(report.get("warnings") or ()), *_collapsed(report)]


def linear_probes(report: dict) -> dict[str, dict]:
    """The report's linear probes by task; those of a single task stand beside its kNN, without its name."""
    probes = report.get("probes") or {}
    return {"": probes["linear"]} if {"linear", "knn"} == probes.keys() else probes


def knn_probes(report: dict) -> dict[str, dict]:
    """Likewise, its nearest-neighbour classifiers."""
    probes = report.get("probes") or {}
    return {"": probes["knn"]} if {"linear", "knn"} == probes.keys() else report.get("knn") or {}


def mean_accuracy(probes: dict[str, dict], column: str) -> float | None:
    """Mean accuracy over tasks of `trained`, `random_init` or `pixels`; None where one is missing."""
    values = [probe.get(column) for probe in probes.values()]
    return sum(values) / len(values) if values and None not in values else None


def _accuracy(report: dict) -> str:
    """All kinds of probes, each beside its baselines: where one gained, the others may not have."""
    kinds = {"linear probes": linear_probes(report), "nearest neighbours (kNN)": knn_probes(report)}
    reached = [found for name, probes in kinds.items() if (found := _reached(name, probes, kind_of(report)))]
    if not reached:
        return "There are no labels to probe the features with." if "probes" in report and not report["probes"] else ""
    tasks = len(linear_probes(report))
    mean = f" (means of {tasks} tasks)" if tasks > 1 else ""
    held_out = worded("Of held-out images", kind_of(report))
    return f"{held_out}, by the pretrained encoder's frozen features{mean}, {'; '.join(reached)}."


def _reached(name: str, probes: dict[str, dict], kind: str) -> str:
    ours, random_init, pixels = (mean_accuracy(probes, column) for column in ("trained", "random_init", "pixels"))
    if ours is None:
        return ""
    others = (("by random weights", random_init), (worded("by raw pixels", kind), pixels))
    beside = ", ".join(f"{value:.1f} % {of}" for of, value in others if value is not None)
    return f"{name} classify **{ours:.1f} %** correctly" + f" ({beside})" * bool(beside)


def _effort(report: dict) -> str:
    if report.get("steps") is None:
        return ""
    begun, text = report.get("resumed_from") or 0, f"The run made {report['steps']:,} steps"
    if report.get("images_per_s"):
        text += f" at {report['images_per_s']:,.0f} {worded('images', kind_of(report))} per second"
    if report.get("seconds"):
        text += f"; with probes and pictures it took {_duration(report['seconds'])}"
        text += f" from step {begun:,} on, where it was last continued" if begun else ""
    return f"{text}."


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"


def _not_better(report: dict):
    raw = worded("raw pixels", kind_of(report))
    for kind, probes in (("linear probes", linear_probes(report)), ("kNN", knn_probes(report))):
        ours = mean_accuracy(probes, "trained")
        for column, name in (("random_init", "an encoder with random weights"), ("pixels", raw)):
            theirs = mean_accuracy(probes, column)
            if ours is not None and theirs is not None and ours <= theirs:
                yield f"By {kind} the pretrained encoder is no better than {name}: {ours:.1f} % against {theirs:.1f} %."
        pairs = {task: (probe.get("trained"), probe.get("random_init")) for task, probe in probes.items()}
        worse = [task for task, pair in pairs.items() if None not in pair and pair[0] <= pair[1]]
        if worse and len(worse) < len(pairs):
            shown = ", ".join(f"{as_text(task)} ({pairs[task][0]:.1f} % against {pairs[task][1]:.1f} %)" for task in worse)
            yield f"By {kind} it is no better than the random encoder at {shown}."


def _collapsed(report: dict):
    for key, name in _SPREADS.items():
        ours, random_init = ((report.get(key) or {}).get(column) for column in ("trained", "random_init"))
        if ours is None:
            continue
        if key == "rankme" and ours < _NEAR_ONE:
            yield f"RankMe, the effective rank of the features, is {ours:.2f}: nearly all of them lie in one direction."
        elif random_init is not None and ours < _FAR_BELOW * random_init:
            yield f"{name} is {ours:.3g}, far below the random encoder's {random_init:.3g}: the features may have collapsed."
    for key, (least, meaning) in _LEAST.items():
        value = (report.get("last_metrics") or {}).get(key)
        if value is not None and value < least:
            yield f"At the last step `{key}` is {value:.3g}: {worded(meaning, kind_of(report))}, as on collapse."
