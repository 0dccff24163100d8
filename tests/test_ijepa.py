"""The objective: what it sees, what it ignores, where gradients go."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ijepa_jax.methods.ijepa import LAST_BLOCKS, IJepa, whitened, whitening_of
from ijepa_jax.model.vit import normalise
from tests import small


def setup(**changes):
    method = small.method(**changes)
    return method, jax.jit(method.init)(jax.random.key(0)), jax.tree.map(jnp.asarray, small.batch(method))


def loss(method, params, batch, target=None):
    run = jax.jit(method.loss)
    return run(params, method.target(params) if target is None else target, batch, jax.random.key(1))


def test_loss_is_the_mean_over_all_valid_tokens_and_features():
    method, params, batch = setup(masks={"num_targets": 3, "num_context_blocks": 2})

    @jax.jit
    def outputs(params, batch):
        images = normalise(batch["image"], method.mean, method.std)
        context = method.encode_context(params["encoder"], images, batch, jax.random.key(1))
        return method.encode_target(params["encoder"], images), method.predict(params["predictor"], context, batch)

    encoded, prediction = jax.device_get(outputs(params, batch))
    np.testing.assert_allclose(encoded.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(encoded.var(-1), 1, atol=1e-2)
    total, count = 0.0, 0
    for b in range(4):
        for m in range(3):
            for t in range(int(batch["target_length"][b, m])):
                for c in range(2):
                    error = np.abs(prediction[b, m, c, t] - encoded[b, batch["target"][b, m, t]])
                    total += np.where(error < 1, 0.5 * error**2, error - 0.5).sum()
                    count += error.size
    np.testing.assert_allclose(loss(method, params, batch)[0], total / count, rtol=1e-5)
    assert count == int(method.weight(batch)) * 16 * 2


@pytest.mark.parametrize(
    "changes", [{}, {"target_last_block": "distinct"}, {"target_float8": True}, {"target_norm": "whiten"}], ids=str
)
def test_the_target_gets_no_gradient(changes):
    method, params, batch = setup()
    method = dataclasses.replace(method, **changes)
    gradient = jax.grad(lambda target: loss(method, params, batch, target)[0])(params["encoder"])
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


def test_the_context_encoder_sees_the_context_only():
    method, params, batch = setup()
    images = normalise(batch["image"], method.mean, method.std)

    def predicted(images):
        context = method.encode_context(params["encoder"], images, batch, jax.random.key(0))
        return jnp.square(method.predict(params["predictor"], context, batch)).sum()

    gradient = np.abs(jax.grad(predicted)(images)).reshape(4, 6, 4, 6, 4, 3).sum((2, 4, 5)).reshape(4, 36)
    seen = np.zeros((4, 36), bool)
    np.put_along_axis(seen, np.asarray(batch["context"])[:, 0], True, 1)
    assert (gradient[~seen] == 0).all() and (gradient[seen] > 0).all()


def test_the_target_encoder_sees_everything():
    method, params, batch = setup()
    images = normalise(batch["image"], method.mean, method.std)
    of_one_token = lambda images: method.encode_target(params["encoder"], images)[:, 0, 0].sum()  # noqa: E731
    encoded = np.asarray(method.encode_target(params["encoder"], images))
    changed = np.asarray(method.encode_target(params["encoder"], images.at[:, -4:, -4:].add(1.0)))
    assert np.abs(changed[:, 0] - encoded[:, 0]).max() > 0  # far from the pixels that changed
    assert float(of_one_token(images)) == pytest.approx(encoded[:, 0, 0].sum(), abs=1e-4)


def test_padded_targets_do_not_count():
    method, params, batch = setup()
    longest = batch["target"].shape[-1]
    padding = jnp.arange(longest)[None, None] >= batch["target_length"][..., None]
    assert padding.any()
    other = {**batch, "target": jnp.where(padding, 0, batch["target"])}
    np.testing.assert_allclose(loss(method, params, other)[0], loss(method, params, batch)[0], rtol=1e-6)


def test_pad_mode_equals_a_full_context_of_the_same_patches():
    method, params, batch = setup(masks={"mode": "pad"})
    assert batch["context_length"].shape == (4, 1)
    batch = {name: x[:2] for name, x in batch.items()}
    gradient_of = jax.jit(jax.value_and_grad(lambda p, batch: loss(method, p, batch)[0]))
    value, gradient = gradient_of(params, batch)
    parts, weights = [], []
    for b in range(2):
        one = {name: x[b : b + 1] for name, x in batch.items()}
        one["context"] = one["context"][:, :, : int(one.pop("context_length")[0, 0])]
        parts.append(gradient_of(params, one))
        weights.append(float(method.weight(one) / method.weight(batch)))
    np.testing.assert_allclose(value, sum(w * v for w, (v, _) in zip(weights, parts, strict=True)), rtol=1e-5)
    expected = jax.tree.map(lambda *leaves: sum(w * x for w, x in zip(weights, leaves, strict=True)), *(g for _, g in parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), gradient, expected)


def test_metrics_tell_collapse():
    method, params, batch = setup()
    _, healthy = loss(method, params, batch)
    flat = jax.tree.map(jnp.zeros_like, params["encoder"])
    _, collapsed = loss(method, params, batch, flat)
    assert collapsed["target_std"] < 1e-3 < 0.1 < healthy["target_std"]
    assert collapsed["target_image_std"] < 1e-3 < healthy["target_image_std"]


@pytest.mark.parametrize("channels, image", [(1, (24, 24)), (5, (16, 32))])
def test_channels_and_sizes_are_settings(channels, image):
    method, params, batch = setup(channels=channels, image=image, masks={"context_patches": 6})
    assert params["encoder"]["patch_embed"]["kernel"].shape == (16 * channels, 16)
    assert np.isfinite(loss(method, params, batch)[0])


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="one value for each of 1 channels"):
        dataclasses.replace(small.method(), channels=1)
    with pytest.raises(ValueError, match="init_scheme 'xavier'"):
        dataclasses.replace(small.method(), init_scheme="xavier")


@pytest.mark.parametrize("scan", [False, True])
def test_initialisation_by_fan_in_keeps_the_scale_of_what_passes_a_layer(scan):
    method = dataclasses.replace(small.method(width=64, depth=3, scan=scan), init_scheme="fan_in")
    params = method.init(jax.random.key(0))
    kernels = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]
    assert len(kernels) > 4 and {path[0].key for path, _ in kernels} == {"encoder", "predictor"}
    for path, leaf in kernels:
        np.testing.assert_allclose(leaf.std() * leaf.shape[-2] ** 0.5, 1, atol=4 / leaf.size**0.5, err_msg=str(path))
    usual = dataclasses.replace(method, init_scheme="normal").init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, usual["encoder"]["norm"], params["encoder"]["norm"])
    np.testing.assert_array_equal(usual["predictor"]["mask_token"], params["predictor"]["mask_token"])


def whiten(tokens, **options) -> np.ndarray:
    tokens = jnp.asarray(tokens, jnp.float32)
    return np.asarray(whitened(tokens, whitening_of(tokens, **options)), np.float64)


def test_whitened_tokens_tell_as_much_in_every_direction():
    rng = np.random.default_rng(0)
    mixed = np.linalg.qr(rng.normal(size=(6, 6)))[0] * [3, 2, 1, 1, 0.7, 0.5]  # features that are correlated
    tokens = (rng.normal(size=(500, 6)) @ mixed.T * [1, 2, 5, 10, 1, 1] + [0, 0, 0, 0, 0, 2000]).reshape(20, 25, 6)
    plain = (tokens - tokens.mean((0, 1))).reshape(500, 6) / tokens.std((0, 1))
    values, axes = np.linalg.eigh(plain.T @ plain / 500)
    found = whiten(tokens, floor=0.0).reshape(500, 6)
    np.testing.assert_allclose(found, plain @ axes / np.sqrt(values) @ axes.T, atol=5e-3)
    np.testing.assert_allclose(found.T @ found / 500, np.eye(6), atol=5e-3)


def test_directions_of_which_there_is_nothing_stay_so_when_whitened():
    few = np.random.default_rng(0).normal(size=(20, 25, 2)) @ np.random.default_rng(1).normal(size=(2, 6))
    found = whiten(few).reshape(500, 6)
    np.testing.assert_allclose(np.linalg.eigvalsh(found.T @ found / 500), [0, 0, 0, 0, 1, 1], atol=0.02)
    assert not whiten(np.ones((2, 3, 4))).any()
    wide = np.random.default_rng(0).normal(size=(2, 40, 3)) @ np.random.default_rng(1).normal(size=(3, 512))
    assert np.isfinite(whiten(wide)).all()  # more features than tokens


def test_images_that_do_not_count_do_not_change_a_whitening():
    tokens = np.random.default_rng(0).normal(size=(5, 40, 4)) @ np.random.default_rng(1).normal(size=(4, 4))
    tokens = jnp.asarray(np.concatenate([tokens, 9 + 0 * tokens]), jnp.float32)
    found, wanted = whitening_of(tokens, jnp.arange(10) < 5), whitening_of(tokens[:5])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, wanted)


def test_the_loss_is_of_targets_that_are_whitened_over_the_batch():
    method, params, batch = setup()
    whitening = dataclasses.replace(method, target_norm="whiten")
    images = normalise(batch["image"], method.mean, method.std)
    goals = whiten(method.encode_target(params["encoder"], images))
    np.testing.assert_array_equal(
        whitening.encode_target(params["encoder"], images), method.encode_target(params["encoder"], images)
    )
    context = method.encode_context(params["encoder"], images, batch, jax.random.key(1))
    predicted = np.asarray(method.predict(params["predictor"], context, batch), np.float64)
    rows = np.arange(len(goals))[:, None, None]
    error = np.abs(predicted - goals[rows, batch["target"]][:, :, None])
    valid = np.arange(batch["target"].shape[-1]) < np.asarray(batch["target_length"])[..., None]
    huber = np.where(error < 1, 0.5 * error**2, error - 0.5).mean(axis=(2, 4))
    found, metrics = loss(whitening, params, batch)
    np.testing.assert_allclose(found, huber[valid].mean(), rtol=1e-4)
    usual = loss(method, params, batch)
    assert abs(found - usual[0]) > 1e-3
    assert metrics["target_std"] == usual[1]["target_std"]  # a sign of collapse that whitening does not hide


def test_whitening_is_refused_where_not_all_of_a_batch_is_seen():
    method = dataclasses.replace(small.method(), target_norm="whiten")
    assert small.method().additive and not method.additive
    with pytest.raises(ValueError, match="target.norm 'whitten' must be one of layer, whiten"):
        dataclasses.replace(method, target_norm="whitten")
    with pytest.raises(ValueError, match="target.norm 'whiten' takes all tokens: target.last_block 'all', not 'distinct'"):
        dataclasses.replace(method, target_last_block="distinct")
    with pytest.raises(ValueError, match="'whiten' is over a whole batch, which optim.accumulation 2 divides"):
        IJepa.from_settings(small.config(target__norm="whiten", optim__accumulation=2))


@pytest.mark.parametrize("mode", ["subset", "raster"])
def test_the_targets_last_block_may_be_computed_where_it_is_read(mode):
    method, params, batch = setup(masks={"mode": mode})
    target = jax.tree.map(lambda leaf: 3 * leaf, params["encoder"])
    images = normalise(batch["image"], method.mean, method.std)
    goals = {}
    for name in LAST_BLOCKS:
        less = dataclasses.replace(method, target_last_block=name)
        wanted, place = less._wanted(batch)
        goals[name] = less.gather_targets(less.encode_target(target, images, wanted), place)
        np.testing.assert_allclose(loss(less, params, batch, target)[0], loss(method, params, batch, target)[0], rtol=1e-5)
    np.testing.assert_allclose(goals["targets"], goals["all"], atol=1e-5)
    np.testing.assert_allclose(goals["distinct"], goals["all"], atol=1e-5)


def test_targets_that_are_not_those_wanted_are_refused():
    class All(IJepa):
        def encode_target(self, target, images, wanted=None):
            return super().encode_target(target, images)

    method, params, batch = setup(masks={"num_targets": 2})
    fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    np.testing.assert_allclose(loss(All(**fields), params, batch)[0], loss(method, params, batch)[0], rtol=1e-6)
    for name in ("targets", "distinct"):
        with pytest.raises(ValueError, match=r"encode_target gives 36 tokens, not the \d+ of `wanted`: honour that, or leave"):
            loss(All(**{**fields, "target_last_block": name}), params, batch)
    many = small.method(masks={"num_targets": 9, "context_patches": 4})  # whose targets are more than all patches
    many = dataclasses.replace(many, target_last_block="targets")
    batch = small.batch(many)
    assert many._wanted(batch)[0] is None and np.isfinite(loss(many, many.init(jax.random.key(0)), batch)[0])


def test_distinct_targets_need_contexts_that_they_do_not_overlap():
    with pytest.raises(ValueError, match="'twice' must be one of all, targets, distinct"):
        dataclasses.replace(small.method(), target_last_block="twice")
    for masks in ({"mode": "reference"}, {"num_context_blocks": 2}, {"mode": "pad"}):
        with pytest.raises(ValueError, match="needs masks.num_context_blocks 1"):
            dataclasses.replace(small.method(masks=masks), target_last_block="distinct")


def test_eight_bits_in_the_target_encoder_change_targets_a_little_and_each_image_by_itself():
    method, params, batch = setup()
    rounded = dataclasses.replace(method, target_float8=True)
    target = jax.tree.map(lambda leaf: 3 * leaf, params["encoder"])
    images = normalise(batch["image"], method.mean, method.std)
    exact, other = (one.encode_target(target, images) for one in (method, rounded))
    assert 1e-3 < np.abs(exact - other).mean() < 0.1
    np.testing.assert_allclose(rounded.encode_target(target, images[:1]), other[:1], atol=1e-5)


def test_the_metric_of_images_is_left_out_where_not_all_patches_are_there():
    method, params, batch = setup(masks={"num_targets": 2})
    assert "target_image_std" in loss(method, params, batch)[1]
    for name in ("targets", "distinct"):
        assert "target_image_std" not in loss(dataclasses.replace(method, target_last_block=name), params, batch)[1]
