"""Decoding a run's representations: what is decoded, the run of a decoder, its pictures, its refusals."""

import contextlib
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import ijepa_jax
from configs import decode
from ijepa_jax import build, checkpoint, train
from ijepa_jax.interop import convert
from ijepa_jax.sharding import make_mesh, place_batch
from ijepa_jax.visualize import decoder
from tests import small


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The workdir of a small I-JEPA run."""
    workdir = tmp_path_factory.mktemp("encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw_pictures", lambda *arguments: [])
        train.pretrain(small.config(optim__steps=4), workdir)
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
    return workdir, train.pretrain(settings(encoder), workdir)


def test_representations_are_averages_over_the_patches_of_a_block(encoder):
    found = decoder.load(str(encoder))
    method, batch = found.method, small.batch(found.method)
    pooled = jax.jit(found.of_blocks)(found.trees, batch)
    assert found.kinds == ("predictor", "target") and pooled.shape == (4, 2, 4, 32)
    images = (batch["image"] / 255 - 0.5) / 0.25
    encoded = np.asarray(method.encode_target(found.trees["target"], images.astype(np.float32)))
    context = method.encode_context(found.trees["params"]["encoder"], images.astype(np.float32), batch, jax.random.key(0))
    predicted = np.asarray(method.predict(found.trees["params"]["predictor"], context, batch))
    for row in range(4):
        for block in range(4):
            length = batch["target_length"][row, block]  # what pads a block beyond it must not count
            patches = batch["target"][row, block, :length]
            np.testing.assert_allclose(pooled[row, 1, block], encoded[row, patches].mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(pooled[row, 0, block], predicted[row, block, 0, :length].mean(axis=0), atol=1e-5)


def test_conditions_are_standardised_by_the_targets(encoder):
    found, mesh = decoder.load(str(encoder)), make_mesh()
    batches = [place_batch(small.batch(found.method, 256, start=256 * i), mesh) for i in range(4)]
    conditions = decoder.Conditions(found, mesh)
    conditions.fit(iter(batches))
    given = np.concatenate([conditions(batch)["condition"] for batch in batches])
    assert given.shape == (1024, 2, 4, 32)  # the predictor's, then the target encoder's, of four blocks
    targets = given[:, 1].reshape(-1, 32)
    np.testing.assert_allclose(targets.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(targets.std(axis=0), 1, atol=1e-3)
    kept = decoder.Conditions(found, mesh)
    kept.use(json.loads(json.dumps(conditions.statistics)))
    np.testing.assert_allclose(kept(batches[0])["condition"], given[:256], atol=1e-5)


def test_a_decoder_takes_the_settings_of_what_it_decodes(encoder):
    completed = decoder.settings_of(settings(encoder))
    trained = small.config()
    assert completed.data.name == "scenes" and completed.data.image_size == (32, 32)
    assert completed.model.to_dict() == {**trained.model.to_dict(), "drop_path": 0.0}
    assert completed.masks.to_dict() == trained.masks.to_dict()
    assert completed.decoder.step == 4 and completed.optim.steps == 8
    assert completed.data.size == trained.data.size and completed.data.eval_crop == trained.data.eval_crop
    assert decoder.settings_of(settings(encoder, data__name="folder:x")).data.name == "folder:x"
    with pytest.raises(ValueError, match=r"masks\.num_targets: a decoder takes these from decoder\.checkpoint"):
        decoder.settings_of(settings(encoder, masks__num_targets=2))


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
    monkeypatch.setattr(train, "stop_requests", lambda *_, **__: contextlib.nullcontext(requests))
    with pytest.raises(train.Stopped):
        train.pretrain(settings(encoder), tmp_path)
    requests.clear()
    kept = checkpoint.Checkpoints(tmp_path, read_only=True).notes(1)["condition"]
    assert len(kept["mean"]) == len(kept["std"]) == 32
    monkeypatch.setattr(decoder.Conditions, "fit", None)  # the statistics must be those that were kept
    again = train.pretrain(settings(encoder), tmp_path)
    assert again["resumed_from"] == 1 and again["params_digest"] == decoded[1]["params_digest"]


def test_an_imported_encoder_alone_is_decoded_too(encoder, tmp_path):
    """It brings neither a predictor, nor masks that fit its grid, nor the length of a run."""
    convert.export_weights(str(encoder), str(tmp_path / "theirs"), "huggingface")
    convert.import_weights(str(tmp_path / "theirs"), str(tmp_path / "imported"))
    config = settings(tmp_path / "imported", data__name="scenes", data__size=64, data__test_size=32)
    report = train.pretrain(config, tmp_path / "run")
    assert report["decoded"].keys() == {"target", "another image"} and "decoded.png" in report["pictures"]


def test_weights_that_changed_meanwhile_are_refused(encoder):
    found, mesh = decoder.load(str(encoder)), make_mesh()
    conditions = decoder.Conditions(found, mesh)
    conditions.fit(iter([place_batch(small.batch(found.method, 1024), mesh)]))
    found.trees["target"] = jax.tree.map(lambda leaf: leaf + 1, found.trees["target"])
    with pytest.raises(ValueError, match=r"began with other weights, of step 4.*give --config\.decoder\.step=4"):
        decoder.Conditions(found, mesh).use(conditions.statistics)


def test_what_cannot_be_decoded_is_named(encoder, decoded, tmp_path):
    with pytest.raises(ValueError, match=r"decoder\.checkpoint is missing"):
        train.pretrain(settings(""), tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="is not a workdir"):
        train.pretrain(settings(tmp_path), tmp_path / "run")
    with pytest.raises(checkpoint.CheckpointError, match="holds no encoder but what method 'rcdm' trains"):
        train.pretrain(settings(decoded[0]), tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="holds no encoder"):
        ijepa_jax.load(decoded[0])
    with pytest.raises(ValueError, match=r"decoder\.width 30 must be a multiple of 4 and of decoder\.heads 2"):
        train.pretrain(settings(encoder, decoder__width=30), tmp_path)
    with pytest.raises(ValueError, match="a decoder starts afresh"):
        train.pretrain(settings(encoder, warm_start="runs/x"), tmp_path)
    with pytest.raises(ValueError, match="another workdir"):
        train.pretrain(settings(encoder, decoder__depth=2), decoded[0])


def test_only_the_block_is_drawn_and_measured(encoder):
    """Patches come back to where they were taken from; what pads a block is drawn nowhere."""
    config = decoder.settings_of(settings(encoder))
    method = build.method(config)
    batch = {**small.batch(decoder.load(str(encoder)).method), "valid": np.array([True, True, True, False])}
    index, lengths, pixels = jax.device_get(method.blocks(batch))
    assert pixels.shape == (16, index.shape[1], 4 * 4 * 3) and len(lengths) == 16
    first = slice(None, None, 4)  # of the four blocks of each image
    same = decoder.pasted(batch["image"], pixels[first], index[first], lengths[first], method.patch)
    np.testing.assert_array_equal(same, batch["image"])
    assert decoder._error(batch, same, method, np.arange(3)) == 0
    white = decoder.pasted(batch["image"], np.full_like(pixels[first], 2.0), index[first], lengths[first], method.patch)
    changed = (white != batch["image"]).any(axis=-1).reshape(4, 8, 4, 8, 4).any(axis=(2, 4)).reshape(4, 64)
    for row in range(4):
        assert {*np.flatnonzero(changed[row])} == {*batch["target"][row, 0, : batch["target_length"][row, 0]]}
    inside = changed.reshape(4, 8, 1, 8, 1).repeat(4, 2).repeat(4, 4).reshape(4, 32, 32)[:3]
    expected = np.sqrt(np.square(255.0 - batch["image"][:3][inside]).mean())
    assert decoder._error(batch, white, method, np.arange(3)) == pytest.approx(expected, rel=1e-4)


def test_a_grey_image_is_drawn_too(tmp_path):
    of = small.method(channels=1)
    batch = small.batch(of, 3)
    decoder.draw_decoded(tmp_path / "grey.png", batch, {"target": [batch["image"]] * 2}, 4)
    assert Image.open(tmp_path / "grey.png").width > 300


def test_the_decoder_is_built_from_its_settings(encoder):
    made = build.method(decoder.settings_of(settings(encoder)))
    assert made.features == 32 and made.image_size == (32, 32) and made.masks.grid == made.grid == (8, 8)
