"""Evaluations: every protocol on a small checkpoint, beside its baselines; what is counted, kept, and refused."""

import importlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from configs.evaluate import attentive, dense, finetune, knn, linear, lowshot, rank
from ijepa_jax.data.source import DataError
from ijepa_jax.evaluate import bench as bench_lib
from ijepa_jax.evaluate import suite, table
from ijepa_jax.host.console import Display
from ijepa_jax.pretrain import command
from ijepa_jax.settings import evaluation as settings_lib
from ijepa_jax.train.checkpoint import CheckpointError
from tests import layer_probes, small

CONFIGS = {module.__name__.rsplit(".", 1)[1]: module for module in (attentive, dense, finetune, knn, linear, lowshot, rank)}
CONFIG_FOLDER = pathlib.Path(knn.__file__).parent
QUIET = Display(quiet=True)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of twelve steps."""
    place = tmp_path_factory.mktemp("run")
    command.pretrain(small.config(checkpoint__keep=5), place)
    return place


def settings(name, **changes):
    """An evaluation of the committed configuration on few images; `changes` are dotted keys with __ for the dot."""
    config = CONFIGS[name].get_config()
    few = {"data.train_images": 64, "data.test_images": 32, "data.batch_size": 32, "linear.epochs": 2}
    few |= {
        "attentive.epochs": 1,
        "attentive.batch_size": 32,
        "finetune.epochs": 1,
        "finetune.batch_size": 32,
        "rank.images": 32,
    }
    with config.unlocked():
        config.update_from_flattened_dict(few | {key.replace("__", "."): value for key, value in changes.items()})
    return config


def evaluate(workdir, name, out="", **changes):
    return suite.evaluate(settings(name, **changes), str(workdir), out=str(out), command="python launch.py ...", display=QUIET)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "rank"])
def test_every_protocol_gives_an_accuracy_beside_its_baselines(workdir, tmp_path, name):
    result = evaluate(workdir, name, out=tmp_path)
    low, high = result["interval"]
    assert 0 <= low <= result["accuracy"] <= high <= 100 and result["seconds"] > 0 and result["bad_images"] == 0
    expected = {"supervised"} if name == "finetune" else {"random_init", "pixels"}
    assert result["baselines"].keys() == result["better_by"].keys() == expected
    if name != "dense":
        assert result["tasks"].keys() == {"count", "distance", "shape", "colour"}
        assert result["accuracy"] == pytest.approx(np.mean([task["accuracy"] for task in result["tasks"].values()]), abs=0.01)
    (saved,) = tmp_path.glob("*.json")
    assert json.loads(saved.read_text())["accuracy"] == result["accuracy"]
    page = saved.with_suffix(".md").read_text()
    assert result["encoder_digest"][:16] in page and "python launch.py ..." in page and f"{result['accuracy']:.1f}" in page
    assert table.terminal(result).row_count == (1 if name == "dense" else 5)


@pytest.mark.parametrize("name", ["linear", "attentive"])
def test_features_may_be_computed_anew_from_random_crops(workdir, tmp_path, name):
    changes = {f"{name}__augment": True, "augment__crop_scale": (0.6, 1.0), "baselines": False}
    changes |= {"linear__select": "test"} if name == "linear" else {}
    result = evaluate(workdir, name, out=tmp_path, **changes)
    assert 0 < result["accuracy"] < 100 and result["accuracy"] == evaluate(workdir, name, out=tmp_path, **changes)["accuracy"]
    assert result["tasks"] != evaluate(workdir, name, out=tmp_path, **changes, seed=1)["tasks"]


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIG_FOLDER.glob("*.py") if path.stem != "__init__"))
def test_every_configuration_is_documented_and_sound(name):
    module = importlib.import_module(f"configs.evaluate.{name}")
    settings_lib.check(module.get_config())
    assert f"launch.py evaluate --config configs/evaluate/{name}.py" in module.__doc__ and "Hardware" in module.__doc__
    assert name.endswith("_in1k") or (CONFIG_FOLDER / f"{name}_in1k.py").exists()
    if name.endswith("_in1k"):
        assert module.get_config().data.name.startswith("tfds:")


def test_rank_needs_no_labels_and_gives_measures(workdir, tmp_path):
    result = evaluate(workdir, "rank", out=tmp_path)
    assert result["lidar"] >= 1 and 1 <= result["rankme"] <= 32 and result["feature_std"] > 0
    layers = np.array(result["details"]["checkpoint"][0]["rank"]["cka"])
    np.testing.assert_allclose(np.diag(layers), 1, atol=1e-3)
    assert layers.shape == (2, 2) and table.terminal(result).row_count == 3


def test_the_same_seed_gives_the_same_numbers_and_another_one_others(workdir, tmp_path):
    first, again, other = (
        evaluate(workdir, "finetune", out=tmp_path, seed=seed, baselines=False, finetune__learning_rate=1e-2)
        for seed in (0, 0, 1)
    )
    assert first["tasks"] == again["tasks"] != other["tasks"]


def test_several_seeds_are_averaged_and_their_spread_is_told(workdir, tmp_path):
    result = evaluate(workdir, "lowshot", out=tmp_path, seeds=2, data__fraction=0.5)
    assert len(result["seeds"]) == 2 and result["accuracy"] == pytest.approx(np.mean(result["seeds"]), abs=0.01)
    assert "Mean of 2 seeds" in next(tmp_path.glob("*.md")).read_text()


def test_of_a_share_of_the_labels_the_images_used_are_told(workdir, tmp_path):
    result = evaluate(workdir, "lowshot", out=tmp_path, data__fraction=0.25, baselines=False)
    assert 10 < result["train_images"] < 20 and result["train_images_in_all"] == 64 and result["warnings"] == []
    line = f"32 test and {result['train_images']} training images, of 64."
    assert line in next(tmp_path.glob("*.md")).read_text() and "training images" in table.terminal(result).title
    assert "train_images_in_all" not in evaluate(workdir, "lowshot", out=tmp_path, data__fraction=1.0, baselines=False)


@pytest.mark.parametrize("name", ["linear", "attentive", "finetune"])
def test_a_head_of_few_steps_is_warned_of(workdir, tmp_path, capsys, name):
    few = suite.evaluate(settings(name, baselines=False), str(workdir), out=str(tmp_path), display=Display())
    warning = f"{name}: a head of {few['warnings'][0].split('a head of ')[1]}"
    assert len(few["warnings"]) == 1 and f"{name}.epochs" in warning and f"warning: {warning}" in capsys.readouterr().out
    assert f"> **Warning:** {warning}." in next(tmp_path.glob("*.md")).read_text()


def test_features_are_kept_by_weights_data_and_preparation(workdir, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns("features"))

    def kept(**changes):
        before = {*copy.glob("features/*.npz")}
        evaluate(copy, "knn", out=tmp_path, **changes)
        return len({*copy.glob("features/*.npz")} - before)

    assert kept() == 6  # two splits of checkpoint, random encoder and pixels
    assert kept() == kept(knn__k=3) == 0
    assert kept(data__crop=0.5) == 6 and kept(seed=1, baselines=True) == 2  # another random encoder
    assert kept(data__train_images=63) == 3 and kept(cache=False, data__test_images=31) == 0
    for path in copy.glob("features/*.npz"):
        path.write_bytes(path.read_bytes()[:500])
    assert evaluate(copy, "knn", out=tmp_path)["tasks"] == evaluate(workdir, "knn", out=tmp_path)["tasks"]


def test_every_test_image_is_counted_once_whatever_the_batch(workdir, tmp_path):
    whole = evaluate(workdir, "knn", out=tmp_path, cache=False, data__batch_size=32)
    odd = evaluate(workdir, "knn", out=tmp_path, cache=False, data__batch_size=7)
    assert whole["tasks"] == odd["tasks"] and whole["test_images"] == 32


def test_a_share_of_the_labels_is_the_same_of_every_class():
    labels = np.repeat([0, 1, 2], [100, 50, 3])
    chosen = bench_lib.share_of_classes(labels, 0.1, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [10, 5, 1]
    assert not np.array_equal(chosen, bench_lib.share_of_classes(labels, 0.1, seed=1))


def arrays(folder, **changes):
    rng = np.random.default_rng(0)
    fields = {f"{split}_images": rng.integers(0, 256, (64, 32, 32, 3), np.uint8) for split in ("train", "test")}
    fields |= {f"{split}_labels": np.arange(64) % 4 for split in ("train", "test")} | changes
    np.savez(folder / "data.npz", **{key: value for key, value in fields.items() if value is not None})
    return f"arrays:{folder / 'data.npz'}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": None, "test_labels": None}, "knn needs labels, and the training images have none"),
        ({"test_labels": None}, "knn needs labels, and the test images have none"),
        ({"test_labels": np.arange(64) % 5}, "its test split has classes that the training split has not: '4'"),
        ({"train_labels": np.zeros(64, int), "test_labels": np.zeros(64, int)}, "needs two classes or more"),
        ({"train_labels": 2 * (np.arange(64) % 3)}, "has classes that the training split has not: '1', '3'"),
        ({"test_labels": np.full(64, -1)}, "labels must be classes from 0 up to 99999, these are -1 to -1"),
        ({"train_labels": np.arange(64) % 5 - 1}, "labels must be classes from 0 up to 99999, these are -1 to 3"),
        ({"test_images": None, "test_labels": None}, "for the test split expected test_images"),
    ],
)
def test_labels_that_do_not_do_are_refused(workdir, tmp_path, changes, message):
    name = arrays(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        evaluate(workdir, "knn", out=tmp_path, data__name=name, data__train_images=0, data__test_images=0)


def test_unreadable_images_are_left_out_and_told(workdir, tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for i in range(20):
                shade = np.full((32, 32, 3), 200 if label == "a" else 40, np.uint8)
                Image.fromarray(shade).save(tmp_path / "data" / split / label / f"{i}.png")
    (tmp_path / "data/val/a/3.png").write_bytes(b"no image")
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    with pytest.raises(DataError, match="unreadable, more than data.max_bad_fraction"):
        evaluate(copy, "knn", data__name=f"folder:{tmp_path}/data", data__test_images=0)
    result = evaluate(copy, "knn", data__name=f"folder:{tmp_path}/data", data__test_images=0, data__max_bad_fraction=0.1)
    assert result["bad_images"] == 1 and result["test_images"] == 39 and result["accuracy"] == 100
    with pytest.raises(DataError, match="1 of 40 test images are unreadable"):  # kept features are no way around it
        evaluate(copy, "knn", data__name=f"folder:{tmp_path}/data", data__test_images=0)


def test_a_collapsed_encoder_is_at_chance_without_nan(workdir, tmp_path, monkeypatch):
    restore = suite.checkpoint.restore_encoder

    def collapsed(*given):
        weights, saved = restore(*given)
        return jax.tree.map(np.zeros_like, weights), saved

    monkeypatch.setattr(suite.checkpoint, "restore_encoder", collapsed)
    for name in ("knn", "lowshot", "linear", "attentive", "rank", "dense", "finetune"):
        result = evaluate(workdir, name, out=tmp_path, baselines=False)
        assert "NaN" not in json.dumps(result)
        if name != "dense":  # where most patches are ground
            assert result["rankme"] == pytest.approx(1, abs=0.01) if name == "rank" else result["accuracy"] < 50


def test_a_diverged_encoder_is_refused(workdir, tmp_path, monkeypatch):
    restore = suite.checkpoint.restore_encoder
    broken = lambda *given: (jax.tree.map(lambda leaf: leaf * np.nan, restore(*given)[0]), *restore(*given)[1:])  # noqa: E731
    monkeypatch.setattr(suite.checkpoint, "restore_encoder", broken)
    for name in ("knn", "linear", "attentive", "dense", "finetune"):
        with pytest.raises(ValueError, match="NaN or infinite values: the encoder has diverged"):
            evaluate(workdir, name, out=tmp_path, baselines=False)


def test_seeds_of_finetuning_start_from_the_same_weights(workdir, tmp_path):
    both = evaluate(workdir, "finetune", out=tmp_path, seeds=2)
    second = evaluate(workdir, "finetune", out=tmp_path, seed=1)
    assert both["seeds"][1] == pytest.approx(second["accuracy"], abs=0.01)


def test_a_large_batch_is_encoded_in_parts(workdir, tmp_path):
    changes = {"linear__augment": True, "linear__select": "test", "linear__batch_size": 64, "baselines": False}
    whole = evaluate(workdir, "linear", out=tmp_path, **changes, data__batch_size=64)
    parts = evaluate(workdir, "linear", out=tmp_path, **changes, data__batch_size=7)
    assert parts["accuracy"] == pytest.approx(whole["accuracy"], abs=2)


def test_other_image_sizes_and_steps(workdir, tmp_path):
    assert evaluate(workdir, "knn", out=tmp_path, data__image_size=48)["image_size"] == [48, 48]
    with pytest.raises(ValueError, match="segmentation needs data.crop 1.0"):
        evaluate(workdir, "dense", out=tmp_path, data__crop=0.875)
    assert evaluate(workdir, "knn", out=tmp_path, step=4, baselines=False)["step"] == 4
    with pytest.raises(CheckpointError, match="has no checkpoint of step 5: it has"):
        evaluate(workdir, "knn", out=tmp_path, step=5)


def test_what_is_no_checkpoint_or_another_architecture_is_refused(workdir, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="is not a workdir"):
        evaluate(tmp_path, "knn")
    restore = suite.checkpoint.restore_encoder

    def other(*given):
        weights, saved = restore(*given)
        saved.notes["settings"]["model"]["width"] = 48
        return weights, saved

    monkeypatch.setattr(suite.checkpoint, "restore_encoder", other)
    with pytest.raises(CheckpointError, match="not of the architecture"):
        evaluate(workdir, "knn")


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("knn", {"knn__k": 0}, ValueError, "knn.k 0 must be a whole number from 1"),
        ("knn", {"protocol": "magic"}, ValueError, "protocol 'magic' must be one of knn"),
        ("knn", {"data__tasks": "count, taste"}, DataError, "data.tasks names taste: the data have count"),
        ("knn", {"data__fraction": 2.0}, ValueError, "data.fraction 2.0"),
        ("linear", {"linear__augment": True}, ValueError, "'held_out' needs linear.augment=False"),
        ("attentive", {"attentive__heads": 5}, ValueError, "attentive.heads 5 do not divide"),
    ],
)
def test_wrong_settings_are_named(workdir, tmp_path, name, changes, error, message):
    with pytest.raises(error, match=message):
        evaluate(workdir, name, out=tmp_path, **changes)


def test_segments_are_only_of_scenes(workdir, tmp_path):
    with pytest.raises(DataError, match="segmentation needs images with masks"):
        evaluate(workdir, "dense", out=tmp_path, data__name=arrays(tmp_path))


def test_what_probes_see_of_layers_ends_in_what_they_see_of_the_encoder(workdir, tmp_path):
    found = layer_probes.of_run(str(workdir), 64, 32)
    assert [len(scores) for of in found.values() for scores in of.values()] == [3] * 4  # two blocks, and the output
    result = evaluate(workdir, "knn", out=tmp_path, step=-1)
    wanted = [result["accuracy"], result["baselines"]["random_init"]]
    np.testing.assert_allclose([of["knn"][-1] for of in found.values()], wanted, atol=0.01)
    assert found["trained"]["linear"][0] != found["trained"]["linear"][-1]
    assert len(layer_probes.table("runs/a", found)) == 4
