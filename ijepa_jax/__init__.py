"""ijepa_jax: the Image-based Joint-Embedding Predictive Architecture (I-JEPA) in JAX.

Nothing here reads flags or the environment, and importing this package imports no data, configuration or checkpoint
library. An encoder, from a run of ours or from weights of transformers, timm or the authors:

    encoder = ijepa_jax.load("runs/quickstart")
    images = ijepa_jax.preprocess(["a.jpg", "b.png"], encoder.image_size)
    encoder(images), encoder.patches(images), encoder.layers(images)

The pieces of training compose freely:

    sampler = ijepa_jax.masks.MaskSampler(grid=(14, 14), context_patches=48)
    method = ijepa_jax.methods.IJepa(encoder, predictor, sampler, image_size=(224, 224))
    optimizer = ijepa_jax.optim.make_optimizer(
        total_steps=1000, warmup_steps=100, start_lr=1e-4, peak_lr=1e-3, final_lr=1e-6, weight_decay=0.04,
        final_weight_decay=0.4, momentum=0.996, final_momentum=1.0,
    )
    state = ijepa_jax.init(method, optimizer, seed=0)
    step = jax.jit(functools.partial(ijepa_jax.train_step, method=method, optimizer=optimizer, seed=0), donate_argnums=0)
    state, metrics = step(state, {"image": images, **sampler(index)})
"""

import importlib
from typing import Any

_PLACES = {
    "config": "methods.config", "masks": "methods.masks", "methods": "methods", "optim": "methods.optim",
    "SIZES": "settings.architectures", "ViT": "model.vit", "Predictor": "model.predictor", "State": "train.step",
    "init": "train.step", "train_step": "train.step", "Pretrained": "interop.pretrained", "load": "interop.pretrained",
    "preprocess": "interop.pretrained",
}  # fmt: skip
__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is: a launcher must set its environment before JAX comes."""
    if name not in _PLACES:
        raise AttributeError(f"module 'ijepa_jax' has no attribute {name!r}")
    module = importlib.import_module(f"ijepa_jax.{_PLACES[name]}")
    return module if name == _PLACES[name].rpartition(".")[2] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
