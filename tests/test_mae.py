"""MAE: the recorded steps of the authors' code, its sizes and initialisation, and that it trains in the harness."""

import dataclasses
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ijepa_jax import build
from ijepa_jax.interop.convert import export_weights
from ijepa_jax.interop.pretrained import Pretrained, load
from ijepa_jax.measure.plan import chip_hours
from ijepa_jax.methods import config as config_lib
from ijepa_jax.methods.pixels import filled_in, pixel_goals
from ijepa_jax.model.vit import ViT, normalise, parameter_count, patchify, unpatchify
from ijepa_jax.pretrain import command
from ijepa_jax.train import checkpoint
from tests import parity, small

IMAGENET = 1_281_167
RECORDING = Path(__file__).resolve().parent.parent.parent / "shared" / "parity" / "mae_small.npz"


def settings(**changes):
    """Those of a tiny run; `changes` are dotted keys with __ for the dot."""
    config = config_lib.with_method(small.config(), "mae")
    tiny = {"mae__decoder_width": 16, "mae__decoder_depth": 1, "mae__decoder_heads": 2, **changes}
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in tiny.items()})
    return config


@pytest.mark.skipif(not RECORDING.exists(), reason="needs ../shared/parity/mae_small.npz, which is not part of the project")
def test_the_recording_is_replayed_within_every_bar():
    errors = parity.replay(RECORDING)
    assert errors.keys() == parity.BARS.keys()
    assert {name for name, bar in parity.BARS.items() if not errors[name] <= bar} == set()


@pytest.mark.parametrize(
    "name, parameters, gflop, kept",
    [
        ("mae_in1k_vitb16", (85_647_360, 26_008_320), 58, 49),
        ("mae_in1k_vitl16", (303_099_904, 26_139_392), 124, 49),
        ("mae_in1k_vith14", (630_435_840, 26_178_124), 290, 64),
    ],
)
def test_published_runs(name, parameters, gflop, kept):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    method = build.method(config)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    assert tuple(parameter_count(shapes[part]) for part in ("encoder", "decoder")) == parameters
    assert method.masks.context_length == kept  # of 196 and 256: the number kept rounds down
    flops = sum(method.flops().values())
    assert round(flops / 1e9) == gflop
    steps = build.total_steps(config, IMAGENET)
    hours = chip_hours(flops * steps * config.optim.batch_size)["h200"]
    assert f"{hours['40']:.0f} / {hours['60']:.0f} H200-hours" in module.__doc__
    optimizer = build.optimizer(config, method, IMAGENET)
    rates = [float(optimizer.learning_rate(step)) for step in (0, 20 * 312, 40 * 312, 820 * 312)]
    np.testing.assert_allclose(rates, [0, 1.2e-3, 2.4e-3, 1.2e-3], rtol=1e-5)
    assert optimizer.weight_decay(0) == optimizer.weight_decay(steps) == np.float32(0.05)


def test_grids_too_narrow_for_blocks_are_trained_and_those_that_nothing_can_be_hidden_of_are_used():
    assert build.method(settings(mae__mask_ratio=0.98)).masks.context_length == 1  # of 64
    method = build.method(settings(data__image_size=(12, 8)))
    batch = small.batch(method)
    assert batch["context"].shape == (4, 1, 1) and batch["target"].shape == (4, 1, 5)  # of 3x2
    params = jax.jit(method.init)(jax.random.key(0))
    assert np.isfinite(method.loss(params, None, batch, jax.random.key(0))[0])
    alone = build.trained_method(settings(data__image_size=(4, 4)))
    assert alone.masks is None and alone.prepare()(np.arange(2)) == {}
    shown = alone.backbone().represent(jax.jit(alone.init)(jax.random.key(0))["encoder"], np.zeros((2, 4, 4, 3)), ("class",))
    assert shown["class"].shape == (2, 32)


def test_fresh_weights_are_drawn_as_the_authors_draw_them():
    method = build.method(settings(model__width=64, model__heads=2))
    encoder = jax.jit(method.init)(jax.random.key(0))["encoder"]
    qkv, embedded = encoder["blocks"]["0"]["qkv"], encoder["patch_embed"]
    assert np.abs(qkv["kernel"]).max() <= np.sqrt(6 / (64 + 3 * 64)) < 1.01 * np.abs(qkv["kernel"]).max()  # of one matrix
    assert not np.any(qkv["bias"]) and 0.5 / np.sqrt(48) < np.abs(embedded["bias"]).max() <= 1 / np.sqrt(48)
    assert 0.01 < np.std(encoder["class_token"]) < 0.03


def test_the_class_token_stands_before_patches_only_where_it_is_asked_for():
    vit = ViT(patch=4, width=16, depth=2, heads=2, class_token=True)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    params = vit.init(jax.random.key(1), images)["params"]
    apply = lambda **given: vit.apply({"params": params}, images, **given)  # noqa: E731
    whole = apply(with_class=True)
    assert whole.shape == (2, 17, 16)
    np.testing.assert_array_equal(apply(), whole[:, 1:])
    assert [tokens.shape[1] for tokens in apply(layers=True)] == [16] * 3
    wanted = jnp.array([[3, 0], [5, 5]])
    np.testing.assert_allclose(apply(wanted=wanted), jnp.take_along_axis(whole[:, 1:], wanted[..., None], 1), atol=1e-6)
    kept, lengths = jnp.array([[1, 2, 2], [4, 5, 6]]), jnp.array([2, 3])
    padded = apply(keep=kept, lengths=lengths)[0, :2]
    np.testing.assert_allclose(padded, vit.apply({"params": params}, images[:1], kept[:1, :2])[0], atol=1e-6)


def test_hidden_patches_alone_are_told_whatever_the_order_of_the_seen():
    method = build.method(settings())
    params = jax.jit(method.init)(jax.random.key(0))
    batch = small.batch(method)
    loss = jax.jit(lambda images, batch: method.loss(params, None, {**batch, "image": images}, jax.random.key(0))[0])
    images = jnp.asarray(batch["image"], jnp.float32) / 64
    turned = {**batch, "context": batch["context"][..., ::-1]}
    np.testing.assert_allclose(loss(images, batch), loss(images, turned), rtol=1e-5)
    plain = dataclasses.replace(method, normalised=False)
    seen = np.asarray(plain.goals(images)) - np.asarray(plain.predict(params, images, batch, jax.random.key(0)))
    expected = np.mean([np.square(seen[i, hidden]).mean() for i, hidden in enumerate(batch["target"][:, 0])])
    np.testing.assert_allclose(plain.loss(params, None, {**batch, "image": images}, jax.random.key(0))[0], expected, rtol=1e-5)
    patches = np.asarray(plain.goals(images), np.float64)
    told = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(method.goals(images), told, atol=1e-4)


def test_it_is_trained_probed_drawn_and_exported_with_its_class_token(tmp_path):
    report = command.pretrain(settings(), tmp_path / "run")
    assert report["name"] == "MAE" and report["compilations"] == 1 and report["steps"] == 12
    assert report["probes"].keys() == {"count", "distance", "shape", "colour"}
    assert "reconstruction.png" in report["pictures"] and (tmp_path / "run/report/reconstruction.png").exists()
    small.assert_goes_on_to_the_same_bits(report, settings(), tmp_path / "run")
    weights, _ = checkpoint.restore_encoder(tmp_path / "run")
    assert weights["class_token"].shape == (32,)
    written = export_weights(str(tmp_path / "run"), str(tmp_path / "out"), "huggingface")
    assert "ViTMAEForPreTraining" in written["load"] and not written["left_out"]
    assert written["encoder_digest"] == report["encoder_digest"]
    ours, theirs = load(tmp_path / "run"), load(tmp_path / "out")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    for of in (Pretrained.__call__, Pretrained.class_token):
        np.testing.assert_allclose(of(ours, images), of(theirs, images), rtol=1e-5, atol=1e-5)


def test_what_is_guessed_stands_where_nothing_is_seen():
    method = build.method(settings(mae__normalised=False))
    params, batch = jax.jit(method.init)(jax.random.key(0)), small.batch(method)
    images = np.asarray(normalise(batch["image"], method.mean, method.std))
    filled = patchify(jax.jit(method.reconstruct)(params, batch), 4)
    guesses, shown = method.predict(params, images, batch, jax.random.key(0)), patchify(images, 4)
    hidden = np.zeros(shown.shape[:2], bool)
    np.put_along_axis(hidden, batch["target"][:, 0], True, axis=1)
    np.testing.assert_allclose(filled[hidden], guesses[hidden], atol=1e-5)
    np.testing.assert_allclose(filled[~hidden], shown[~hidden], atol=1e-6)
    perfect = pixel_goals(images, 4, normalised=True)  # of which neither mean nor contrast is known
    np.testing.assert_allclose(filled_in(images, perfect, hidden, ~hidden, 4, normalised=True), images, atol=1e-4)
    np.testing.assert_array_equal(unpatchify(shown, 4, images.shape[1:3]), images)


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"mae__decoder_heads": 5}, "^mae.decoder_width 16 must be a multiple of 4 and of mae.decoder_heads 5$"),
        ({"mae__mask_ratio": 0.999}, "^mae.mask_ratio 0.999 leaves none of 64 patches to be seen: give 0.984 or less$"),
        ({"mae__mask_ratio": 0.97, "data__image_size": (4, 20)}, "none of 5 patches to be seen: give 0.799 or less$"),
        ({"mae__mask_ratio": 0.5, "data__image_size": (4, 4)}, "none of 1 patches to be seen: there must be more patches$"),
        ({"mae__mask_ratio": 1.0}, "^mae.mask_ratio 1.0 "),
        ({"model__init": "fan_in"}, "^model.init 'fan_in': MAE's weights are drawn as its authors draw them: give 'normal'$"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line(changes, line):
    with pytest.raises(ValueError, match=line):
        build.method(settings(**changes))
