"""Fine-tuning: the encoder itself is trained to classify, all of it, from a checkpoint or from random weights.

The recipes of the paper's appendix A: layer-wise decay, drop path, label smoothing, and, with all labels, mixup and cutmix.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
import optax

from ijepa_jax.evaluate.augment import mix
from ijepa_jax.methods import Method
from ijepa_jax.methods.optim import Optimizer, decay_mask, scale_by_layer, warmup_cosine
from ijepa_jax.model.encoder import Encoder
from ijepa_jax.model.layers import Dense
from ijepa_jax.model.vit import normalise


@dataclasses.dataclass(frozen=True)
class FineTuned(Method):
    """A method (see methods/contract.py): the encoder, its patches averaged, and a linear head for each task.

    A batch holds `image` (or video, signal) and the labels by task.
    """

    tuned: Encoder
    tasks: tuple[tuple[str, int], ...]  # names and numbers of classes
    mixup: float
    cutmix: float
    smoothing: float

    def init(self, key: jax.Array) -> dict:
        """Fresh parameters: {"encoder": tree, "heads": tree}; the heads start at zero."""
        width = self.tuned.network.width
        heads = {task: {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)} for task, classes in self.tasks}
        return {"encoder": self.tuned.init(key), "heads": heads}

    def loss(self, params: dict, target: None, batch: Mapping[str, jax.Array], key: jax.Array):
        """The mean cross-entropy with mixed and smoothed labels, over tasks too."""
        mix_key, drop_key = jax.random.split(key)
        images = normalise(batch[self.tuned.modality], self.tuned.mean, self.tuned.std)
        strengths = {"mixup": self.mixup, "cutmix": self.cutmix, "smoothing": self.smoothing}
        goals = {}
        for task, classes in self.tasks:  # of one key, so that all tasks' labels are mixed as the images are
            mixed, goals[task] = mix(images, batch[task], mix_key, classes=classes, **strengths)
        logits = self.logits(params, mixed, drop_key)
        losses = [optax.softmax_cross_entropy(logits[task], goals[task]).mean() for task, _ in self.tasks]
        return sum(losses) / len(losses), {}

    def logits(self, params: dict, images: jax.Array, drop_key: jax.Array | None = None) -> dict[str, jax.Array]:
        """[B, classes] by task; with a key, drop path acts."""
        images = normalise(images, self.tuned.mean, self.tuned.std)
        train = {} if drop_key is None else {"train": True, "rngs": {"drop_path": drop_key}}
        tokens = self.tuned.network.apply({"params": params["encoder"]}, images, **train)
        pooled = tokens.astype(jnp.float32).mean(axis=1)
        heads = {task: Dense(classes, jnp.float32, automatic=self.tuned.network.automatic) for task, classes in self.tasks}
        return {task: head.apply({"params": params["heads"][task]}, pooled) for task, head in heads.items()}


def make_optimizer(settings: ml_collections.ConfigDict, steps_per_epoch: int, steps: int, depth: int) -> Optimizer:
    """AdamW with warm-up, cosine and layer-wise decay."""
    warmup = min(settings.warmup * steps_per_epoch, steps // 2)
    learning_rate = warmup_cosine(0.0, settings.learning_rate, 1e-6, warmup, steps)
    adamw = optax.adamw(learning_rate, weight_decay=settings.weight_decay, mask=decay_mask)
    transformation = optax.chain(adamw, scale_by_layer(settings.layer_decay, depth))
    return Optimizer(transformation, learning_rate, lambda step: settings.weight_decay, lambda step: 1.0)
