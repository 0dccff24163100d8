"""Objectives. A method is a frozen dataclass with this small contract; the training step knows none by name."""

from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np

from ijepa_jax.methods.ijepa import IJepa
from ijepa_jax.methods.rcdm import Rcdm

__all__ = ["IJepa", "Method", "Rcdm"]

Params = dict[str, dict]
Batch = dict[str, jax.Array]


class Method(Protocol):
    """What a training step asks of an objective."""

    @property
    def additive(self) -> bool:
        """Whether a batch's loss is the mean of its parts', by their `weight`: if not, gradients cannot be accumulated."""

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, as named sub-trees."""

    def target(self, params: Params) -> dict | None:
        """The sub-tree that an exponential moving average follows, or None."""

    def weight(self, batch: Batch) -> jax.Array:
        """How much a part of a batch counts in the whole one's loss: parts are averaged with these weights."""

    def loss(self, params: Params, target: dict | None, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The scalar loss of a batch and scalar metrics."""

    def prepare(self) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """The host-side function that makes a batch's masks or views from global example indices [B]."""
