"""Pixels under I-JEPA's masks, and SALT, whose frozen teacher such a run may be."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ijepa_jax import build
from ijepa_jax.host.console import Display
from ijepa_jax.interop import convert
from ijepa_jax.methods import config as config_lib
from ijepa_jax.model.stacks import laid_out
from ijepa_jax.model.vit import normalise, patchify
from ijepa_jax.pretrain import command
from ijepa_jax.settings import plain
from ijepa_jax.train import checkpoint
from ijepa_jax.train.step import State
from ijepa_jax.visualize.explore import explore
from tests import small

TEACHER = {"model__width": 24, "model__heads": 3, "predictor__heads": 2, "model__depth": 1}


def settings(method, **changes):
    config = config_lib.with_method(small.config(), method)
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """The workdir and the report of a run of pixel prediction, of an encoder of another size than the student's."""
    workdir = tmp_path_factory.mktemp("runs") / "pixels"
    return workdir, command.pretrain(settings("pixels", **TEACHER), workdir)


@pytest.fixture(scope="module")
def salt(pixels, tmp_path_factory):
    """Likewise of one that it teaches, which is stopped and continued."""
    workdir, config = tmp_path_factory.mktemp("runs") / "salt", settings("salt", salt__teacher=str(pixels[0]))
    command.pretrain(settings("salt", salt__teacher=str(pixels[0]), optim__steps=8, optim__schedule_scale=1.5), workdir)
    config.optim.schedule_scale = 1.0
    away = pixels[0].rename(pixels[0].with_name("away"))  # what it goes on with, it keeps itself
    report = command.pretrain(config, workdir)
    away.rename(pixels[0])
    return workdir, report


@pytest.mark.parametrize("normalised", [True, False])
def test_pixels_of_target_blocks_are_what_is_predicted(normalised):
    method = build.method(settings("pixels", pixels__normalised=normalised))
    assert method.additive and method.target_network is None and "target" not in method.flops()
    params, batch = jax.jit(method.init)(jax.random.key(0)), small.batch(method)
    assert method.init_target(params, jax.random.key(0)) is None
    loss, _ = method.loss(params, None, batch, jax.random.key(0))
    images = normalise(batch["image"], method.mean, method.std)
    context = method.encode_context(params["encoder"], images, batch, jax.random.key(0))
    guesses = np.asarray(method.predict(params["predictor"], context, batch))[:, :, 0]
    told = np.asarray(patchify(images, 4), np.float64)
    if normalised:
        told = (told - told.mean(-1, keepdims=True)) / np.sqrt(told.var(-1, ddof=1, keepdims=True) + 1e-6)
    errors = [
        np.asarray(optax.huber_loss(guesses[i, m, t], told[i, batch["target"][i, m, t]], delta=1.0))
        for i, m in np.ndindex(batch["target_length"].shape)
        for t in range(batch["target_length"][i, m])
    ]
    np.testing.assert_allclose(loss, np.mean(errors), rtol=1e-5)


def test_a_run_of_pixels_is_probed_drawn_goes_on_and_has_no_target_encoder(pixels):
    workdir, report = pixels
    small.assert_goes_on_to_the_same_bits(report, settings("pixels", **TEACHER), workdir)
    assert report["name"] == "pixel prediction" and "reconstruction.png" in report["pictures"]
    weights, _ = checkpoint.restore_encoder(workdir)
    assert weights["norm"]["scale"].shape == (24,)
    page = explore(str(workdir), images=2, bank=8, display=Display(quiet=True))
    assert "reconstruction.png" in page["pictures"] and "keeps no target encoder" in page["left_out"]


def test_the_teacher_of_another_size_is_followed_and_never_changed(pixels, salt):
    teacher, _ = checkpoint.restore_encoder(pixels[0])
    saved = checkpoint.restore_parts(salt[0], 0, ("target", "params"))
    jax.tree.map(np.testing.assert_array_equal, saved.trees["target"], teacher)
    method = saved.method()
    assert (method.teacher.width, method.teacher.depth, method.teacher.heads) == (24, 1, 3) and method.network.width == 32
    student, _ = checkpoint.restore_encoder(salt[0])
    jax.tree.map(np.testing.assert_array_equal, student, saved.trees["params"]["encoder"])
    batch = small.batch(method)
    images = normalise(batch["image"], method.mean, method.std)
    seen = method.teacher.apply({"params": teacher}, images)
    told = (seen - seen.mean(-1, keepdims=True)) / jnp.sqrt(seen.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(method.encode_target(teacher, images), told, atol=1e-4)


def test_it_goes_on_with_its_teacher_and_its_predictions_are_drawn(salt):
    assert salt[1]["resumed_from"] == 8 and salt[1]["steps"] == 12 and salt[1]["name"] == "SALT"
    page = explore(str(salt[0]), images=2, bank=8, display=Display(quiet=True))
    assert "prediction.png" in page["pictures"] and not page["left_out"]


@pytest.mark.parametrize("scan", [False, True])
def test_a_teacher_and_its_student_may_stack_their_blocks_otherwise(pixels, tmp_path, scan):
    state = {"params": {"encoder": jax.tree.map(np.copy, checkpoint.restore_encoder(pixels[0])[0])}}
    config = settings("pixels", **TEACHER, model__scan=not scan)
    state["params"]["encoder"] = laid_out(state["params"]["encoder"], not scan)
    with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state, 3, plain.to_plain(config))
    method = build.method(build.completed(settings("salt", salt__teacher=str(tmp_path), model__scan=scan)))
    fresh = State(0, method.init(jax.random.key(0)), method.init_target({}, jax.random.key(0)), None)
    begun = method.begin(fresh, lambda: None)
    jax.tree.map(np.testing.assert_array_equal, laid_out(begun.target, not scan), state["params"]["encoder"])


def test_training_states_that_are_not_i_jepas_are_left_out_of_its_format(pixels, salt, tmp_path):
    for of, (workdir, report) in {"pixel prediction": pixels, "SALT": salt}.items():
        folder = tmp_path / of
        written = convert.export_weights(str(workdir), str(folder), "reference")
        assert written["left_out"][0] == f"the predictor, and what else {of} trains by" and len(written["left_out"]) == 2
        assert written["encoder_digest"] == report["encoder_digest"]
        found = convert.read_foreign(str(folder / "checkpoint.pth.tar"))
        assert found.training is None  # the encoder stands for both, as for others that come without


def test_a_random_teacher_is_as_large_as_the_student():
    config = build.completed(settings("salt", salt__teacher="random", model__init="fan_in"))
    method = build.method(config)
    params = method.init(jax.random.key(0))
    teacher = method.init_target(params, jax.random.key(0))
    assert jax.tree.map(jnp.shape, teacher) == jax.tree.map(jnp.shape, params["encoder"])
    kernels = [tree["blocks"]["0"]["fc1"]["kernel"] for tree in (teacher, params["encoder"])]
    assert np.any(kernels[0] != kernels[1])
    np.testing.assert_allclose([kernel.std() for kernel in kernels], 32**-0.5, rtol=0.05)  # of its 32 inputs


def test_teachers_that_do_not_fit_are_one_line(pixels, tmp_path):
    for changes, line in (
        ({}, "salt.teacher is missing: give the workdir of a run whose encoder is the teacher, or 'random'"),
        ({"salt__teacher": str(pixels[0]), "model__patch": 8}, r"in 8x8 patches, the encoder for 32x32 in 4x4: both must be"),
        ({"salt__teacher": str(pixels[0]), "data__mean": (0.1, 0.1, 0.1)}, r"give these, instead of 3, \(0.1, 0.1, 0.1\)"),
        ({"salt__teacher": str(pixels[0]), "salt__step": 7}, "has no checkpoint of step 7"),
        ({"salt__teacher": str(tmp_path / "nowhere")}, "nowhere"),
    ):
        with pytest.raises((ValueError, OSError, RuntimeError), match=line) as caught:
            build.completed(settings("salt", **changes))
        assert "\n" not in str(caught.value)
