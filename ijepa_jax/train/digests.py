"""Checksums and digests of parameters: of what was saved, and of what a run came to."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.devices import processes
from ijepa_jax.model import positions
from ijepa_jax.model.encoder import Encoder
from ijepa_jax.model.stacks import unstacked
from ijepa_jax.model.vit import ViT
from ijepa_jax.train.step import State


def leaves_of(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def name_of(path: Any, leaf: Any) -> str:
    """'params/encoder/norm/bias float32[96]'."""
    shape = ",".join(map(str, leaf.shape))
    return f"{jax.tree_util.keystr(path, simple=True, separator='/')} {jnp.dtype(leaf.dtype)}[{shape}]"


@jax.jit
def _leaf_sums(state: State) -> list[jax.Array]:
    """For each leaf, the sum modulo 2**32 of its bit patterns: the same on any mesh, changed by any flipped bit."""
    return [
        jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32).sum(dtype=jnp.uint32)
        for leaf in jax.tree.leaves(state)
    ]


def fingerprint(state: Any) -> dict[str, int]:
    """A checksum of every leaf by its name, dtype and shape, computed where the state lies: on devices, or on the host."""
    leaves = leaves_of(state)
    if all(isinstance(leaf, np.ndarray) for _, leaf in leaves):
        words = (np.ascontiguousarray(leaf).view(f"uint{8 * leaf.dtype.itemsize}") for _, leaf in leaves)
        sums = [int(word.sum(dtype=np.uint32)) for word in words]
    else:
        sums = [int(x) for x in jax.device_get(_leaf_sums(state))]
    return dict(zip((name_of(*leaf) for leaf in leaves), sums, strict=True))


def digest_of(params: Any) -> str:
    """sha256 over the leaves of a parameter tree (NumPy or JAX), in the order of their paths; all processes must call it."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(_on_host(leaf)).tobytes())
    return digest.hexdigest()


def encoder_digest(params: dict, encoder: Encoder) -> str:
    """`digest_of` an encoder alone: our ViT's is the same however its blocks are stacked and its positions computed or kept."""
    network = encoder.network
    if not isinstance(network, ViT):
        return digest_of(params)
    none = {"class_position": np.zeros(network.width, np.float32)} if network.class_token else {}
    tree = {"positions": positions.sincos(network.width, network.trained_grid), **none, **params}
    if "scanned" in tree["blocks"]:
        tree = unstacked({**tree, "blocks": jax.tree.map(_on_host, tree["blocks"])})
    return digest_of(tree)


def _on_host(leaf: Any) -> np.ndarray:
    return processes.fetch(leaf) if isinstance(leaf, jax.Array) else leaf
