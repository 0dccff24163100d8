"""Methods on trial are what they say, and I-JEPA where nothing is changed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ijepa_jax import build
from ijepa_jax.methods import IJepa
from tests import trials
from tests.small import batch, config, method


def trial(**changes) -> trials.Trial:
    """Of the small method, with fields changed."""
    base = method()
    return trials.Trial(**{field.name: getattr(base, field.name) for field in dataclasses.fields(base)} | changes)


def loss_of(of: IJepa) -> tuple[float, dict]:
    params = of.init(jax.random.key(0))
    return jax.jit(of.loss)(params, of.target(params), batch(of), jax.random.key(1))


def test_a_trial_of_nothing_is_ijepa():
    wanted, metrics = loss_of(method())
    loss, found = loss_of(trial())
    np.testing.assert_allclose([loss, found["predicted"]], wanted, rtol=1e-6)
    assert not metrics.keys() & found.keys()


@pytest.mark.parametrize(
    "change",
    [
        {"last_blocks": 2}, {"norm": "feature"}, {"target_norm": "whiten"}, {"centred": True}, {"pixels": True},
        {"error": "l1"}, {"error": "l2"}, {"error": "cosine"}, {"sigreg": 0.1}, {"variance": 1.0}, {"covariance": 100.0},
        {"embed_scale": 3.0},
    ],
    ids=str,
)  # fmt: skip
def test_every_change_acts(change):
    loss, _ = loss_of(trial(**change))
    assert np.isfinite(loss) and abs(loss - loss_of(trial())[0]) > 1e-5


def test_all_outputs_averaged_are_the_last_alone_where_there_is_one():
    of = trial(last_blocks=2)
    params, images = of.init(jax.random.key(0))["encoder"], jnp.asarray(batch(of)["image"], jnp.float32) / 100
    first, last, _ = of.network.apply({"params": params}, images, layers=True)
    wanted = (jax.nn.standardize(first, epsilon=1e-5) + jax.nn.standardize(last, epsilon=1e-5)) / 2
    np.testing.assert_allclose(of.encode_target(params, images), wanted, atol=1e-5)


def test_targets_are_changed_as_their_names_say():
    of, (b, n, d) = trial(), (5, 36, 16)
    layers = np.random.default_rng(0).normal(2, 1, size=(3, b, n, d)).astype(np.float32) * np.arange(1, d + 1)
    plain = np.asarray(of.of_layers([*map(jnp.asarray, layers)]), np.float64)
    assert np.abs(plain.mean(axis=-1)).max() < 1e-5 and np.abs(plain.std(axis=-1) - 1).max() < 1e-3
    feature = np.asarray(trial(norm="feature").of_layers([*map(jnp.asarray, layers)]), np.float64)
    np.testing.assert_allclose(feature, (plain - plain.mean(axis=(0, 1))) / plain.std(axis=(0, 1)), atol=1e-3)
    centred = plain - plain.mean(axis=0)
    wanted = (centred - centred.mean(axis=-1, keepdims=True)) / centred.std(axis=-1, keepdims=True)
    np.testing.assert_allclose(trial(centred=True).of_layers([*map(jnp.asarray, layers)]), wanted, atol=1e-3)


def test_vicregs_terms_by_hand():
    x = np.random.default_rng(0).normal(size=(200, 3)) @ [[0.5, 0.2, 0], [0, 2, 0], [0, 0, 0.1]]
    hinge, products = trials.vicreg(jnp.asarray(x))
    covariance = np.cov(x.T, ddof=0)
    np.testing.assert_allclose(hinge, np.maximum(0, 1 - np.sqrt(np.diag(covariance) + 1e-4)).mean(), rtol=1e-4)
    np.testing.assert_allclose(products, (covariance**2).sum() / 3 - (np.diag(covariance) ** 2).sum() / 3, rtol=1e-3)


def test_parts_are_initialised_by_fan_in():
    usual, changed = (built(fan_in=parts).init(jax.random.key(0)) for parts in ("", "predictor"))
    jax.tree.map(np.testing.assert_array_equal, usual["encoder"], changed["encoder"])
    kernels = (params["predictor"]["embed"]["kernel"] for params in (usual, changed))
    np.testing.assert_allclose(next(kernels) / (0.02 * 32**0.5), next(kernels), rtol=1e-6)


@pytest.mark.parametrize(
    ("custom", "says"),
    [
        ({"norm": "whitten"}, "custom.norm must be one of layer, feature, and"),
        ({"error": "l3"}, "custom.error of huber, l1, l2, cosine"),
        ({"last_blocks": 9}, "custom.last_blocks 9 must be from 1 to the 2 blocks there are"),
        ({"fan_in": "encode"}, "custom.fan_in must be of encoder,predictor"),
        ({"fan_in": "encoder", "stem": True}, "custom.fan_in must be .* without a stem"),
        ({"pixels": True, "centred": True}, "custom.pixels has targets of its own"),
    ],
)
def test_settings_that_a_trial_has_not_are_refused(custom, says):
    with pytest.raises(ValueError, match=says):
        built(**custom)


def test_a_stem_looks_into_each_patch_alone():
    network = trials.Stem(patch=4, width=16, depth=1, heads=2)
    images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    params = network.init(jax.random.key(1), images)
    alone = network.apply(params, images, jnp.array([[1]]))
    other = network.apply(params, images.at[:, :, :4].set(0), jnp.array([[1]]))
    np.testing.assert_array_equal(alone, other)  # patch 1 is the upper right one
    assert (network.apply(params, images.at[:, 0, 7].set(0), jnp.array([[1]])) != alone).any()


def test_what_tokens_hold_is_told_apart():
    """Tokens of a position, of an image, and of neither, each of variance 1, by theory."""
    b, grid, d = 400, (4, 4), 8
    place, image, noise = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(1, 16, d), (b, 1, d), (b, 16, d)])
    )
    place = (place - place.mean(axis=1, keepdims=True)) / place.std(axis=1, keepdims=True)
    of = lambda *parts: {k: float(v) for k, v in trials.inside(sum(parts) + jnp.zeros((b, 16, d)), grid).items()}  # noqa: E731
    assert of(place, noise)["position_share"] == pytest.approx(0.5, abs=0.02)
    assert of(noise)["position_share"] == pytest.approx(0, abs=0.02) and of(noise)["token_rank"] == pytest.approx(d, abs=0.1)
    assert of(place, image, noise)["token_std"] == pytest.approx(3**0.5, abs=0.03)
    assert of(image, noise)["image_share"] == pytest.approx(0.5 + 0.5 / 16, abs=0.03)  # the mean of 16 has a share of its own
    assert of(image)["neighbour_cosine"] == pytest.approx(1, abs=1e-3)
    assert of(noise)["neighbour_cosine"] == pytest.approx(0, abs=0.02)
    one = jnp.zeros((1, 1, d)).at[..., 3].set(1.0)
    assert of(noise * one)["token_rank"] == pytest.approx(1, abs=1e-3)


def test_a_batch_is_too_few_to_tell_positions_by_and_that_is_allowed_for():
    """A mean over 8 images is of the position and, by an eighth, of these images: the share must not have it."""
    shares = []
    for i in range(40):
        image, noise = (jax.random.normal(jax.random.key(2 * i + j), (8, [1, 16][j], 8)) for j in (0, 1))
        shares.append(float(trials.inside(image + noise, (4, 4))["position_share"]))
    assert np.mean(shares) == pytest.approx(0, abs=0.01)  # 0.06 if it had


def test_tokens_that_are_all_one_have_numbers():
    assert all(np.isfinite(value) for value in trials.inside(jnp.ones((4, 16, 8)), (4, 4)).values())


def test_metrics_are_of_tokens_whatever_the_targets():
    inside = {"token_rank", "position_share", "image_share"}
    usual = loss_of(trial())[1]
    for change in ({"target_norm": "whiten"}, {"centred": True}, {"last_blocks": 2}):
        changed = loss_of(trial(**change))[1]
        np.testing.assert_allclose([changed[key] for key in inside], [usual[key] for key in inside], rtol=1e-5)
    assert not loss_of(trial(pixels=True))[1].keys() & inside


def test_a_supervised_trial_learns_labels():
    parts = build.parts(build.completed(config(method="tests/trials.py:Supervised")))
    of, source = parts.method, parts.loader.open("train")
    shown = next(parts.loader.train_batches(source, of.labels, 0))
    params = of.init(jax.random.key(0))
    params["heads"] = jax.tree.map(jnp.zeros_like, params["heads"])
    loss, metrics = of.loss(params, None, shown, jax.random.key(1))
    classes = source.classes
    np.testing.assert_allclose(loss, np.mean([np.log(count) for count in classes.values()]), rtol=1e-5)  # all as likely
    task = next(iter(classes))
    bias = np.arange(classes[task]) / 10
    params["heads"][task]["bias"] = jnp.asarray(bias)
    gained = bias[shown[f"label_{task}"]].mean() - np.log(np.exp(bias).mean())
    biased = of.loss(params, None, shown, jax.random.key(1))[0]
    np.testing.assert_allclose(biased, loss - gained / len(classes), rtol=1e-5)
    assert {"token_rank", "image_share"} <= metrics.keys()


def built(kind: str = "Trial", **custom) -> IJepa:
    """A trial of the small configuration, with settings of its own."""
    settings = build.completed(config(method=f"tests/trials.py:{kind}"))
    with settings.unlocked():
        settings.custom.update(custom)
    return build.method(settings)


def test_flops_are_of_what_is_run():
    usual = built().flops()
    assert usual == build.method(build.completed(config())).flops()
    assert built(pixels=True).flops() == {part: usual[part] for part in ("context", "predictor")}
    assert built("Supervised").flops() == {"context": 3 * usual["target"]}
    of = built(sigreg=1.0)
    assert of.flops() == {**usual, "sigreg": 6 * of.masks.context_length * of.network.width * 64}
    pixels, kernels = np.prod(of.image_size), 9 * 3 * 16 + 9 * 16 * 16  # of the two convolutions
    assert built(stem=True).flops()["stem"] == 4 * 2 * pixels * (kernels + 16 * of.network.width)
    assert built(stem=True, pixels=True).flops()["stem"] == 3 * 2 * pixels * (kernels + 16 * of.network.width)


def test_a_trial_with_a_stem_has_one():
    assert {"stem1", "stem2"} <= built(stem=True).init(jax.random.key(0))["encoder"].keys()
    assert not {"stem1", "stem2"} & built().init(jax.random.key(0))["encoder"].keys()


def test_terms_on_tokens_refuse_padding():
    settings = build.completed(config(method="tests/trials.py:Trial", masks__mode="pad"))
    build.method(settings)
    settings.custom.sigreg = 0.1
    with pytest.raises(ValueError, match="masks.mode=pad adds padding"):
        build.method(settings)


def test_labels_are_those_of_the_images_that_the_loader_shows():
    settings = config(seed=3)
    parts = build.parts(build.completed(settings))
    source = parts.loader.open("train")
    labels = trials.Labels("scenes", settings.data.size, "", settings.seed, settings.optim.batch_size)
    before_last = len(source) // settings.optim.batch_size - 1  # of the first epoch
    for shown, _ in zip(parts.loader.train_batches(source, labels, before_last), range(2), strict=False):
        np.testing.assert_array_equal(shown["label_shape"], source.labels_at(shown["source"])["shape"])
