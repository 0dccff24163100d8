"""The launcher's `evaluate` and `features`, as their users run them."""

import json

import numpy as np
import pytest

from ijepa_jax.pretrain import command
from tests import small
from tests.test_launch import launch

KNN = ("evaluate", "--config", "configs/evaluate/knn.py")
FEW = ("--config.data.train_images=64", "--config.data.test_images=32")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    command.pretrain(small.config(), place)
    return place


def test_evaluate_prints_a_table_and_its_result_as_the_last_line(workdir):
    code, out, err = launch(*KNN, "--checkpoint", workdir, *FEW)
    assert code == 0 and not err, err
    result = json.loads(out.splitlines()[-1])
    keys = {"task", "protocol", "accuracy", "baselines", "interval", "seconds", "tasks", "encoder_digest", "command"}
    assert keys <= result.keys()
    assert "random init" in out and len(list((workdir / "evaluate").glob("knn-scenes-*.md"))) == 1
    assert list((workdir / "features").glob("*.npz"))


@pytest.mark.parametrize("split", ["all", "test"])
def test_features_writes_every_image_once(workdir, tmp_path, split):
    code, out, err = launch("features", "--checkpoint", workdir, "--out", tmp_path / "f.npz", "--split", split, "--kind=last4")
    assert code == 0 and not err, err
    count = 96 if split == "all" else 32
    assert json.loads(out.splitlines()[-1])["features"] == [count, 64]
    with np.load(tmp_path / "f.npz") as found:
        assert found["features"].shape == (count, 64) and len({*found["files"]}) == count
        assert found["label_count"].shape == (count,) and (found["split"] == "test").sum() == 32


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (KNN, "the following arguments are required: --checkpoint"),
        (
            ("evaluate", "--checkpoint", "DIR"),
            "required: --config. usage: python launch.py evaluate [--config configs/evaluate/",
        ),
        (("evaluate", "--config", "configs/tiny.py", "--checkpoint", "DIR"), "is not the configuration of an evaluation"),
        ((*KNN, "--checkpoint", "nowhere"), "nowhere is not a workdir"),
        ((*KNN, "--checkpoint", "WORKDIR", "--config.knn.neighbours=3"), "unknown setting --config.knn.neighbours"),
        ((*KNN, "--checkpoint", "WORKDIR", "--config.data.name=folder:/nowhere"), "folder:/nowhere"),
        (("features", "--checkpoint", "WORKDIR"), "the following arguments are required: --out"),
        (("features", "--checkpoint", "WORKDIR", "--out", "x.npz", "--kind=first"), "kind 'first' is not known"),
        (("pretrain", "--config", "configs/evaluate/knn.py"), "configs/evaluate/knn.py is not the configuration of a run"),
    ],
)
def test_what_is_wrong_is_one_line(workdir, arguments, line):
    arguments = [str(workdir) if argument == "WORKDIR" else argument for argument in arguments]
    code, _, err = launch(*arguments)
    assert code == 1 and err.count("\n") == 1 and err.startswith("error: ") and line in err, err
