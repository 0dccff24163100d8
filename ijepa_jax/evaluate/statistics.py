"""How sure a result is: bootstrap intervals over test images, several seeds, and paired differences between encoders.

Scores are numbers per test image, such as 1 where a probe was right and 0 where it was wrong. All results are in their units.
"""

import numpy as np

_AT_ONCE = 2**20  # resampled scores held at once


def interval(scores, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval (Efron 1979) of the mean score over test images: (low, high).

    It says how far the mean would move with another draw of as many test images. Scores are float or bool [N], or [S, N] for S
    seeds, which are averaged per image first: the spread between seeds is not in it (see `summarise`). The same `seed` gives
    the same interval.

    Raises:
      ValueError: scores that are empty, not finite, or not of one or two dimensions; `level` not between 0 and 1; no resamples.
    """
    return _interval(_per_image(scores, "scores"), level, resamples, seed)


def summarise(scores, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> dict:
    """What a report says of scores float or bool [N] or [S, N] (S seeds), as plain numbers and lists.

    Returns:
      `mean`, `interval` ([low, high], see `interval`), and, for two seeds or more, `seeds` (the mean of each) and `seed_std`
      (their sample standard deviation).

    Raises:
      ValueError: as `interval`.
    """
    mean = _per_image(scores, "scores")
    summary = {"mean": float(mean.mean()), "interval": list(_interval(mean, level, resamples, seed))}
    scores = np.asarray(scores, np.float64)
    if scores.ndim == 2 and len(scores) > 1:
        seeds = scores.mean(axis=1)
        summary |= {"seeds": seeds.tolist(), "seed_std": float(seeds.std(ddof=1))}
    return summary


def paired_difference(a, b, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """By how much scores `a` exceed scores `b` of the same images in the same order: (mean of a - b, its bootstrap interval).

    An interval above 0 says that `a` is better, also where the two intervals of their own overlap: images that are hard for
    both cancel. Each is float or bool [N] or [seeds, N], averaged over its own seeds first.

    Raises:
      ValueError: as `interval`, and for different numbers of images.
    """
    a, b = _per_image(a, "the first scores"), _per_image(b, "the second scores")
    if len(a) != len(b):
        raise ValueError(f"a paired difference needs scores of the same images; got {len(a)} and {len(b)}")
    difference = a - b
    return float(difference.mean()), _interval(difference, level, resamples, seed)


def _per_image(scores, name: str) -> np.ndarray:
    """Scores as float64 [N], averaged over seeds; ValueError, naming them, where there is nothing to average."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim not in (1, 2):
        raise ValueError(f"{name} must have shape [images] or [seeds, images]; got {list(scores.shape)}")
    if not scores.size:
        raise ValueError(f"{name} are empty: shape {list(scores.shape)}")
    bad = np.count_nonzero(~np.isfinite(scores))
    if bad:
        raise ValueError(f"{bad} of {scores.size} of {name} are NaN or infinite")
    return scores if scores.ndim == 1 else scores.mean(axis=0)


def _interval(scores: np.ndarray, level: float, resamples: int, seed: int) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval must be between 0 and 1; got {level}")
    if resamples < 1:
        raise ValueError(f"an interval needs at least 1 resample; got {resamples}")
    # the numbers of scipy.stats.bootstrap, whose import would take longer than all else that a run reads at its start
    rng, at_once, means = np.random.default_rng(seed), max(1, _AT_ONCE // len(scores)), []
    for first in range(0, resamples, at_once):
        drawn = rng.integers(0, len(scores), (min(at_once, resamples - first), len(scores)))
        means.append(scores[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
