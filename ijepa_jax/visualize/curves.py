"""Curves of a run: the loss and the signs of collapse over steps, and probe accuracies beside their baselines."""

import math

import numpy as np
from matplotlib.figure import Figure

from ijepa_jax.visualize.page import worded
from ijepa_jax.visualize.sheet import save

# (title, keys of metrics.jsonl, logarithmic, noisy): a panel each, for those that a run has logged
_PANELS = (
    ("loss", ("loss",), False, True),
    ("feature std", ("target_std", "prediction_std", "probe/feature_std"), False, True),
    ("RankMe", ("probe/rankme",), False, False),
    ("norms", ("gradient_norm", "update_norm"), True, True),
    ("learning rate", ("learning_rate",), False, False),
    ("EMA momentum", ("momentum",), False, False),
    ("images per second", ("images_per_s",), False, True),
)
_COLOURS = ("#1971c2", "#d9480f", "#2f9e44")
_BASELINES = {"random_init": ("random init", "#868e96", (0, (4, 2))), "pixels": ("pixels", "#e8a200", (0, (1, 1.2)))}
_PROTOCOLS = {"linear": "linear probe", "knn": "kNN"}


def draw_run(folder, metrics: list[dict], name: str, kind: str = "image") -> list[str]:
    """Draws what there is to draw of a run's metrics, curves.png and probes.png in a folder (an epath); returns their names.

    `name` is that of the method, `kind` what it was trained on: image, video or signal.
    """
    drawn = []
    if any(isinstance(line.get("loss"), float) for line in metrics):
        draw_curves(folder / "curves.png", metrics, kind)
        drawn.append("curves.png")
    if _probed(metrics)[0]:
        draw_probes(folder / "probes.png", metrics, name, kind)
        drawn.append("probes.png")
    return drawn


def draw_curves(path, metrics: list[dict], kind: str = "image") -> None:
    """Draws loss, feature spread, norms and schedules over steps.

    Args:
      path: the PNG file to write.
      metrics: the lines of metrics.jsonl; each has `step` and some of the keys above. Values that are not finite leave a gap.
      kind: of the examples: image, video or signal.

    Raises:
      ValueError: no line has any of these keys.
    """
    panels = []
    for title, keys, logarithmic, noisy in _PANELS:
        lines = {key: series(metrics, key) for key in keys}
        lines = {key: line for key, line in lines.items() if len(line[0])}
        if lines:
            panels.append((title, lines, logarithmic, noisy))
    if not panels:
        raise ValueError("no metrics to draw: no line has a loss or another known key with a finite value")
    columns = min(3 if len(panels) <= 6 else 4, len(panels))
    figure, axes = _figure(math.ceil(len(panels) / columns), columns)
    for axis, (title, lines, logarithmic, noisy) in zip(axes.flat, panels, strict=False):
        for colour, (key, (steps, values)) in zip(_COLOURS, lines.items(), strict=False):
            _draw_line(axis, steps, values, colour, key.removeprefix("probe/").replace("_", " "), noisy)
        axis.set_title(worded(title, kind), fontsize=10)
        if logarithmic and all(np.min(values) > 0 for _, values in lines.values()):
            axis.set_yscale("log")
        if len(lines) > 1:
            axis.legend(fontsize=7, frameon=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    save(figure, path)


def draw_probes(path, metrics: list[dict], name: str, kind: str = "image", along: str = "step") -> None:
    """Draws probe accuracy over steps: a column for each task, a row for each protocol, baselines as horizontal lines.

    Args:
      path: the PNG file to write.
      metrics: the lines of metrics.jsonl, with keys `probe/PROTOCOL/TASK` and `baseline/NAME/PROTOCOL/TASK`, in per cent;
        PROTOCOL is linear or knn, NAME random_init or pixels.
      name: what the method is called.
      kind: of the examples: image, video or signal.
      along: what `step` is of the lines, if it is something else, such as minutes.

    Raises:
      ValueError: no line has a probe.
    """
    protocols, tasks = _probed(metrics)
    if not tasks:
        raise ValueError("no probes to draw: no line has a key like probe/linear/TASK or probe/knn/TASK")
    shape = (len(protocols), len(tasks)) if len(tasks) > 1 else (1, len(protocols))
    figure, axes = _figure(*shape, along, below=0.3)
    axes = axes.reshape(len(protocols), len(tasks))  # those of a single task side by side
    for protocol, row in zip(protocols, axes, strict=True):
        for task, axis in zip(tasks, row, strict=True):
            _draw_task(axis, metrics, f"{protocol}/{task}", name, kind)
            axis.set_title(f"{task}, {_PROTOCOLS[protocol]}", fontsize=10, parse_math=False)
        row[0].set_ylabel("accuracy, %", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, fontsize=8, frameon=False)
    save(figure, path)


def _probed(metrics: list[dict]) -> tuple[list[str], list[str]]:
    """The protocols and the tasks of all probes."""
    names = dict.fromkeys(key for line in metrics for key in line if key.startswith("probe/") and key.count("/") == 2)
    found = [name.split("/")[1:] for name in names]
    protocols = [protocol for protocol in _PROTOCOLS if any(protocol == other for other, _ in found)]
    return protocols, list(dict.fromkeys(task for protocol, task in found if protocol in protocols))


def series(metrics: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps ([n]) and values (float [n]) of the lines that have `key` with a finite value, in order of step."""
    points = [(line["step"], line[key]) for line in metrics if isinstance(line.get(key), int | float)]
    points = sorted((step, value) for step, value in points if math.isfinite(value))
    return np.array([step for step, _ in points]), np.array([value for _, value in points], float)


def _figure(rows: int, columns: int, along: str = "step", below: float = 0.0):
    """A figure of axes, and so many inches below them. A layout that is measured would take a second and more."""
    width, height = 3.3 * columns + 0.2, 2.4 * rows + 0.3 + below
    edges = {"left": 0.65 / width, "right": 1 - 0.15 / width, "bottom": (0.45 + below) / height, "top": 1 - 0.3 / height}
    figure = Figure(figsize=(width, height), dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={**edges, "wspace": 0.22, "hspace": 0.4})
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.tick_params(which="both", labelsize=7)
        axis.set_xlabel(along, fontsize=8)
        axis.xaxis.get_major_locator().set_params(nbins=5)
    return figure, axes


def _draw_line(axis, steps, values, colour: str, label: str, noisy: bool) -> None:
    """Draws a series; a long and noisy one faintly, with its running mean over it."""
    window = len(values) // 40
    if window < 2 or not noisy:
        marker = "o" if len(values) < 30 else ""
        axis.plot(steps, values, color=colour, linewidth=1.4, marker=marker, markersize=2.5, label=label)
        return
    axis.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
    mean = np.convolve(values, np.full(window, 1 / window), "valid")
    axis.plot(steps[window // 2 :][: len(mean)], mean, color=colour, linewidth=1.4, label=label)


def _draw_task(axis, metrics: list[dict], probe: str, name: str, kind: str) -> None:
    for baseline, (label, colour, dashes) in _BASELINES.items():
        _, values = series(metrics, f"baseline/{baseline}/{probe}")
        if len(values):
            axis.axhline(values[-1], color=colour, linestyle=dashes, linewidth=1.4, label=worded(label, kind))
    steps, values = series(metrics, f"probe/{probe}")
    axis.plot(steps, values, color=_COLOURS[0], linewidth=1.6, marker="o", markersize=3, label=name)
