"""The attentive probe of V-JEPA (Bardes et al. 2024, arXiv 2404.08471): one learned query looks at all frozen patches."""

import dataclasses
from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ijepa_jax.methods import Method
from ijepa_jax.model.attention import matmul_precision
from ijepa_jax.model.layers import Dense, LayerNorm, gelu


class Pooler(nn.Module):
    """A learned query, one block of cross-attention and an MLP, then a linear head: [B, N, D] -> [B, classes]."""

    heads: int
    classes: int
    epsilon: float = 1e-6
    automatic: bool = False  # whether gradients are JAX's, see model/layers.py

    @nn.compact
    def __call__(self, tokens_bnd: jax.Array) -> jax.Array:
        b, n, width = tokens_bnd.shape
        query = self.param("query", nn.initializers.normal(0.02), (width,))
        dense = partial(Dense, dtype=jnp.float32, automatic=self.automatic)
        norm = partial(LayerNorm, self.epsilon, jnp.float32, self.automatic)
        q = dense(width, name="q")(query[None]).reshape(self.heads, -1)
        kv = dense(2 * width, name="kv")(norm(name="norm1")(tokens_bnd)).reshape(b, n, 2, self.heads, -1)
        precision = matmul_precision(jnp.float32)
        logits = jnp.einsum("hd,bnhd->bhn", q, kv[:, :, 0], precision=precision) * q.shape[-1] ** -0.5
        pooled = jnp.einsum("bhn,bnhd->bhd", jax.nn.softmax(logits), kv[:, :, 1], precision=precision)
        x = query[None] + pooled.reshape(b, width)
        y = dense(4 * width, name="fc1")(norm(name="norm2")(x))
        x = x + dense(width, name="fc2")(gelu(y))
        return dense(self.classes, name="head")(x)


@dataclasses.dataclass(frozen=True)
class Attentive(Method):
    """A method (see methods/contract.py) that trains one probe for each task, on `patches` and labels by task."""

    tasks: tuple[tuple[str, int], ...]  # names and numbers of classes
    heads: int
    width: int
    automatic: bool = False

    def pooler(self, classes: int) -> Pooler:
        """The network of a task."""
        return Pooler(self.heads, classes, automatic=self.automatic)

    def init(self, key: jax.Array) -> dict:
        """Fresh parameters by task."""
        tokens = jnp.zeros((1, 1, self.width))
        keys = jax.random.split(key, len(self.tasks))
        return {
            task: self.pooler(classes).init(k, tokens)["params"] for k, (task, classes) in zip(keys, self.tasks, strict=True)
        }

    def loss(self, params: dict, target: None, batch: Mapping[str, jax.Array], key: jax.Array):
        """The mean cross-entropy, over tasks too."""
        logits = self.logits(params, batch["patches"])
        losses = [optax.softmax_cross_entropy_with_integer_labels(logits[task], batch[task]).mean() for task, _ in self.tasks]
        return sum(losses) / len(losses), {}

    def logits(self, params: dict, patches: jax.Array) -> dict[str, jax.Array]:
        """[B, classes] by task."""
        return {task: self.pooler(classes).apply({"params": params[task]}, patches) for task, classes in self.tasks}
