"""The launcher's `visualize`: pictures and a page of any checkpoint, on any data."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import launch as launcher
from ijepa_jax.devices import processes
from ijepa_jax.devices.sharding import make_mesh
from ijepa_jax.evaluate import prediction
from ijepa_jax.interop import convert
from ijepa_jax.pretrain import command, result
from ijepa_jax.visualize import explore_page
from tests import small
from tests.test_launch import launch

PICTURES = [
    "masks.png", "pca.png", "similarity.png", "similarity_random_init.png", "neighbours.png",
    "neighbours_random_init.png", "prediction.png", "map.png", "map_random_init.png",
]  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(result, "draw_pictures", lambda *arguments: {"pictures": []})
        command.pretrain(small.config(), place)
    return place


@pytest.fixture(scope="module")
def theirs(workdir, tmp_path_factory):
    """The run's target encoder in transformers' format."""
    folder = tmp_path_factory.mktemp("theirs") / "model"
    convert.export_weights(str(workdir), str(folder), "huggingface")
    return folder


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """The command runs without what only a process of its own can do, except where `launch` starts one."""
    monkeypatch.setattr(processes, "start", lambda *arguments: None)
    for name in ("set_up_jax", "quieten_background"):
        monkeypatch.setattr(launcher, name, lambda: None)


def visualize(capsys, *arguments):
    """(exit code, result if there is one, what went to stderr) of the command."""
    code = launcher.main(["launch.py", "visualize", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, None if code else json.loads(out.splitlines()[-1]), err


def checked_page(folder, pictures):
    """The page's text: it must hold these pictures and need nothing else."""
    page, text = (folder / "index.html").read_text(), (folder / "index.md").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == len(pictures) and all(source.startswith("data:image/png;base64,") for source in sources)
    assert re.findall(r"\]\(([^)]*)\)", text) == pictures == [name for name in PICTURES if (folder / name).exists()]
    for picture in pictures:
        assert min(Image.open(folder / picture).size) > 50
    return text


def test_a_run_is_drawn_on_its_own_data(workdir):
    code, out, err = launch("visualize", "--checkpoint", workdir, "--bank=24", "--images=3")
    assert code == 0 and not err, err
    result = json.loads(out.splitlines()[-1])
    assert result["pictures"] == PICTURES and result["bank"] == 24 and result["images"] == 3 and result["data"] == "scenes"
    assert result["modality"] == "image" and not result["wide"]
    text = checked_page(workdir / "visualize", PICTURES)
    assert [*result["neighbours"]] == ["count", "distance", "shape", "colour"]
    for task, found in result["neighbours"].items():
        assert {*found} == {"trained", "random_init", "chance"} and all(0 <= value <= 100 for value in found.values())
        assert f"| {task} | {found['trained']:.1f} |" in text
    measured = result["prediction"]
    assert measured["images"] == 24 and all(-1 <= measured[name] <= 1 for name in prediction.MEASURES)
    assert f"| prediction with its target | {measured['cosine']:.3f} | {measured['centred']:.3f} |" in text


def test_another_seed_draws_other_images(workdir, tmp_path, capsys):
    drawn = []
    for seed in (0, 1):
        where = ("--checkpoint", workdir, "--step=8", "--bank=16", "--images=2", "--out", tmp_path / str(seed))
        code, result, err = visualize(capsys, *where, "--seed", seed)
        assert code == 0 and result["step"] == 8, err
        drawn.append({picture: (tmp_path / str(seed) / picture).read_bytes() for picture in PICTURES})
    for picture in PICTURES[:-2]:
        assert drawn[0][picture] != drawn[1][picture], picture


def test_grey_arrays_without_labels_that_are_not_square(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (60, 30, 50), np.uint8)
    np.savez(tmp_path / "grey.npz", train_images=images, test_images=images[:9])
    data = {"data__name": f"arrays:{tmp_path / 'grey.npz'}", "data__channels": 1, "data__mean": (0.5,), "data__std": (0.25,)}
    config = small.config(**data, data__image_size=(24, 40), optim__steps=2, optim__warmup=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "finish", lambda *arguments: {})
        command.pretrain(config, tmp_path / "run")
    code, result, err = visualize(capsys, "--checkpoint", tmp_path / "run", "--images=20")
    assert code == 0 and not err, err
    assert result["images"] == result["bank"] == 9 and result["neighbours"] == {}
    assert "The images have no labels." in checked_page(tmp_path / "run" / "visualize", PICTURES)


def test_an_encoder_alone_has_no_predictions_and_the_page_says_so(theirs, tmp_path, capsys):
    """On a folder of others' images, the train split, with classes whose names are no Markdown."""
    for name in ("a_b", "$5|<b>"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    convert.import_weights(str(theirs), str(tmp_path / "run"))
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "prediction.png").write_bytes(b"of another checkpoint")
    where = ("--checkpoint", tmp_path / "run", "--out", tmp_path / "page", "--data", f"folder:{tmp_path / 'images'}")
    code, result, err = visualize(capsys, *where, "--split=train", "--images=2")
    assert code == 0 and not err, err
    assert result["prediction"] is None and result["data"].startswith("folder:") and [*result["neighbours"]] == ["label"]
    text = checked_page(tmp_path / "page", [name for name in PICTURES if name != "prediction.png"])
    assert "Left out: the checkpoint holds an encoder only, without a predictor" in text
    assert "do not tell the masks of their training" in text


def test_an_import_with_a_predictor_is_drawn_with_masks_that_fit(workdir, tmp_path, capsys):
    """Weights of the authors' code have no length of a run, and no masks of their own; the default ones are for large grids."""
    convert.export_weights(str(workdir), str(tmp_path / "theirs"), "reference")
    convert.import_weights(str(tmp_path / "theirs" / "checkpoint.pth.tar"), str(tmp_path / "run"), heads=2)
    code, result, err = visualize(
        capsys, "--checkpoint", tmp_path / "run", "--data=scenes", "--bank=16", "--images=2", "--out", tmp_path / "page"
    )
    assert code == 0, err
    assert result["prediction"]["images"] == 16 and "prediction.png" in result["pictures"] and not result["own_masks"]


def test_the_page_is_worded_for_what_was_drawn():
    """A result without a modality, as older versions gave them, is of images."""
    result = {
        "name": "I-JEPA", "checkpoint": "runs/images", "step": 1, "encoder_digest": "ab", "data": "folder:/images",
        "split": "test", "images": 3, "bank": 9, "seed": 0, "pictures": PICTURES, "own_masks": True, "neighbours": {},
        "prediction": {"images": 9, "cosine": 0.5, "centred": 0.1, "other": 0.2, "other_centred": 0.0}, "maps": ["PCA"],
        "mapped": 5, "tasks": [], "command": "", "left_out": "",
    }  # fmt: skip
    text = explore_page.markdown(result)
    assert text == explore_page.markdown({**result, "modality": "image"})
    assert "The maps lie as the marked patches do." in text and "| images | 3 drawn" in text
    for kind in ("video", "signal"):
        text = explore_page.markdown({**result, "modality": kind})
        assert f"| {kind}s | 3 drawn" in text and f"sees of a {kind}," in text and f"5 of 9 {kind}s." in text
        assert f"The {kind}s have no labels." in text and f"{kind.capitalize()}s are shown as" in text
        assert "The maps follow each other" in text and "lie as the marked" not in text and "Beside each block" in text
        assert "`runs/images`" in text and "`folder:/images`" in text  # names stay
        assert "image" not in text.replace("runs/images", "").replace("folder:/images", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "the following arguments are required: --checkpoint"),
        (("--checkpoint", "nowhere"), "nowhere is not a workdir: it has no folder 'checkpoints'"),
        (("--checkpoint", "THEIRS"), "foreign weights become one by: python launch.py import --from "),
        (("--checkpoint", "WORKDIR", "--split=all"), "split 'all' is not known: it must be one of train, test"),
        (("--checkpoint", "WORKDIR", "--images=9", "--bank=8"), "9 images are to be drawn out of a bank of 8"),
        (("--checkpoint", "WORKDIR", "--images=0"), "--images 0 must be a whole number from 1 to 64"),
        (("--checkpoint", "WORKDIR", "--step=5"), "has no checkpoint of step 5"),
        (("--checkpoint", "WORKDIR", "--data=folder:/nowhere"), "folder:/nowhere: no such folder"),
        (("--checkpoint", "WORKDIR", "--out", "FILE"), "FILE"),
    ],
)
def test_mistakes_get_one_clear_line(workdir, theirs, tmp_path, capsys, arguments, line):
    (tmp_path / "FILE").touch()
    places = {"WORKDIR": workdir, "THEIRS": theirs, "FILE": tmp_path / "FILE"}
    code, _, err = visualize(capsys, *(places.get(argument, argument) for argument in arguments))
    assert code == 1 and err.count("\n") == 1 and err.startswith("error: ") and line in err, err


def test_a_path_to_one_checkpoint_is_that_and_nothing_is_written_into_it(workdir, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(workdir / "checkpoints", copy / "checkpoints")
    code, result, err = visualize(capsys, "--checkpoint", copy / "checkpoints" / "8", "--bank=8", "--images=2")
    assert code == 0 and result["step"] == 8, err
    assert result["out"] == str(copy / "visualize") and not (copy / "checkpoints" / "8" / "visualize").exists()


def test_cosines_are_one_of_equals_zero_across_and_of_nothing():
    first = jnp.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    second = jnp.array([[6.0, 8.0], [0.0, -2.0], [1.0, 1.0]])
    np.testing.assert_allclose(prediction.cosine(first, second), [1, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    "masks, norm",
    [({}, "layer"), ({"mode": "pad", "context_patches": 0, "num_context_blocks": 2}, "layer"), ({}, "whiten")],
    ids=["layer", "pad", "whiten"],
)
def test_predictions_are_measured_by_their_own_images(masks, norm, monkeypatch):
    """A predictor that knows its targets has cosine 1 with them, and not with other images'; batches make no difference."""
    method = dataclasses.replace(small.method(masks=masks), target_norm=norm)
    batch = small.batch(method, 7)
    images, drawn = batch.pop("image"), batch
    params = method.init(jax.random.key(0))
    target, mesh = params["encoder"], make_mesh()
    stream = [{"image": images[:4], "valid": np.ones(4, bool)}, {"image": images[3:], "valid": np.arange(4) > 0}]
    means, whitening = prediction.position_means(method, target, stream, mesh)
    goals = lambda images: method.goals(method.encode_target(target, (images / 255 - 0.5) / 0.25), whitening)  # noqa: E731
    encoded = np.asarray(goals(images))
    np.testing.assert_allclose(means, encoded.mean(axis=0), atol=1e-5)
    if norm == "whiten":  # that of the first batch
        np.testing.assert_allclose(encoded[:4].mean(axis=(0, 1)), 0, atol=1e-4)
    whole = prediction.measure(method, params, target, means, images, drawn, mesh, whitening)
    assert whole["cosine"].shape == drawn["target"].shape
    monkeypatch.setattr(prediction, "_IMAGES", 4)
    parts = prediction.measure(method, params, target, means, images, drawn, mesh, whitening)
    valid = np.arange(drawn["target"].shape[-1]) < drawn["target_length"][..., None]
    for name in ("cosine", "centred", "position_mean"):
        np.testing.assert_allclose(parts[name][valid], whole[name][valid], atol=1e-5)

    def knowing(self, predictor, context, batch):
        goal = self.gather_targets(goals(jnp.asarray(known)), batch["target"])
        return jnp.repeat(goal[:, :, None], context.shape[1], axis=2)

    known = images[:4]
    monkeypatch.setattr(type(method), "predict", knowing)
    found = prediction.measure(method, params, target, means, known, {k: v[:4] for k, v in drawn.items()}, mesh, whitening)
    np.testing.assert_allclose(found["cosine"], 1, atol=1e-5)
    np.testing.assert_allclose(found["centred"], 1, atol=1e-4)
    assert found["other"].mean() < 0.99 and found["other_centred"].mean() < 0.5
    place = drawn["target"][0, 0, 0]
    pair = encoded[0, place], encoded[1, place]
    assert found["other"][0, 0, 0] == pytest.approx(np.dot(*pair) / np.prod(np.linalg.norm(pair, axis=1)), abs=1e-5)
