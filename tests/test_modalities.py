"""Signals, videos and wide images go through every command as images do, on one device and on eight."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

import ijepa_jax
from ijepa_jax.evaluate import suite
from ijepa_jax.interop import convert
from ijepa_jax.pretrain import command
from ijepa_jax.settings import evaluation
from ijepa_jax.train import metrics
from tests import small
from tests.test_launch import ROOT, launch

SETTINGS = {
    "signal": "data.image_size=(64,) model.patch=4 data.channels=2 data.mean=(5,5) data.std=(2,2) masks.context_patches=6",
    "video": "data.image_size=(4,16,24) model.patch=(2,4,4) masks.context_patches=16",
}
SMALL = (
    "masks.target_scale=(0.15,0.3) optim.batch_size=16 optim.steps=4 optim.warmup=1 probe.train_images=64 "
    "probe.test_images=16 probe.during_train_images=32 probe.during_test_images=16 probe.lidar_images=8 probe.batch_size=16"
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_they_are_trained_evaluated_and_drawn_on_one_device_and_eight(tmp_path, kind):
    rng, losses = np.random.default_rng(0), {}
    examples = {
        "signal": {"signals": rng.normal(5, 2, (120, 80, 2)).astype(np.float32)},
        "video": {"videos": rng.integers(0, 256, (120, 6, 20, 30, 3), np.uint8)},
    }[kind]
    for devices in (1, 8):
        # of each kind one run has labels, is evaluated and drawn: what is compiled anew for each process takes seconds
        whole = (kind, devices) in (("signal", 1), ("video", 8))
        file, place = tmp_path / "examples.npz", tmp_path / f"on_{devices}"
        np.savez(file, **examples, **({"labels": np.arange(120) % 3} if whole else {}))
        given = f"data.name=arrays:{file} probe.every={2 if whole else 0} {SMALL} {SETTINGS[kind]}".split()
        given = [f"--config.{setting}" for setting in given]
        lines = [("pretrain", "--config", ROOT / "configs" / "tiny.py", *given, "--workdir", place)]
        if whole:
            lines += [
                ("evaluate", "--config", ROOT / "configs" / "evaluate" / "knn.py", "--checkpoint", place),
                ("visualize", "--checkpoint", place, "--images", 2, "--bank", 16),
            ]
        for line in lines:
            code, out, err = launch(*line, env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)})
            assert code == 0 and "warn" not in err.lower(), err
            if line[0] == "pretrain":
                assert f"{devices} cpu device" in out and f"{kind}s/s" in out and " images" not in out
        if whole:
            check_what_is_left(place, kind)
            check_the_encoder(place, kind, next(iter(examples.values())))
        losses[devices] = [line["loss"] for line in metrics.read(place) if "loss" in line]
    np.testing.assert_allclose(losses[8], losses[1], rtol=2e-6)
    assert len(losses[1]) == 4


def check_what_is_left(place: Path, kind: str) -> None:
    """The report, the table and the page are of this modality."""
    report = json.loads((place / "report" / "report.json").read_text())
    assert report["modality"] == kind and {"masks.png", "pca.png", "neighbours.png"} <= {*report["pictures"]}
    assert report["probes"].keys() == {"linear", "knn"}
    assert report["probes"]["knn"].keys() >= {"trained", "random_init", "pixels"}
    (table,) = (place / "evaluate").glob("knn-examples-*.json")
    result = json.loads(table.read_text())
    assert result["test_images"] + result["train_images"] == 120 and result["baselines"].keys() == {"random_init", "pixels"}
    page = (place / "visualize" / "index.md").read_text()
    assert ("film strips" in page) == (kind == "video") and ("as lines" in page) == (kind == "signal")
    assert {path.name for path in (place / "visualize").glob("*.png")} >= {
        "masks.png",
        "pca.png",
        "similarity.png",
        "neighbours.png",
        "prediction.png",
        "map.png",
    }


def check_the_encoder(place: Path, kind: str, examples: np.ndarray) -> None:
    """It is loaded, takes what it was trained on, and is not exported."""
    encoder = ijepa_jax.load(place)
    given = examples[:3, :4, :16, :24] if kind == "video" else (examples[:3, :64] - 5) / 2
    np.testing.assert_allclose(encoder.patches(given).mean(axis=1), encoder(given), atol=1e-6)
    assert encoder(given[0]).shape == (32,) and f"{kind}s of" in repr(encoder)
    with pytest.raises(ValueError, match=f"{kind}s of shape .* must be"):
        encoder(np.zeros((2, 7), np.uint8))
    with pytest.raises(ValueError, match=f"segmentation is of images, and the encoder is of {kind}s"):
        suite.evaluate(evaluation.default("segmentation"), str(place))
    for form in convert.FORMATS:
        with pytest.raises(ValueError, match=f"--format {form} holds encoders of images .*, this one is of {kind}s"):
            convert.export_weights(str(place), str(place / form), form)
        assert not (place / form).exists()


def test_a_model_of_three_axes_is_planned():
    code, out, err = launch(
        "plan", "--config", ROOT / "configs" / "tiny.py", "--topology=cpu:2",
        *(f"--config.{setting}" for setting in SETTINGS["video"].split()),
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result["chips"] == 2 and result["gflop_per_image"] > 0


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A run on images of 16x32 in patches of 4."""
    place = tmp_path_factory.mktemp("wide")
    command.pretrain(small.config(data__image_size=(16, 32), masks__context_patches=10), place)
    return place


@pytest.mark.parametrize("form", ["huggingface", "timm", "reference"])
def test_wide_images_are_exported_and_imported(wide, tmp_path, form):
    ours = ijepa_jax.load(wide)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 32, 3), np.uint8)
    convert.export_weights(str(wide), str(tmp_path / form), form)
    source = tmp_path / form / ("checkpoint.pth.tar" if form == "reference" else "")
    convert.import_weights(str(source), str(tmp_path / "back"))
    for path in (source, tmp_path / "back"):
        found = ijepa_jax.load(path)
        assert found.image_size == (16, 32)
        np.testing.assert_allclose(found.patches(images), ours.patches(images), atol=1e-6)
    assert jax.tree.map(np.shape, found.params) == jax.tree.map(np.shape, {**ours.params, "positions": np.zeros((32, 32))})


def test_patches_that_are_no_squares_are_not_exported(tmp_path):
    """The run shows images as they are, and is evaluated on others all the same."""
    place = tmp_path / "run"
    given = {"data__image_size": (16, 32), "model__patch": (4, 8), "masks__context_patches": 6, "data__cropping": "none"}
    command.pretrain(small.config(**given), place)
    settings = evaluation.default("knn")
    settings.data.image_size, settings.data.train_images, settings.data.test_images = (16, 48), 32, 16
    result = suite.evaluate(settings, str(place), out=str(tmp_path / "table"))
    assert result["image_size"] == [16, 48] and result["accuracy"] > 0
    settings.data.image_size = (16, 16, 16)
    with pytest.raises(
        ValueError, match=r"data.image_size \(16, 16, 16\) must have 2 values, as the encoder's has, \(16, 32\)"
    ):
        suite.evaluate(settings, str(place), out=str(tmp_path / "table"))
    with pytest.raises(ValueError, match="this one is of images of 16x32 in patches of 4x8: use it by ijepa_jax.load"):
        convert.export_weights(str(place), str(tmp_path / "out"), "timm")
    assert ijepa_jax.load(place).patches(np.zeros((1, 16, 32, 3), np.uint8)).shape == (1, 16, 32)
