"""Counter-based random numbers for the host: pure functions of (seed, counters), vectorised over arrays of counters.

Masks, crops and generated scenes must be the same whichever worker or process makes them, so each draw is a hash of what
it is for (seed, example index, purpose, ...) instead of the next number of a generator. One `numpy.random.Generator` per
image would cost 10 microseconds by itself; hashing an array of counters costs a few nanoseconds each.
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def bits(seed: int, *counters) -> np.ndarray:
    """Hashes (seed, counters...) into uint64 random bits, with the counters' broadcast shape.

    Counters are non-negative integers or integer arrays. Give the small arrays first: each is mixed at the
    shape broadcast so far, so that only the last, largest one is mixed at full size.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 by design
        hashed = _mix(np.asarray(seed).astype(np.uint64) + _GOLDEN)
        for counter in counters:
            hashed = _mix(hashed ^ (np.asarray(counter).astype(np.uint64) * _GOLDEN + _GOLDEN))
    return hashed


def uniform(seed: int, *counters) -> np.ndarray:
    """As `bits`, but float64 numbers, uniform in [0, 1)."""
    return (bits(seed, *counters) >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX[0]
    x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    return x ^ (x >> np.uint64(31))
