"""Objectives: the contract, the table of those there are, and I-JEPA. The training step knows none by name."""

from ijepa_jax.methods.contract import Arrays, Batch, Look, Method, Params
from ijepa_jax.methods.ijepa import IJepa
from ijepa_jax.methods.table import TABLE, broken, find, found_again, identity

__all__ = ["TABLE", "Arrays", "Batch", "IJepa", "Look", "Method", "Params", "broken", "find", "found_again", "identity"]
