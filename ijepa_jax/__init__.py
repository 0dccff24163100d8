"""ijepa_jax: the Image-based Joint-Embedding Predictive Architecture (I-JEPA) in JAX.

Nothing here reads flags or the environment, and importing this package imports no data, configuration or checkpoint
library. An encoder, from a run of ours or from weights of transformers, timm or the authors:

    encoder = ijepa_jax.load("runs/quickstart")
    images = ijepa_jax.preprocess(["a.jpg", "b.png"], encoder.image_size)
    encoder(images), encoder.patches(images), encoder.layers(images)

The pieces of training compose freely:

    sampler = ijepa_jax.masks.MaskSampler(grid=(14, 14), context_patches=48)
    method = ijepa_jax.methods.IJepa(encoder, predictor, sampler, image_size=(224, 224))
    optimizer = ijepa_jax.optim.make_optimizer(total_steps=1000, ...)
    state = ijepa_jax.init(method, optimizer, seed=0)
    step = jax.jit(functools.partial(ijepa_jax.train_step, method=method, optimizer=optimizer, seed=0), donate_argnums=0)
    state, metrics = step(state, {"image": images, **sampler(index)})
"""

from ijepa_jax import masks, methods, optim
from ijepa_jax.predictor import Predictor
from ijepa_jax.pretrained import Pretrained, load, preprocess
from ijepa_jax.step import State, init, train_step
from ijepa_jax.vit import SIZES, ViT

__all__ = [
    "SIZES", "Predictor", "Pretrained", "State", "ViT", "init", "load", "masks", "methods", "optim", "preprocess", "train_step",
]  # fmt: skip
