"""Where a method's encoder lies among its parameters, found by asking it what it picks of their paths."""

from collections.abc import Callable
from typing import Any

import jax

from ijepa_jax.methods import Method

TRAINED = ("params", "target")  # parts of a state that an encoder may be taken of


class Place:
    """Stands for an array in a tree of parameters: where it lies."""

    def __init__(self, path: Any):
        self.keys = [getattr(entry, "key", getattr(entry, "idx", None)) for entry in path]
        self.path = "/".join(map(str, self.keys))

    def of(self, trees: Any) -> Any:
        """The array at this place of some trees."""
        for key in self.keys:
            trees = trees[key]
        return trees


def picked(trees: dict[str, Any], choose: Callable[[Any, Any], Any]) -> Any:
    """What is taken of some trees (params, target), as the `Place` of each array; None where it is computed, or not there."""
    named = jax.tree_util.tree_map_with_path(lambda path, _: Place(path), {key: trees.get(key) for key in TRAINED})
    try:
        chosen = choose(*(named[key] for key in TRAINED))
    except Exception:
        return None
    leaves = jax.tree.leaves(chosen)
    return chosen if leaves and all(isinstance(leaf, Place) for leaf in leaves) else None


def followed(method: Method, params: Any) -> Any:
    """The encoder that a method's target follows; that of the method where nothing is followed."""
    tree = method.target(params)
    try:
        return method.encoder(params, tree)
    except (LookupError, TypeError, AttributeError):  # what is kept beside the parameters is more than what is followed
        return tree
