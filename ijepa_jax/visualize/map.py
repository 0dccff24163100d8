"""Maps of a data set: pooled features in two dimensions, coloured by label."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import CSS4_COLORS
from matplotlib.figure import Figure

from ijepa_jax.evaluate.knn import checked_features
from ijepa_jax.visualize.features import principal_components
from ijepa_jax.visualize.sheet import save

PANELS = 4  # label tasks that are drawn
_COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#111111",
    "#f7b6d2",
)  # fmt: skip
FEWEST = 10  # images that neighbourhoods are drawn of
_COMPONENTS = 50  # that neighbourhoods are found in
_SIDE = 2.8  # inches


def project(features, seed: int = 0) -> dict[str, np.ndarray]:
    """Features (float [N, D]) in two dimensions, float64 [N, 2], by method: PCA, and UMAP or t-SNE where installed.

    These two keep neighbours together, and tell little of distances; they take the first 50 principal components.
    """
    scores = principal_components(checked_features(features, "pooled"), _COMPONENTS)
    found = {"PCA": scores[:, :2]}
    if len(scores) >= FEWEST and scores.std() > 0:
        for name, method in (("UMAP", _umap), ("t-SNE", _tsne)):
            if made := method(len(scores), seed):
                found[name] = np.asarray(made.fit_transform(scores / scores[:, 0].std()), np.float64)
                break
    return found


def draw_map(
    path, maps: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]]
) -> None:
    """Draws a row for each task (the first four), and a column for each map.

    Args:
      path: the PNG file to write.
      maps: places float [N, 2] of the images by method, from `project`.
      labels: int [N] by task; without any the points are of one colour. Up to twelve classes are told apart in a legend,
        more are coloured by their number.
      names: of the classes, by task, where they have any.
    """
    tasks = [*labels][:PANELS] or [""]
    figure = Figure(figsize=(_SIDE * len(maps) + 1.4, _SIDE * len(tasks) + 0.2), layout="constrained", dpi=150)
    axes = figure.subplots(len(tasks), len(maps), squeeze=False)
    for axis, method in zip(axes[0], maps, strict=True):
        axis.set_title(method, fontsize=9, color="#333333")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("#d0d4d8")
    for task, row in zip(tasks, axes, strict=True):
        _draw_task(figure, row, maps, task, labels.get(task), names.get(task))
    save(figure, path)


def _draw_task(
    figure: Figure, row: np.ndarray, maps: Mapping[str, np.ndarray], task: str, labels, names: Sequence[str] | None
) -> None:
    """Draws the maps in a row of axes, coloured by a task's labels, int [N]; in one colour where there are none."""
    order = np.random.default_rng(0).permutation(len(next(iter(maps.values()))))  # no class covers the others
    classes = np.unique(labels) if labels is not None else np.zeros(0, int)
    few = 0 < len(classes) <= len(_COLOURS)
    shown = [_name(names, value) for value in classes] if few else []
    palette = shown if {*shown} <= {*CSS4_COLORS} else _COLOURS  # classes that are colours are drawn in them
    if labels is None:
        colours = _COLOURS[0]
    else:
        colours = [palette[place] for place in np.searchsorted(classes, labels[order])] if few else labels[order]
    for axis, places in zip(row, maps.values(), strict=True):
        points = axis.scatter(*places[order].T, c=colours, s=5, linewidths=0, alpha=0.8)
    if few:
        _legend(row[-1], task, shown, palette)
    elif labels is not None:
        figure.colorbar(points, ax=row[-1], label=f"{task} (number of the class)")


def _legend(axis, task: str, classes: Sequence[str], palette: Sequence[str]) -> None:
    """Says right of an axis which colour a class has."""
    dots = [axis.scatter([], [], color=colour, s=14) for colour in palette[: len(classes)]]
    options: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False, "handletextpad": 0.1}
    legend = axis.legend(dots, classes, title=task, fontsize=7, title_fontsize=8, **options)
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)


def _name(names: Sequence[str] | None, value: int) -> str:
    """What a legend calls a class; matplotlib leaves out what begins with an underscore."""
    name = str(value) if names is None else names[value]
    return f"{name[:20]}…" if len(name) > 21 else f" {name}" if name.startswith("_") else name


def _umap(count: int, seed: int):
    try:
        import umap
    except ImportError:
        return None
    return umap.UMAP(n_neighbors=min(15, count - 1), random_state=seed, n_jobs=1)


def _tsne(count: int, seed: int):
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        return None
    return TSNE(perplexity=min(30.0, (count - 1) / 3), init="pca", random_state=seed)
