"""Methods on trial: I-JEPA with one thing changed, and its controls, for the studies in tests/studies.

Each is trained by the launcher as any user's method is: `--config.method=tests/trials.py:Trial --config.custom.error=l1`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ijepa_jax.data.open import open_source
from ijepa_jax.data.pipeline import shown_at
from ijepa_jax.data.views import examples
from ijepa_jax.methods import IJepa
from ijepa_jax.methods.ijepa import TARGET_EPSILON, by_fan_in
from ijepa_jax.methods.sigreg import directions, sigreg
from ijepa_jax.model.layers import Dense, gelu
from ijepa_jax.model.vit import ViT, normalise, patchify
from ijepa_jax.settings.axes import each_axis

standardised = functools.partial(jax.nn.standardize, epsilon=TARGET_EPSILON, algorithm="stable")  # as I-JEPA's targets are

# what `inside` tells of the target encoder's tokens, and of the loss, for a study's table
METRICS = ("predicted", "of_position_alone", "position_share", "token_std", "token_rank", "image_share", "neighbour_cosine")
ERRORS = {
    "huber": lambda prediction, goal: optax.huber_loss(prediction, goal, delta=1.0),
    "l1": lambda prediction, goal: jnp.abs(prediction - goal),
    "l2": lambda prediction, goal: jnp.square(prediction - goal) / 2,
    "cosine": lambda prediction, goal: 1 - optax.cosine_similarity(prediction, goal, epsilon=1e-6)[..., None],
}


class Stem(ViT):
    """A ViT whose patches pass two 3x3 convolutions first, each patch by itself: nothing hidden is seen from its neighbours."""

    channels: int = 16

    @nn.compact
    def __call__(self, images, keep=None, lengths=None, **keywords):
        patch = each_axis(self.patch, 2)
        grid = [size // side for size, side in zip(images.shape[1:3], patch, strict=True)]
        x = patchify(images, self.patch).reshape(-1, *patch, images.shape[-1])
        for name in ("stem1", "stem2"):
            x = gelu(nn.Conv(self.channels, (3, 3), dtype=self.dtype, name=name)(x))
        x = x.reshape(len(images), *grid, *patch, self.channels).swapaxes(2, 3)
        return super().__call__(x.reshape(*images.shape[:3], self.channels), keep, lengths, **keywords)


@dataclasses.dataclass(frozen=True)
class Trial(IJepa):
    """I-JEPA, changed where a field is not at its default, with metrics of what the target encoder's tokens hold."""

    title = "I-JEPA, changed"
    additive = False

    embed_scale: float = 1.0  # patches' initial embedding is multiplied by this
    fan_in: str = ""  # parts that are initialised so, with commas: encoder,predictor
    stem: bool = False
    last_blocks: int = 1  # targets are the mean of so many last blocks' outputs, each normalised
    norm: str = "layer"  # of targets; after it, feature by feature over the batch's tokens: feature
    centred: bool = False  # whether targets are told from the batch's mean at their position
    pixels: bool = False  # whether targets are patches' normalised pixels
    error: str = "huber"  # a name of ERRORS
    sigreg: float = 0.0  # weight of SIGReg on the context encoder's tokens (arXiv 2511.08544)
    slices: int = 64
    variance: float = 0.0  # weight of VICReg's hinge on the tokens' features
    covariance: float = 0.0

    @classmethod
    def from_settings(cls, config):
        method = super().from_settings(config)
        method._check(config)
        if not method.stem:
            return method
        fields = {field.name: getattr(method.network, field.name) for field in dataclasses.fields(ViT)}
        return dataclasses.replace(method, network=Stem(**{name: fields[name] for name in fields.keys() - {"parent", "name"}}))

    def _check(self, config):
        parts, norms = {"encoder", "predictor"}, ("layer", "feature")
        if (self.sigreg or self.variance or self.covariance) and config.masks.mode == "pad":
            raise ValueError("custom.sigreg, variance and covariance take all context tokens, and masks.mode=pad adds padding")
        if self.norm not in norms or self.error not in ERRORS:
            raise ValueError(f"custom.norm must be one of {', '.join(norms)}, and custom.error of {', '.join(ERRORS)}")
        if not 1 <= self.last_blocks <= self.network.depth:
            raise ValueError(
                f"custom.last_blocks {self.last_blocks} must be from 1 to the {self.network.depth} blocks there are"
            )
        if self.pixels and (self.centred or self.norm != "layer" or self.target_norm != "layer" or self.last_blocks > 1):
            raise ValueError("custom.pixels has targets of its own: neither centred, norm, last_blocks nor target.norm")
        if self.fan_in and ({*self.fan_in.split(",")} - parts or self.stem or self.init_scheme != "normal"):
            raise ValueError("custom.fan_in must be of encoder,predictor, without a stem and with model.init=normal")

    def init(self, key):
        params = super().init(key)
        for part in filter(None, self.fan_in.split(",")):
            params[part] = by_fan_in(params[part])
        embed = params["encoder"]["patch_embed"]
        params["encoder"]["patch_embed"] = {**embed, "kernel": embed["kernel"] * self.embed_scale}
        if self.pixels:
            values = int(np.prod(each_axis(self.network.patch, len(self.image_size)))) * self.channels
            head = Dense(values, jnp.float32).init(jax.random.fold_in(key, 1), jnp.zeros((1, self.network.width)))
            params["pixels"] = head["params"]
        return params

    def target(self, params):
        return None if self.pixels else super().target(params)

    def encode_target(self, target, images, wanted=None):
        return self.of_layers(self.network.apply({"params": target}, images, layers=True))

    def of_layers(self, layers):
        """Targets [B, N, D], before they are whitened, from the outputs of all blocks and, last, the encoder's."""
        *blocks, final = layers
        outputs = blocks[-self.last_blocks :] if self.last_blocks > 1 else [final]
        encoded = sum(standardised(x.astype(jnp.float32)) for x in outputs) / len(outputs)
        if self.norm == "feature":
            encoded = standardised(encoded, axis=(0, 1))
        if self.centred:
            encoded = standardised(encoded - encoded.mean(axis=0, keepdims=True))
        return jax.lax.stop_gradient(encoded)

    def loss(self, params, target, batch, key):
        images, metrics = normalise(examples(batch), self.mean, self.std), {}
        if self.pixels:
            encoded = jax.nn.standardize(patchify(images, self.network.patch), epsilon=1e-6)
        else:
            layers = self.network.apply({"params": target}, images, layers=True)
            encoded = self.of_layers(layers)
            encoded = self.goals(encoded, self.whitening(encoded))
            metrics |= inside(jax.lax.stop_gradient(standardised(layers[-1].astype(jnp.float32))), self.grid)
        of_targets = lambda tokens: self.gather_targets(tokens, batch["target"])[:, :, None]  # noqa: E731
        goal = of_targets(encoded)
        context = self.encode_context(params["encoder"], images, batch, key)
        prediction = self.predict(params["predictor"], context, batch)
        if self.pixels:
            prediction = Dense(goal.shape[-1], jnp.float32).apply({"params": params["pixels"]}, prediction)
        valid = jnp.arange(goal.shape[3])[None, None] < batch["target_length"][..., None]  # [B, M, T]
        mean = lambda error: jnp.where(valid, error.mean(axis=(2, 4)), 0).sum() / self.weight(batch)  # noqa: E731
        predicted = mean(ERRORS[self.error](prediction, goal))
        place = of_targets(jnp.broadcast_to(encoded.mean(axis=0, keepdims=True), encoded.shape))
        metrics |= {"predicted": predicted, "of_position_alone": mean(ERRORS[self.error](place, goal))}
        tokens = context.astype(jnp.float32).reshape(-1, context.shape[-1])
        loss = predicted
        if self.sigreg:
            metrics["sigreg"] = sigreg(tokens, directions(jax.random.fold_in(key, 1), tokens.shape[-1], self.slices))
            loss += self.sigreg * metrics["sigreg"]
        if self.variance or self.covariance:
            hinge, products = vicreg(tokens)
            loss += self.variance * hinge + self.covariance * products
        return loss, metrics

    def flops(self):
        """Of context encoder, target encoder, predictor, stem and SIGReg's projections; heads are left out."""
        found = super().flops()
        if self.pixels:
            del found["target"]
        if self.stem:  # all patches' are computed, in the context encoder too, and there with gradients
            inner, kernel = self.network.channels, 9
            of_pixel = 2 * inner * (kernel * (self.channels + inner) + self.network.width)
            found["stem"] = int(np.prod(self.image_size)) * of_pixel * (3 + ("target" in found))
        if self.sigreg:
            found["sigreg"] = (
                3 * 2 * self.masks.num_context_blocks * self.masks.context_length * self.network.width * self.slices
            )
        return found


@dataclasses.dataclass(frozen=True)
class Supervised(Trial):
    """The same encoder taught the labels of the same crops: what the network could learn. A linear layer for each task."""

    title = "supervised"
    labels: "Labels | None" = None  # no setting: made from the run's

    @classmethod
    def from_settings(cls, config):
        optim, data = config.optim, config.data
        if config.custom.pixels or config.custom.stem:
            raise ValueError("the supervised control has neither custom.pixels nor custom.stem")
        labels = Labels(data.name, data.size, data.directory, config.seed, optim.batch_size)
        return dataclasses.replace(super().from_settings(config), labels=labels)

    def prepare(self):
        return self.labels

    def init(self, key):
        params, zeros = super().init(key), jnp.zeros((1, self.network.width))
        heads = {
            task: Dense(classes, jnp.float32).init(jax.random.fold_in(key, i), zeros)["params"]
            for i, (task, classes) in enumerate(self.labels.source().classes.items())
        }
        return {"encoder": params["encoder"], "heads": heads}

    def target(self, params):
        return None

    def weight(self, batch):
        return jnp.float32(len(examples(batch)))

    def loss(self, params, target, batch, key):
        images = normalise(examples(batch), self.mean, self.std)
        tokens = self.network.apply({"params": params["encoder"]}, images, train=True, rngs={"drop_path": key})
        pooled, losses = tokens.astype(jnp.float32).mean(axis=1), []
        for task, head in params["heads"].items():
            logits = Dense(head["bias"].shape[0], jnp.float32).apply({"params": head}, pooled)
            losses.append(optax.softmax_cross_entropy_with_integer_labels(logits, batch[f"label_{task}"]).mean())
        return sum(losses) / len(losses), inside(jax.lax.stop_gradient(tokens.astype(jnp.float32)), self.grid)

    def flops(self):
        """Of the encoder, which sees whole images and is trained: three times what it takes to run it."""
        return {"context": 3 * super().flops()["target"]}


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of a run's training examples from their global indices: what the loader shows, it shows in this order."""

    name: str
    size: int
    directory: str
    seed: int
    batch_size: int

    def source(self):
        return _opened(self.name, self.size, self.directory)

    def __call__(self, index):
        source = self.source()
        rows = shown_at(index, len(source), self.seed, self.batch_size)
        return {f"label_{task}": labels.astype(np.int32) for task, labels in source.labels_at(rows).items()}


@functools.cache
def _opened(name, size, directory):  # as `Loader.open` does, whatever the run's seed
    return open_source(name, "train", size=size, seed=0, directory=directory, image_size=(16, 16))  # scenes: labels alone


def inside(encoded, grid):
    """What tokens [B, N, D] hold, as scalars.

    `token_std` over images and positions; `position_share` of that variance that the position alone tells; of what is left,
    `token_rank` (participation ratio of its covariance), `image_share` that the image's mean tells, and `neighbour_cosine`,
    the similarity of patches side by side.
    """
    b, n, d = encoded.shape
    place = encoded.mean(axis=0, keepdims=True)
    left = encoded - place
    within = jnp.square(left).sum() / ((b - 1) * n)
    alone = jnp.square(left - left.mean(axis=1, keepdims=True)).sum() / ((b - 1) * n)  # an image's mean moves all positions
    between = jnp.square(place - place.mean(axis=1, keepdims=True)).sum() / n - alone / b
    tiny = jnp.finfo(jnp.float32).tiny  # where all tokens are one
    covariance = left.reshape(-1, d).T @ left.reshape(-1, d) / ((b - 1) * n)
    image = jnp.square(left.mean(axis=1)).sum() / (b - 1)
    square = left.reshape(b, *grid, d)
    ahead, behind = jnp.take(square, np.arange(1, grid[-1]), axis=-2), jnp.take(square, np.arange(grid[-1] - 1), axis=-2)
    return {
        "token_std": jnp.sqrt(jnp.maximum(within + between, 0) / d),
        "position_share": between / (within + between + tiny),
        "token_rank": jnp.square(jnp.trace(covariance)) / (jnp.square(covariance).sum() + tiny),
        "image_share": image / (within + tiny),
        "neighbour_cosine": optax.cosine_similarity(ahead, behind, epsilon=1e-6).mean(),
    }


def vicreg(x_nd):
    """Of samples [N, D]: how far features' deviations are below 1, in the mean; and their products' squares, a feature."""
    centred = x_nd - x_nd.mean(axis=0, keepdims=True)
    products = centred.T @ centred / len(x_nd)
    spread = jnp.diagonal(products)
    hinge = jnp.maximum(0, 1 - jnp.sqrt(spread + 1e-4)).mean()
    return hinge, (jnp.square(products).sum() - jnp.square(spread).sum()) / len(spread)
