"""Decoding a run's representations: what is decoded, the run of a decoder, its pictures, its refusals."""

import contextlib
import dataclasses
import itertools
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import ijepa_jax
from configs import decode
from ijepa_jax import build
from ijepa_jax.decode import pictures, rcdm
from ijepa_jax.decode.rcdm import Rcdm
from ijepa_jax.interop import convert
from ijepa_jax.methods import IJepa
from ijepa_jax.pretrain import command, result
from ijepa_jax.train import checkpoint
from ijepa_jax.train.loop import Stopped
from ijepa_jax.train.step import State, init
from tests import small


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The workdir of a small I-JEPA run."""
    workdir = tmp_path_factory.mktemp("encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(result, "draw_pictures", lambda *arguments: {"pictures": []})
        command.pretrain(small.config(optim__steps=4), workdir)
    return workdir


def settings(encoder, **changes):
    """Those of configs/decode.py, made small."""
    config = decode.get_config()
    config.decoder.checkpoint = str(encoder)
    config.decoder.update(width=16, depth=1, heads=2, sample_steps=3)
    config.optim.steps, config.optim.warmup, config.checkpoint.every, config.optim.batch_size = 8, 2.0, 4, 16
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


@pytest.fixture(scope="module")
def decoded(encoder, tmp_path_factory):
    """A decoder's run: (workdir, report)."""
    workdir = tmp_path_factory.mktemp("decoded")
    return workdir, command.pretrain(settings(encoder), workdir)


def decoder_of(encoder) -> tuple[Rcdm, State]:
    """The decoder of a run that has not begun, with its teacher: (method, state)."""
    config = Rcdm.completed(settings(encoder))
    of = build.method(config)
    state = jax.jit(lambda: init(of, build.optimizer(config, of, 64), 0))()
    return of, state


def batches(of: Rcdm, size: int = 256):
    """An endless stream of batches of random images."""
    for i in itertools.count():
        yield small.batch(of.teacher, size, start=size * i)


def test_representations_are_averages_over_the_patches_of_a_block(encoder):
    of, state = decoder_of(encoder)
    teacher, batch = of.begin(state, lambda: batches(of)).target["teacher"], small.batch(of.teacher)
    pooled = jax.jit(of.represent)({"teacher": teacher}, batch)
    assert of.kinds == ("predictor", "target") and pooled.shape == (4, 2, 4, 32)
    kept, saved = checkpoint.restore_encoder(str(encoder), 4, ("params",))
    jax.tree.map(np.testing.assert_array_equal, teacher, {"target": kept, **saved.trees})
    images = (batch["image"] / 255 - 0.5) / 0.25
    encoded = np.asarray(of.teacher.encode_target(teacher["target"], images.astype(np.float32)))
    given = teacher["params"]
    context = of.teacher.encode_context(given["encoder"], images.astype(np.float32), batch, jax.random.key(0))
    predicted = np.asarray(of.teacher.predict(given["predictor"], context, batch))
    for row in range(4):
        for block in range(4):
            length = batch["target_length"][row, block]  # what pads a block beyond it must not count
            patches = batch["target"][row, block, :length]
            np.testing.assert_allclose(pooled[row, 1, block], encoded[row, patches].mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(pooled[row, 0, block], predicted[row, block, 0, :length].mean(axis=0), atol=1e-5)


def test_conditions_are_standardised_by_the_targets_of_the_first_images(encoder):
    of, state = decoder_of(encoder)
    begun = of.begin(state, lambda: batches(of))
    seen = [batch for batch, _ in zip(batches(of), range(4), strict=False)]
    given = np.concatenate([jax.jit(of.conditions)(begun.target, batch) for batch in seen])
    assert given.shape == (1024, 2, 4, 32)  # the predictor's, then the target encoder's, of four blocks
    targets = given[:, 1].reshape(-1, 32)
    np.testing.assert_allclose(targets.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(targets.std(axis=0), 1, atol=1e-3)
    after = of.update_target(begun.target, jax.tree.map(lambda x: x + 1, begun.params), 0.5)
    jax.tree.map(np.testing.assert_array_equal, after["teacher"], begun.target["teacher"])  # frozen
    np.testing.assert_allclose(
        jax.tree.leaves(after["denoiser"])[0], np.asarray(jax.tree.leaves(begun.params["denoiser"])[0]) + 0.5, rtol=1e-6
    )


def test_a_whitened_representation_of_an_image_is_the_same_in_every_batch(encoder):
    of, _ = decoder_of(encoder)
    of = dataclasses.replace(of, teacher=dataclasses.replace(of.teacher, target_norm="whiten"))
    optimizer = build.optimizer(settings(encoder), of, 64)
    begun = of.begin(jax.jit(lambda: init(of, optimizer, 0))(), lambda: batches(of)).target
    batch = small.batch(of.teacher)
    together = jax.jit(of.represent)(begun, batch)
    alone = jax.jit(of.represent)(begun, {name: values[:1] for name, values in batch.items()})
    np.testing.assert_allclose(alone[0], together[0], atol=1e-4)
    images = (next(batches(of))["image"].astype(np.float32) / 255 - 0.5) / 0.25
    encoded = of.teacher.encode_target(begun["teacher"]["target"], images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), begun["whitening"], of.teacher.whitening(encoded))
    assert of.update_target(begun, {"denoiser": begun["denoiser"]}, 0.5)["whitening"] is begun["whitening"]


def test_a_decoder_takes_the_settings_of_what_it_decodes(encoder):
    completed = Rcdm.completed(settings(encoder))
    trained = small.config()
    assert completed.data.name == "scenes" and completed.data.image_size == (32, 32)
    assert completed.model.to_dict() == {**trained.model.to_dict(), "drop_path": 0.0}
    assert completed.masks.to_dict() == trained.masks.to_dict()
    assert completed.decoder.step == 4 and completed.optim.steps == 8
    assert completed.data.size == trained.data.size and completed.data.eval_crop == trained.data.eval_crop
    assert Rcdm.completed(settings(encoder, data__name="folder:x")).data.name == "folder:x"
    with pytest.raises(ValueError, match=r"masks\.num_targets: a decoder takes these from decoder\.checkpoint"):
        Rcdm.completed(settings(encoder, masks__num_targets=2))


def test_the_run_of_a_decoder_ends_with_pictures_and_figures(decoded):
    workdir, report = decoded
    saved = json.loads((workdir / "report" / "report.json").read_text())
    assert saved["pictures"] == ["decoded.png", "curves.png"] and saved["compilations"] == 1 and saved["method"] == "rcdm"
    assert saved["decoded"].keys() == {"predictor", "target", "another image"}
    assert all(0 < error < 255 for error in saved["decoded"].values())
    picture = Image.open(workdir / "report" / "decoded.png")
    assert picture.width > 1000 and picture.height > 500
    assert np.asarray(picture.convert("L")).std() > 10
    page = (workdir / "report" / "report.html").read_text()
    assert "Blocks drawn anew" in page and page.count("data:image/png") == 2
    assert "<h2>Probes" not in page  # a decoder has none
    assert report["params_digest"] == saved["params_digest"]


def test_a_stopped_decoder_continues_to_the_same_bits(decoded, encoder, tmp_path, monkeypatch):
    requests = [SimpleNamespace(name="SIGTERM")]
    monkeypatch.setattr(command, "stop_requests", lambda *_, **__: contextlib.nullcontext(requests))
    with pytest.raises(Stopped):
        command.pretrain(settings(encoder), tmp_path)
    requests.clear()
    monkeypatch.setattr(rcdm, "_decoded", None)  # the run that is decoded may be gone
    monkeypatch.setattr(Rcdm, "begin", None)  # what was decoded, and its statistics, must be those that were kept
    again = command.pretrain(settings(encoder), tmp_path)
    assert again["resumed_from"] == 1 and again["params_digest"] == decoded[1]["params_digest"]


def test_an_imported_encoder_alone_is_decoded_too(encoder, tmp_path):
    """It brings neither a predictor, nor masks that fit its grid, nor the length of a run."""
    convert.export_weights(str(encoder), str(tmp_path / "theirs"), "huggingface")
    convert.import_weights(str(tmp_path / "theirs"), str(tmp_path / "imported"))
    config = settings(tmp_path / "imported", data__name="scenes", data__size=64, data__test_size=32)
    report = command.pretrain(config, tmp_path / "run")
    assert report["decoded"].keys() == {"target", "another image"} and "decoded.png" in report["pictures"]


def test_a_decoder_goes_on_with_the_weights_that_it_began_with(encoder, decoded, tmp_path):
    shutil.copytree(encoder, tmp_path / "encoder")
    config = settings(tmp_path / "encoder", decoder__step=-1)
    config.optim.steps = 4
    command.pretrain(config, tmp_path / "run")
    longer = small.config(optim__steps=8)  # the same run, which has learned more since
    command.pretrain(longer, tmp_path / "encoder")
    assert build.completed(config).decoder.step == 8
    command.pretrain(config, tmp_path / "run")
    assert checkpoint.restore_parts(tmp_path / "run", -1, ()).config().decoder.step == 4
    with pytest.raises(ValueError, match=r"checkpoints of other settings: decoder\.step was 4, now 8"):
        command.pretrain(settings(tmp_path / "encoder", decoder__step=8), tmp_path / "run")
    with pytest.raises(ValueError, match=r"checkpoints of other settings: decoder\.checkpoint was "):
        command.pretrain(settings(encoder), tmp_path / "run")


def test_what_cannot_be_decoded_is_named(encoder, decoded, tmp_path):
    with pytest.raises(ValueError, match=r"decoder\.checkpoint is missing"):
        command.pretrain(settings(""), tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="is not a workdir"):
        command.pretrain(settings(tmp_path), tmp_path / "run")
    with pytest.raises(checkpoint.CheckpointError, match="holds no encoder but what method 'rcdm' trains"):
        command.pretrain(settings(decoded[0]), tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="holds no encoder"):
        ijepa_jax.load(decoded[0])
    with pytest.raises(ValueError, match=r"decoder\.width 30 must be a multiple of 4 and of decoder\.heads 2"):
        command.pretrain(settings(encoder, decoder__width=30), tmp_path)
    with pytest.raises(ValueError, match="a decoder starts afresh"):
        command.pretrain(settings(encoder, warm_start="runs/x"), tmp_path)
    with pytest.raises(ValueError, match="another workdir"):
        command.pretrain(settings(encoder, decoder__depth=2), decoded[0])


def test_only_images_are_drawn(encoder, monkeypatch):
    config = Rcdm.completed(settings(encoder))
    teacher = IJepa.from_settings(config)
    for sizes, told in (((8, 32, 32), "videos of 8x32x32"), ((256,), "signals of 256")):
        of = dataclasses.replace(teacher, image_size=sizes, masks=None)
        monkeypatch.setattr(IJepa, "from_settings", lambda config, of=of: of)
        with pytest.raises(ValueError, match=f"^the decoder draws images: the encoder of {encoder} is of {told}$"):
            Rcdm.from_settings(config)


def test_only_the_block_is_drawn_and_measured(encoder):
    """Patches come back to where they were taken from; what pads a block is drawn nowhere."""
    config = Rcdm.completed(settings(encoder))
    method = build.method(config)
    batch = {**small.batch(method.teacher), "valid": np.array([True, True, True, False])}
    index, lengths, pixels = jax.device_get(method.blocks(batch))
    assert pixels.shape == (16, index.shape[1], 4 * 4 * 3) and len(lengths) == 16
    first = slice(None, None, 4)  # of the four blocks of each image
    same = pictures.pasted(batch["image"], pixels[first], index[first], lengths[first], method.patch)
    np.testing.assert_array_equal(same, batch["image"])
    assert pictures.error(batch, same, method, np.arange(3)) == 0
    white = pictures.pasted(batch["image"], np.full_like(pixels[first], 2.0), index[first], lengths[first], method.patch)
    changed = (white != batch["image"]).any(axis=-1).reshape(4, 8, 4, 8, 4).any(axis=(2, 4)).reshape(4, 64)
    for row in range(4):
        assert {*np.flatnonzero(changed[row])} == {*batch["target"][row, 0, : batch["target_length"][row, 0]]}
    inside = changed.reshape(4, 8, 1, 8, 1).repeat(4, 2).repeat(4, 4).reshape(4, 32, 32)[:3]
    expected = np.sqrt(np.square(255.0 - batch["image"][:3][inside]).mean())
    assert pictures.error(batch, white, method, np.arange(3)) == pytest.approx(expected, rel=1e-4)


def test_a_decoder_that_reads_nothing_is_said():
    said = [*pictures._decodes_nothing({"target": 60.0, "predictor": 54.0, "another image": 55.0})]
    assert said == ["Blocks drawn from the target encoder's output are no nearer (60.0) than from another image's (55.0)."]


def test_a_grey_image_is_drawn_too(tmp_path):
    of = small.method(channels=1)
    batch = small.batch(of, 3)
    pictures.draw_decoded(tmp_path / "grey.png", batch, {"target": [batch["image"]] * 2}, 4)
    assert Image.open(tmp_path / "grey.png").width > 300


def test_the_decoder_is_built_from_its_settings(encoder):
    made = build.method(Rcdm.completed(settings(encoder)))
    assert made.features == 32 and made.teacher.image_size == (32, 32) and made.teacher.masks.grid == made.grid == (8, 8)
