import json

import numpy as np
import pytest
from scipy.stats import bootstrap

from ijepa_jax.evaluate import statistics


def right(count, probability, seed=0):
    return np.random.default_rng(seed).random(count) < probability


def draw_right(rng):
    return rng.random(300) < 0.8


def draw_real(rng):
    return rng.gamma(4, 0.2, size=300)


@pytest.mark.parametrize("draw", [draw_right, draw_real])
def test_the_interval_holds_the_truth_as_often_as_it_says(draw):
    rng = np.random.default_rng(0)
    trials = 600
    intervals = np.array([statistics.interval(draw(rng), resamples=400, seed=trial) for trial in range(trials)])
    held = np.mean((intervals[:, 0] <= 0.8) & (intervals[:, 1] >= 0.8))
    error = np.sqrt(0.95 * 0.05 / trials)  # binomial; the percentile bootstrap itself is about half a per cent short at N = 300
    assert 0.945 - 3 * error < held < 0.95 + 3 * error


@pytest.mark.parametrize("level", [0.68, 0.95])
@pytest.mark.parametrize("draw", [lambda rng: rng.random(5000) < 0.7, lambda rng: rng.normal(size=5000)])
def test_large_samples_have_the_normal_interval(draw, level):
    scores = draw(np.random.default_rng(0))
    half = {0.68: 0.99446, 0.95: 1.95996}[level] * scores.std() / np.sqrt(len(scores))
    low, high = statistics.interval(scores, level=level, resamples=4000)
    # Of 4,000 resamples, a quantile is off by about 4% of the half width.
    np.testing.assert_allclose([low, high], scores.mean() + half * np.array([-1, 1]), rtol=0, atol=0.1 * half)


@pytest.mark.parametrize("scores", [right(500, 0.6), np.random.default_rng(0).normal(size=500)], ids=["0/1", "real"])
def test_one_seed_one_interval(scores, monkeypatch):
    first = statistics.interval(scores, seed=3)
    assert first == statistics.interval(scores, seed=3)
    assert first != statistics.interval(scores, seed=4)
    monkeypatch.setattr(statistics, "_AT_ONCE", 7 * len(scores))  # what is drawn at once does not change it
    assert first == statistics.interval(scores, seed=3)


def test_intervals_are_scipy_s():
    scores = np.random.default_rng(0).normal(size=300)
    options = {"n_resamples": 500, "method": "percentile", "confidence_level": 0.9, "rng": np.random.default_rng(7)}
    expected = bootstrap((scores,), np.mean, **options).confidence_interval
    np.testing.assert_allclose(statistics.interval(scores, level=0.9, resamples=500, seed=7), expected, rtol=1e-12)


def test_units_are_those_of_the_scores():
    scores = right(400, 0.3)
    np.testing.assert_allclose(statistics.interval(100 * scores), 100 * np.array(statistics.interval(scores)), rtol=1e-12)
    assert statistics.interval(np.ones(50)) == (1, 1)


def test_seeds_are_averaged_per_image():
    image = np.random.default_rng(0).random(400)
    seeds = np.random.default_rng(1).random((3, 400)) < image
    summary = statistics.summarise(seeds)
    assert summary["interval"] == list(statistics.interval(seeds)) == list(statistics.interval(seeds.mean(axis=0)))
    np.testing.assert_allclose(summary["mean"], seeds.mean())
    np.testing.assert_allclose(summary["seeds"], seeds.mean(axis=1))
    np.testing.assert_allclose(summary["seed_std"], np.std(seeds.mean(axis=1), ddof=1))
    assert json.loads(json.dumps(summary)) == summary


def test_one_seed_has_no_spread_of_seeds():
    scores = right(100, 0.5)
    assert statistics.summarise(scores) == statistics.summarise(scores[None])
    assert sorted(statistics.summarise(scores)) == ["interval", "mean"]


def test_pairing_sees_what_two_intervals_do_not():
    hard = right(2000, 0.5)
    worse = ~hard
    better = worse | right(2000, 0.03, seed=1)  # rights a few of the images that the other misses, and loses none
    assert statistics.interval(worse)[1] > statistics.interval(better)[0]
    difference, (low, high) = statistics.paired_difference(better, worse)
    assert 0 < low < difference < high
    np.testing.assert_allclose(difference, better.mean() - worse.mean(), rtol=1e-12)
    against, (below, above) = statistics.paired_difference(worse, better)
    assert against == -difference
    assert below < above < 0


def test_a_paired_difference_may_have_seeds_on_one_side():
    seeds, baseline = np.random.default_rng(0).random((3, 200)) < 0.7, right(200, 0.6)
    difference, (low, high) = statistics.paired_difference(seeds, baseline)
    np.testing.assert_allclose(difference, seeds.mean() - baseline.mean(), rtol=1e-12)
    assert low < difference < high
    assert statistics.paired_difference(baseline, baseline) == (0, (0, 0))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "empty"),
        (np.zeros((2, 0)), "empty"),
        ([1, np.nan, np.inf], "2 of 3"),
        (np.zeros((1, 2, 3)), "shape"),
        (1.0, "shape"),
    ],
)
def test_bad_scores_are_named(scores, message):
    for function in (statistics.interval, statistics.summarise):
        with pytest.raises(ValueError, match=message):
            function(scores)
    with pytest.raises(ValueError, match=f"second scores.*{message}|{message}.*second scores"):
        statistics.paired_difference([1.0], scores)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="same images; got 3 and 4"):
        statistics.paired_difference(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="level"):
        statistics.interval([0, 1], level=95)
    with pytest.raises(ValueError, match="resample"):
        statistics.interval([0, 1], resamples=0)
