"""What probes see of each layer of trained encoders, beside one with random weights: mean over tasks, in per cent.

    python tests/layer_probes.py runs/quickstart runs/study/scenes/committed_0

Patches of every block, first to last, are averaged without the final norm; then comes what all protocols take, the averaged
output. Final weights, on the run's own data, by the logistic probe and kNN of reports. Prints rows of Markdown and, for each
run, a line of JSON.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from etils import epath

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ijepa_jax.evaluate import knn, logistic
from ijepa_jax.evaluate.bench import Bench, Subject
from ijepa_jax.evaluate.features import Features
from ijepa_jax.evaluate.suite import open_bench, random_init
from ijepa_jax.host.console import Display
from ijepa_jax.settings import evaluation


def main() -> None:
    """Probes every workdir that is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--train-images", type=int, default=10_000)
    parser.add_argument("--test-images", type=int, default=5000)
    given = parser.parse_args()
    for workdir in given.workdirs:
        found = of_run(workdir, given.train_images, given.test_images)
        for line in table(workdir, found):
            print(line)
        print(json.dumps({"workdir": workdir, **found}), flush=True)


def of_run(workdir: str, train_images: int, test_images: int) -> dict[str, dict[str, list[float]]]:
    """{trained, random_init}: {linear, knn}: accuracy of each block's patches, and last of the output."""
    settings = evaluation.default("knn")
    settings.data.train_images, settings.data.test_images = train_images, test_images
    settings.cache, settings.step = False, -1
    with tempfile.TemporaryDirectory() as folder:
        bench, params, digest, _ = open_bench(settings, workdir, epath.Path(folder), Display(quiet=True))
        subjects = Subject("trained", params, digest), random_init(bench, "random_init", 0)
        return {subject.name: _probed(bench, subject) for subject in subjects}


def _probed(bench: Bench, subject: Subject) -> dict[str, list[float]]:
    train, test = (bench.split(subject, ("layers", "last"), split) for split in ("train", "test"))
    found: dict[str, list[float]] = {"linear": [], "knn": []}
    for bank, queries in zip(*map(_by_layer, (train.features, test.features)), strict=True):
        basis = logistic.prepare(bank)
        scores: dict[str, list[float]] = {"linear": [], "knn": []}
        for task, classes in bench.tasks.items():
            labels = train.labels[task], test.labels[task]
            scores["linear"].append(logistic.probe(basis, labels[0], queries, labels[1], classes=classes))
            scores["knn"].append(knn.accuracy(bank, labels[0], queries, labels[1], classes=classes))
        for kind, values in scores.items():
            found[kind].append(float(np.mean(values)))
    return found


def _by_layer(features: Features) -> list[np.ndarray]:
    """Those of each block [N, D], first to last, and of the output."""
    return [*features["layers"].swapaxes(0, 1), features["last"]]


def table(workdir: str, found: dict[str, dict[str, list[float]]]) -> list[str]:
    """Rows of Markdown: blocks, first to last, and the output."""
    rows = [(f"{Path(workdir).name}, {name.replace('_', ' ')}", kind, of[kind]) for name, of in found.items() for kind in of]
    return [f"| {' | '.join([what, kind, *(f'{value:.1f}' for value in values)])} |" for what, kind, values in rows]


if __name__ == "__main__":
    main()
