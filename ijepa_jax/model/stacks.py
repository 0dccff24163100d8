"""Parameter trees whose blocks are stacked, as networks that scan over them have them, and by number."""

import jax
import numpy as np


def stacked(tree: dict, *, take: bool = False) -> dict:
    """A tree with its blocks stacked, as a network that scans over them has it; `take`: leaves are taken out of the old one."""
    blocks = [tree["blocks"][str(index)] for index in range(len(tree["blocks"]))]
    return {**tree, "blocks": {"scanned": _stack(blocks, take)}}


def _stack(trees: list[dict], take: bool) -> dict:
    made = {}
    for key in [*trees[0]]:
        parts = [tree[key] for tree in trees]
        if isinstance(parts[0], dict):
            made[key] = _stack(parts, take)
            continue
        made[key] = np.stack(parts)
        for tree in trees if take else ():
            del tree[key]
    return made


def laid_out(tree: dict, scan: bool, *, take: bool = False) -> dict:
    """A tree with its blocks as a network has them that scans over them, or that does not, whichever it was made by."""
    if ("scanned" in tree["blocks"]) == scan:
        return tree
    return stacked(tree, take=take) if scan else unstacked(tree)


def unstacked(tree: dict) -> dict:
    """The same tree with its blocks by number, as names of tensors have it; one that has them so already is itself."""
    if "scanned" not in tree["blocks"]:
        return tree
    blocks = tree["blocks"]["scanned"]
    depth = len(blocks["norm1"]["scale"])
    return {
        **tree,
        "blocks": {str(index): jax.tree.map(lambda leaf, index=index: leaf[index], blocks) for index in range(depth)},
    }
