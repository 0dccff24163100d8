"""LeJEPA: the recorded statistic of the authors' code, the objective's parts, what is refused, and that it trains."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ijepa_jax import build
from ijepa_jax.interop.convert import export_weights
from ijepa_jax.interop.pretrained import load
from ijepa_jax.methods import config as config_lib
from ijepa_jax.methods.lejepa import objective
from ijepa_jax.methods.sigreg import Quadrature, directions, sigreg
from ijepa_jax.pretrain import command
from ijepa_jax.train.step import init, train_step
from tests import parity, small

RECORDING = Path(__file__).resolve().parent.parent.parent / "shared" / "parity" / "sigreg.npz"
recorded = pytest.mark.skipif(
    not RECORDING.exists(), reason="needs ../shared/parity/sigreg.npz, which is not part of the project"
)


def settings(**changes):
    """Those of a tiny run; `changes` are dotted keys with __ for the dot."""
    config = config_lib.with_method(small.config(), "lejepa")
    sizes = {"local_views": 2, "local_size": (16, 16), "embedding": 0, "projector_width": 32, "outputs": 8, "slices": 16}
    tiny = {**{f"lejepa__{name}": value for name, value in sizes.items()}, "views__kernel": 5, **changes}
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in tiny.items()})
    return config


@recorded
def test_the_recording_is_replayed_within_the_bar():
    errors = parity.replay(RECORDING)
    assert errors.keys() == {"value_error", "gradient_error", "loss_error"} and max(errors.values()) <= parity.SIGREG_BAR


@recorded
@pytest.mark.parametrize(
    "change, missed",
    [
        ({"wide/value": 1 + 1e-5}, {"value_error"}), ({"bimodal/gradient": 1 + 1e-5}, {"gradient_error"}),
        ({"views/loss_global_centre": 1 + 1e-5}, {"loss_error"}), ({"views/gradient": 1 + 1e-5}, {"gradient_error"}),
        ({"views/invariance_all_views": 1 + 1e-5}, {"loss_error"}), ({"correlated/value": np.nan}, {"value_error"}),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_number_is_noticed(change, missed):
    with np.load(RECORDING) as file:
        kept = {name: file[name] * change.get(name, 1) if name in change else file[name] for name in file.files}
    errors = parity.replay_sigreg(kept)
    assert {name for name, error in errors.items() if not error <= parity.SIGREG_BAR} == missed


@pytest.mark.parametrize("shape", [(37, 5), (2, 20, 7), (2, 3, 16, 4)])
@pytest.mark.parametrize("quadrature", [Quadrature(), Quadrature(5, 1.0), Quadrature(41, 5.0)], ids=str)
def test_the_statistic_is_its_formula(shape, quadrature):
    x = np.random.default_rng(0).normal(0.3, 1.2, shape).astype(np.float32)
    drawn = np.asarray(directions(jax.random.key(0), shape[-1], 11))
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=0), 1, rtol=1e-6)
    y = x.astype(np.float64) @ drawn
    t = np.linspace(0, quadrature.furthest, quadrature.knots)[:, None]
    window, apart = np.exp(-(t**2) / 2), []
    for samples in y.reshape(-1, *y.shape[-2:]):
        cos, sin = (function(t[..., None] * samples[None]).mean(axis=1) for function in (np.cos, np.sin))
        values = window * ((cos - window) ** 2 + sin**2)
        apart.append(shape[-2] * 2 * np.trapezoid(values, t, axis=0).mean())
    found = sigreg(x, drawn, quadrature)
    np.testing.assert_allclose(np.ravel(found), apart, rtol=2e-5)
    assert found.shape == shape[:-2]


def test_gradients_are_those_of_finite_differences():
    x = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
    drawn = directions(jax.random.key(1), 4, 300)  # more than are computed at a time
    gradient = jax.grad(lambda x: sigreg(x, drawn))(x)
    for place in ((0, 0), (5, 3), (11, 1)):
        step = np.zeros_like(x)
        step[place] = 0.02
        slope = (sigreg(x + step, drawn) - sigreg(x - step, drawn)) / 0.04
        assert slope == pytest.approx(float(gradient[place]), abs=2e-3)
    assert not np.any(jax.grad(lambda x: sigreg(x, drawn))(np.zeros((8, 4), np.float32)))  # collapse at 0 is not pushed


def test_true_normals_have_the_floor_and_others_more():
    rng = np.random.default_rng(0)
    drawn = directions(jax.random.key(0), 16, 64)
    normal = np.mean([sigreg(rng.standard_normal((256, 16)).astype(np.float32), drawn) for _ in range(10)])
    assert normal == pytest.approx(1.0525, abs=0.05)
    assert sigreg(0.7 * rng.standard_normal((256, 16)).astype(np.float32), drawn) > 2 * normal


@pytest.mark.parametrize("shape", [(4096, 16), (8, 512, 16)])
def test_memory_is_that_of_few_arrays_whatever_the_knots(shape):
    slices, sizes = 1024, []
    for knots in (5, 41):
        of = jax.jit(jax.value_and_grad(lambda x, d, n=knots: sigreg(x, d, Quadrature(n)).mean()))
        arguments = (jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((16, slices), jnp.float32))
        sizes.append(of.lower(*arguments).compile().memory_analysis().temp_size_in_bytes)
    assert max(sizes) < 4 * 4096 * slices * 2  # two arrays [N, M] in float32, where a plain program holds one a knot
    assert sizes[1] < 1.1 * sizes[0]


def test_the_two_parts_of_the_objective():
    z = np.random.default_rng(0).normal(size=(3, 32, 4)).astype(np.float32)
    drawn = directions(jax.random.key(0), 4, 16)
    for centred in (1, 2, 3):
        loss, parts = objective(z, drawn, 0.25, centred, Quadrature())
        assert parts["invariance"] == pytest.approx(np.square(z[:centred].mean(axis=0) - z).mean(), rel=1e-6)
        assert parts["sigreg"] == pytest.approx(float(sigreg(z, drawn).mean()), rel=1e-6)
        assert loss == pytest.approx(float(0.25 * parts["sigreg"] + 0.75 * parts["invariance"]), rel=1e-6)


@pytest.fixture(scope="module", params=[True, False], ids=["class token", "mean of patches"])
def method(request):
    return build.method(settings(lejepa__class_token=request.param))


def test_everything_is_trained_and_every_view_counts(method):
    params, batch = jax.jit(method.init)(jax.random.key(0)), small.batch(method, size=16)
    grad = jax.jit(jax.value_and_grad(lambda p, b: method.loss(p, None, b, jax.random.key(0))[0]))
    loss, gradients = grad(params, batch)
    still = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(gradients) if not np.any(leaf)]
    assert not still
    for name, views in batch.items():
        for number in range(views.shape[1]):
            other = views.copy()
            other[0, number] = 255 - other[0, number]
            assert grad(params, {**batch, name: other})[0] != loss
    turned = {name: views[::-1] for name, views in batch.items()}
    assert grad(params, turned)[0] == pytest.approx(float(loss), rel=1e-4)


def test_directions_are_drawn_anew_each_step(method):
    params, batch = jax.jit(method.init)(jax.random.key(0)), small.batch(method, size=16)
    loss = jax.jit(lambda key: method.loss(params, None, batch, key)[1])
    first, again, other = (loss(jax.random.key(key)) for key in (0, 0, 1))
    assert first["sigreg"] == again["sigreg"] != other["sigreg"] and first["invariance"] == other["invariance"]


def test_probes_read_the_backbone(method):
    params = jax.eval_shape(method.init, jax.random.key(0))
    assert method.target(params) is None and method.encoder(params, None) is params["encoder"]
    assert {*params} == {"encoder", "projector"} and method.backbone().grid == (8, 8)
    kinds = ("last", "class") if method.network.class_token else ("last",)
    shapes = jax.eval_shape(
        partial(method.backbone().represent, kinds=kinds), params["encoder"], small.batch(method, size=16)["global"][:, 0]
    )
    assert {shapes[kind].shape for kind in kinds} == {(16, 32)}


def test_flops_are_those_of_all_views(method):
    # 64 patches in each of two global views, 16 in each of two local ones, of 48 values and 32 features
    one = int(method.network.class_token)
    encoder = sum(
        2 * (2 * 2 * n * 48 * 32 + 3 * 2 * (2 * (n + one) * (4 * 32**2 + 8 * 32**2) + 4 * (n + one) ** 2 * 32))
        for n in (64, 16)
    )
    head = 6 * 4 * (32 * 32 + 32 * 32 + 32 * 8)
    assert method.flops() == {"encoder": encoder, "projector": head, "sigreg": 4 * 4 * 8 * 16}


def test_it_is_trained_probed_and_drawn(tmp_path):
    whole = command.pretrain(settings(), tmp_path / "whole")
    assert whole["name"] == "LeJEPA" and whole["compilations"] == 1 and whole["steps"] == 12
    assert {"views.png", "pca.png"} <= {*whole["pictures"]} and "masks.png" not in whole["pictures"]
    small.assert_goes_on_to_the_same_bits(whole, settings(), tmp_path / "whole")
    assert (tmp_path / "whole" / "report" / "views.png").stat().st_size > 10_000
    assert whole["probes"].keys() == {"count", "distance", "shape", "colour"}
    written = export_weights(str(tmp_path / "whole"), str(tmp_path / "out"), "huggingface")
    assert "ViTMAEModel" in written["load"] and not written["left_out"]
    ours, theirs = load(tmp_path / "whole"), load(tmp_path / "out")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_allclose(ours.class_token(images), theirs.class_token(images), rtol=1e-5, atol=1e-5)


def test_derivatives_of_derivatives_where_gradients_are_automatic():
    x, drawn = jax.random.normal(jax.random.key(0), (16, 4)), directions(jax.random.key(1), 4, 8)
    of = partial(sigreg, directions_dm=drawn, automatic=True)
    gradient = jax.grad(of)
    np.testing.assert_allclose(gradient(x), jax.grad(lambda x: sigreg(x, drawn))(x), rtol=1e-5, atol=1e-7)
    along = jnp.ones_like(x)
    change, second = (jax.jvp(derived, (x,), (along,))[1] for derived in (of, gradient))
    np.testing.assert_allclose(change, (gradient(x) * along).sum(), rtol=1e-3, atol=1e-6)
    apart = (gradient(x + 1e-2 * along) - gradient(x - 1e-2 * along)) / 2e-2
    np.testing.assert_allclose(second, apart, rtol=0.02, atol=1e-3)
    with pytest.raises(ValueError, match="mean over directions: there must be one"):
        sigreg(x, drawn[:, :0])


def test_it_learns_and_refuses_accumulation(method):
    optimizer = small.optimizer()
    step = jax.jit(partial(train_step, method=method, optimizer=optimizer, seed=0))
    state, batch = init(method, optimizer, 0), small.batch(method, size=16)
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0] and step._cache_size() == 1
    with pytest.raises(ValueError, match=r"the loss of LeJepa is not known to be the mean .*accumulation 2"):
        train_step(state, batch, method=method, optimizer=optimizer, seed=0, accumulation=2)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"lejepa__local_size": (64, 64)}, "lejepa.local_size 64x64 is larger than the global views' data.image_size 32x32"),
        ({"lejepa__local_size": (18, 16)}, "lejepa.local_size: image of 18x16 pixels does not divide into patches of 4x4"),
        ({"lejepa__global_views": 1, "lejepa__local_views": 0}, "are one view: there must be two to agree"),
        ({"optim__batch_size": 8}, "optim.batch_size 8 is too small for LeJEPA's statistic: give 16 or more"),
        ({"optim__accumulation": 2}, "is of a whole batch, which optim.accumulation 2 divides: give 1"),
        ({"lejepa__slices": 0}, "lejepa.slices 0 must be a whole number from 1"),
        ({"lejepa__knots": 16}, "lejepa.knots 16 must be an odd number, 3 or more"),
        ({"lejepa__furthest": 100.0}, "lejepa.knots 17 are too few for an integral to 100"),
        ({"data__color_jitter": 0.5}, "leave data.cropping 'random' and data.color_jitter 0"),
        ({"data__cropping": "center"}, "leave data.cropping 'random' and data.color_jitter 0"),
        ({"views__kernel": 4}, "views.kernel 4 must be odd"),
        ({"views__strengths": (0.4, 0.4, 0.2, 0.6)}, "the hue's, the last, is at most 0.5"),
        ({"data__channels": 2, "data__mean": (0.5, 0.5), "data__std": (0.5, 0.5)}, "LeJEPA's views are of grey or RGB images"),
        ({"data__image_size": (8, 32, 32), "model__patch": 4}, "LeJEPA's views are of grey or RGB images"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_one_line(change, match):
    with pytest.raises(ValueError, match=match) as found:
        build.run_method(build.completed(settings(**change)))
    assert "\n" not in str(found.value)


def test_views_follow_the_settings():
    of = build.method(settings(data__flip=True, data__crop_scale=(0.4, 0.9), views__grey=0.0, views__interpolation="bilinear"))
    whole, parts = of.views()
    assert (whole.name, whole.count, whole.size, whole.scale) == ("global", 2, (32, 32), (0.4, 0.9))
    assert (parts.name, parts.count, parts.size, parts.scale) == ("local", 2, (16, 16), (0.05, 0.3))
    assert whole.flip == parts.flip == 0.5 and whole.grey == 0 and not parts.bicubic
    assert of.centred == 2 and dataclasses.replace(of, centre="all").centred == 4
    assert [view.name for view in build.method(settings(lejepa__local_views=0)).views()] == ["global"]
