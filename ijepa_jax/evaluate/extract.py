"""Features of a data set as a file, for other tools."""

from typing import Any

import numpy as np
from etils import epath

from ijepa_jax.data.source import NoSplit
from ijepa_jax.devices import processes
from ijepa_jax.evaluate.bench import Bench, Subject, save_arrays
from ijepa_jax.evaluate.suite import open_bench
from ijepa_jax.host.console import Display
from ijepa_jax.model.encoder import KINDS
from ijepa_jax.settings.evaluation import default

SPLITS = ("train", "test", "all")


def extract(
    path: str, out: str, *, data: str = "", directory: str = "", kind: str = "last", split: str = "all", step: int = 0,
    display: Display,
) -> dict[str, Any]:  # fmt: skip
    """Writes the features that a workdir's encoder gives of a data set (by default the checkpoint's own) to an npz file.

    The file holds `features` float32 [N, ...] (see `Encoder.represent` for the kinds), `files` (names [N]), `split` [N], and,
    where there are labels, `label_TASK` int64 [N] and, where these have names, `classes_TASK` in their order. `step`: which
    checkpoint, see `checkpoint.restore_parts`. Every readable image comes once.

    Returns what was written, in numbers.

    Raises:
        ValueError: a kind or a split that there is not.
        DataError, CheckpointError: as `suite.evaluate`.
    """
    for given, known, name in ((kind, KINDS, "kind"), (split, SPLITS, "split")):
        if given not in known:
            raise ValueError(f"{name} {given!r} is not known: it must be one of {', '.join(known)}")
    settings = default("rank")
    settings.data.name, settings.data.directory, settings.cache = data, directory, False
    settings.step = step
    target = epath.Path(out)
    if not out.endswith(".npz"):
        raise ValueError(f"--out {out!r} must be a file that ends in .npz")
    bench, params, digest, step = open_bench(
        settings, path, target.parent, display, ("train", "test") if split == "all" else (split,)
    )
    parts = [_part(bench, Subject("checkpoint", params, digest), kind, name) for name in bench.splits]
    if not parts:
        raise NoSplit(f"{bench.loader.name} has no split {split!r}")
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if all(key in part for part in parts)}
    names = next(iter(bench.splits.values())).class_names
    arrays |= {f"classes_{task}": np.array(names[task]) for task in names if f"label_{task}" in arrays}
    if processes.is_first():
        save_arrays(target, arrays)
    shape = list(arrays["features"].shape)
    return {"out": out, "features": shape, "kind": kind, "checkpoint": str(path), "step": step, "encoder_digest": digest}


def _part(bench: Bench, subject: Subject, kind: str, split: str) -> dict[str, np.ndarray]:
    source = bench.splits[split]
    features, rows = bench.features(subject, (kind,), split)
    files = np.array([source.file(int(row)) for row in rows])
    labels = {f"label_{task}": values for task, values in source.labels_at(rows).items()}
    return {"features": features[kind], "files": files, "split": np.full(len(rows), split), **labels}
