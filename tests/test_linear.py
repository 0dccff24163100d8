"""The paper's linear probe: LARS as its paper has it, heads that do not know of each other, batch normalisation."""

import jax
import numpy as np
import pytest

from ijepa_jax.evaluate import linear
from ijepa_jax.evaluate.bench import shuffled
from ijepa_jax.settings.evaluation import default

TASKS = {"shape": 3}
RNG = np.random.default_rng(0)
CENTRES = 2 * RNG.normal(size=(3, 8))
LABELS = RNG.integers(0, 3, 240)
FEATURES = (CENTRES[LABELS] + RNG.normal(size=(240, 8))).astype(np.float32)


def sweep(**changes):
    settings = default("linear").linear
    settings.update({"layers": ("last",), "norms": ("none",), "learning_rates": (3.0,), "weight_decays": (0.0,), "epochs": 4})
    with settings.unlocked():
        settings.update(changes)
    return settings


def batches(settings, features=FEATURES, labels=LABELS, size=60, more=None):
    for rows in shuffled(len(labels), size, settings.epochs * (len(labels) // size), seed=3):
        yield {"last": jax.numpy.asarray(features[rows]), "shape": jax.numpy.asarray(labels[rows]), **(more or {})}


def fit(settings, batch_size=60, **data):
    return linear.fit(settings, batches(settings, **data), TASKS, batch_size=batch_size, steps_per_epoch=4, seed=1)


def test_lars_is_that_of_its_paper():
    """You et al. 2017: trust ratio 0.001 |w| / |g + wd w| on kernels, momentum 0.9 on what is already scaled by the rate."""
    settings = sweep(weight_decays=(0.01,), decay_every=2)
    state = fit(settings)
    weight = 0.01 * np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(1), 0), (8, 3)), np.float64)
    bias, momentum = np.zeros(3), {"weight": 0.0, "bias": 0.0}
    for step, batch in enumerate(batches(settings)):
        rate = 3.0 * 60 / 256 * 0.1 ** (step // 8)
        x, labels = np.asarray(batch["last"], np.float64), np.asarray(batch["shape"])
        logits = x @ weight + bias
        share = np.exp(logits - logits.max(1, keepdims=True))
        wrong = (share / share.sum(1, keepdims=True) - np.eye(3)[labels]) / len(x)
        gradient = x.T @ wrong + 0.01 * weight
        trust = 0.001 * np.linalg.norm(weight) / np.linalg.norm(gradient)
        momentum["weight"] = 0.9 * momentum["weight"] + rate * trust * gradient
        momentum["bias"] = 0.9 * momentum["bias"] + rate * wrong.sum(0)
        weight, bias = weight - momentum["weight"], bias - momentum["bias"]
    np.testing.assert_allclose(state.params["shape/last/none"]["kernel"][0], weight, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(state.params["shape/last/none"]["bias"][0], bias, rtol=2e-4, atol=1e-6)


def test_heads_do_not_know_of_each_other():
    many = sweep(norms=("none", "batch"), learning_rates=(3.0, 0.1), weight_decays=(0.0, 1e-2))
    together = fit(many).params["shape/last/none"]["kernel"]
    for i, (rate, decay) in enumerate([(3.0, 0.0), (3.0, 1e-2), (0.1, 0.0), (0.1, 1e-2)]):
        alone = fit(sweep(learning_rates=(rate,), weight_decays=(decay,))).params["shape/last/none"]["kernel"]
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-4, atol=1e-7)


def test_predictions_come_in_the_order_of_the_heads():
    settings = sweep(norms=("none", "batch"), learning_rates=(0.0, 3.0), epochs=50, decay_every=40)
    heads = linear.heads_of(settings)
    assert [(head.norm, head.learning_rate) for head in heads] == [("none", 0), ("none", 3), ("batch", 0), ("batch", 3)]
    found = linear.classify(fit(settings, batch_size=256), settings, {"last": FEATURES})["shape"]
    right = (found == LABELS).mean(axis=1)
    assert (right[[1, 3]] > 0.9).all() and (right[[0, 2]] < 0.9).all()


def test_batch_normalisation_takes_away_scale_and_offset():
    settings = sweep(norms=("batch",), epochs=50, decay_every=40)
    for features in (FEATURES, 1000 * FEATURES + 5000):
        state = fit(settings, batch_size=256, features=features)
        assert (linear.classify(state, settings, {"last": features})["shape"][0] == LABELS).mean() > 0.9
    np.testing.assert_allclose(state.running["last"]["mean"], features.mean(0), rtol=0.1)
    np.testing.assert_allclose(state.running["last"]["variance"], features.var(0), rtol=0.4)


def test_a_collapsed_encoder_gives_numbers():
    settings = sweep(norms=("none", "batch"))
    state = fit(settings, features=np.zeros_like(FEATURES))
    found = linear.classify(state, settings, {"last": np.zeros_like(FEATURES)})["shape"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)) and len(np.unique(found[0])) == 1


def test_an_epoch_shows_every_image_once():
    rows = list(shuffled(10, 3, 7, seed=0))
    assert sorted(np.concatenate(rows[:3]).tolist()) == sorted({*np.concatenate(rows[:3]).tolist()})
    assert not np.array_equal(np.concatenate(rows[:3]), np.concatenate(rows[3:6]))


@pytest.mark.parametrize("key", ["layers", "norms"])
def test_an_unknown_choice_is_named(key):
    from ijepa_jax.settings import evaluation as settings

    config = default("linear")
    config.linear[key] = ("last8",)
    with pytest.raises(ValueError, match=f"linear.{key} .* must be one or more values, one of"):
        settings.check(config)
