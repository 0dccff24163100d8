"""A diffusion decoder of frozen representations, in the style of RCDM (Bordes et al. 2022; I-JEPA paper, section 8).

It learns to draw a block of an image from a representation of that block alone. What its samples of one representation have in
common is what the representation holds; what differs between them, it does not. Pixels are denoised by a ViT (denoiser.py)
that guesses the clean ones; the noise follows the cosine schedule (Nichol & Dhariwal 2021) in continuous time.
"""

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ijepa_jax.decode import pictures
from ijepa_jax.decode.denoiser import Denoiser
from ijepa_jax.methods import Batch, IJepa, Look, Method
from ijepa_jax.methods import config as config_lib
from ijepa_jax.model.layers import along_last
from ijepa_jax.model.vit import normalise, patchify, take_tokens
from ijepa_jax.settings import plain
from ijepa_jax.settings.axes import by, each_axis, modality, patch_grid
from ijepa_jax.settings.ranges import check_heads, choice, text, whole
from ijepa_jax.train import checkpoint
from ijepa_jax.train.step import State

_MOST_SIGNAL = 5.0  # signal-to-noise ratio up to which errors weigh more: beyond it only grain is left to learn
_LAST = 0.999  # where sampling starts: at 1 nothing of an image is left, and its noise cannot be told from it
_SAMPLE = 1024  # images by which representations are standardised
_SMALL = 1e-12  # variance that a constant feature is taken to have
_DECODED = ("model", "predictor", "target", "masks")  # sections of settings that are those of what is decoded
_OWN = "model.gradients"  # of these the decoder's
_DECODED_DATA = ("image_size", "channels", "mean", "std", "eval_crop")
_DECODED_NAME = ("name", "directory", "size", "test_size")  # likewise, unless data are named

_KEPT = ("encoder", "encoder and predictor")
# what a method's representations are made by
_PARTS = (
    "from_settings",
    "init",
    "encode_target",
    "target_network",
    "whitening",
    "goals",
    "gather_targets",
    "encode_context",
    "predict",
    "target",
    "encoder",
)

SETTINGS = {
    # the workdir of an I-JEPA run, from which model, predictor, target, masks and images come
    "checkpoint": text("", fixed=True),
    # which of its checkpoints; 0: the best by probe, else the newest; -1: the newest
    "step": whole(0, -1, 1_000_000_000, fixed=True),
    # what of it is kept with the decoder, which is found out; older decoders kept nothing
    "teacher": choice("", ("", *_KEPT), fixed=True),
    "width": whole(160, 4, 65_536, fixed=True),
    "depth": whole(5, 1, 1000, fixed=True),
    "heads": whole(5, 1, 4096, fixed=True),
    "sample_steps": whole(32, 1, 10_000),  # of the pictures' sampler
}


@dataclasses.dataclass(frozen=True)
class Rcdm(Method):
    """The method. A batch holds `image` uint8 [B, H, W, C], and masks as I-JEPA's.

    Its target is {"denoiser": the moving average, "teacher": the frozen trees of what is decoded, "mean", "std": those of its
    representations, by which these are standardised}. Of several representations of a block one is drawn for each block and
    step, so that one decoder reads all kinds of them.
    """

    title: ClassVar[str] = "RCDM decoder"

    denoiser: Denoiser
    teacher: IJepa  # what is decoded: its masks say which blocks of an image representations are of
    checkpoint: str = ""
    step: int = 0
    predicted: bool = True  # whether the teacher has a predictor
    sample_steps: int = 32

    @classmethod
    def settings(cls) -> dict[str, Mapping[str, Any]]:
        """The decoder's, and those of what is decoded."""
        return {"decoder": SETTINGS, **IJepa.settings()}

    @classmethod
    def completed(
        cls, config: ml_collections.ConfigDict, earlier: ml_collections.ConfigDict | None = None
    ) -> ml_collections.ConfigDict:
        """The settings with those of what it decodes: its networks, masks, images and, unless named, its data.

        Raises ValueError for settings that were given in vain.
        """
        _check(config)
        given, default = plain.flatten(config), plain.flatten(config_lib.default(config.method))
        data = _DECODED_DATA + (() if config.data.name else _DECODED_NAME[1:])
        taken = (*(f"{section}." for section in _DECODED), *(f"data.{key}" for key in data))
        vain = [key for key in given if key.startswith(taken) and key != _OWN and given[key] != default[key]]
        if vain:
            raise ValueError(f"{', '.join(vain)}: a decoder takes these from decoder.checkpoint {config.decoder.checkpoint}")
        config = config.copy_and_resolve_references()
        if earlier is not None and "decoder" in earlier and earlier.decoder.teacher:  # which the checkpoint holds
            decoded, found = earlier, {"teacher": earlier.decoder.teacher}
            if config.decoder.step in (0, -1):
                found["step"] = earlier.decoder.step
        else:
            decoded, found = _decoded(config.decoder)
        config.decoder.update(found)
        for section in _DECODED:
            config[section] = decoded[section]
        config.model.drop_path, config.model.gradients = 0.0, given[_OWN]
        for key in (*_DECODED_DATA, *(() if config.data.name else _DECODED_NAME)):
            config.data[key] = decoded.data[key]
        return config

    @classmethod
    def from_settings(cls, config: ml_collections.ConfigDict) -> Self:
        """The decoder of settings that are completed."""
        _check(config)
        decoder = config.decoder
        check_heads("decoder.", decoder.width, decoder.heads, 2)
        teacher = IJepa.from_settings(config)
        if (kind := modality(teacher.image_size)) != "image":
            encoder = f"the encoder of {decoder.checkpoint} is of {kind}s of {by(teacher.image_size)}"
            raise ValueError(f"the decoder draws images: {encoder}")
        denoiser = Denoiser(decoder.width, decoder.depth, decoder.heads, teacher.network.dtype, teacher.network.automatic)
        return cls(denoiser, teacher, decoder.checkpoint, decoder.step, decoder.teacher == _KEPT[1], decoder.sample_steps)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return patch_grid(self.teacher.image_size, self.patch)

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch."""
        return each_axis(self.teacher.network.patch, 2)

    @property
    def values(self) -> int:
        """The number of values of a patch, P."""
        return math.prod(self.patch) * self.teacher.channels

    @property
    def features(self) -> int:
        """The number of values of a representation, D."""
        return self.teacher.network.width

    @property
    def kinds(self) -> tuple[str, ...]:
        """What there is of a block: the predictor's output from the context, and the target encoder's from the whole image."""
        return ("predictor", "target")[not self.predicted :]

    @property
    def additive(self) -> bool:
        """True, as a mean over patches is; a class with another `loss` has to say so itself."""
        return type(self).loss is Rcdm.loss

    def prepare(self) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """The host-side maker of a batch's masks from global example indices."""
        return self.teacher.prepare()

    def init(self, key: jax.Array) -> dict[str, dict]:
        """Fresh float32 parameters: {"denoiser": tree}."""
        patches, one = jnp.zeros((1, 1, self.values)), jnp.ones(1, jnp.int32)
        given = (patches, one[None], one, jnp.zeros(1), jnp.zeros((1, self.features)), self.grid)
        return {"denoiser": self.denoiser.init(key, *given)["params"]}

    def target(self, params: dict[str, dict]) -> dict:
        """What the moving average follows: all of it. Samples are drawn with the average."""
        return params["denoiser"]

    def init_target(self, params: dict[str, dict], key: jax.Array) -> dict[str, Any]:
        """The average, and a place for the teacher's trees, which `begin` brings."""
        trained = self.teacher.init(key)
        trees = {"target": trained["encoder"], **({"params": trained} if self.predicted else {})}
        average, features = super().init_target(params, key), self.features
        found = {"denoiser": average, "teacher": trees, "mean": jnp.zeros(features), "std": jnp.ones(features)}
        if self.teacher.target_norm == "whiten":  # one of all batches, so that an image is the same in each
            found["whitening"] = {"mean": jnp.zeros(features), "matrix": jnp.eye(features)}
        return found

    def update_target(self, target: dict[str, Any], params: dict[str, dict], momentum: jax.Array) -> dict[str, Any]:
        """The average after a step; the teacher stays."""
        return {**target, "denoiser": super().update_target(target["denoiser"], params, momentum)}

    def begin(self, state: State, batches: Callable[[], Iterator[Batch]]) -> State:
        """Brings the teacher, and the mean and deviation of the target encoder's representations of the first images.

        Features in which all blocks are alike would drown what tells them apart.
        """
        encoder, saved = checkpoint.restore_encoder(self.checkpoint, self.step, ("params",) if self.predicted else ())
        wanted = state.target["teacher"]
        if saved.trees:
            saved.trees["params"] = {name: saved.trees["params"][name] for name in wanted["params"]}
        teacher = jax.tree.map(
            lambda old, new: jax.device_put(new.astype(old.dtype), old.sharding), wanted, {"target": encoder, **saved.trees}
        )
        frozen = {"teacher": teacher}
        if "whitening" in state.target:
            with contextlib.closing(batches()) as stream:
                found = jax.device_get(jax.jit(self._whitening)(teacher, next(stream)))
            frozen["whitening"] = jax.tree.map(
                lambda new, old: jax.device_put(new, old.sharding), found, state.target["whitening"]
            )
        moments, count, total, squares = jax.jit(self._moments), 0, 0.0, 0.0
        with contextlib.closing(batches()) as stream:
            while count < _SAMPLE:
                batch = next(stream)
                mean, square = jax.device_get(moments(frozen, batch))
                images = len(batch["image"])
                count, total, squares = count + images, total + images * mean, squares + images * square
        average = total / count
        std = np.sqrt(np.maximum(squares / count - average**2, _SMALL))
        placed = {
            name: jax.device_put(np.asarray(value, np.float32), state.target[name].sharding)
            for name, value in (("mean", average), ("std", std))
        }
        return state.replace(target={**state.target, **frozen, **placed})

    def _whitening(self, teacher: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        images = normalise(batch["image"], self.teacher.mean, self.teacher.std)
        return self.teacher.whitening(self.teacher.encode_target(teacher["target"], images))

    def _moments(self, target: dict[str, Any], batch: Batch) -> tuple[jax.Array, jax.Array]:
        targets = self.represent(target, batch)[:, -1]
        return targets.mean(axis=(0, 1)), jnp.square(targets).mean(axis=(0, 1))

    def represent(self, target: dict[str, Any], batch: Batch) -> jax.Array:
        """Averages of what the teacher makes of each target block's patches, float32 [B, kinds, M, D]."""
        of, teacher = self.teacher, target["teacher"]
        images = normalise(batch["image"], of.mean, of.std)
        goals = of.goals(of.encode_target(teacher["target"], images), target.get("whitening"))
        found = [of.gather_targets(goals, batch["target"])]
        if self.predicted:
            context = of.encode_context(teacher["params"]["encoder"], images, batch, jax.random.key(0))
            found.insert(0, of.predict(teacher["params"]["predictor"], context, batch)[:, :, 0])
        lengths = batch["target_length"]
        valid = jnp.arange(batch["target"].shape[-1])[None, None] < lengths[..., None]
        return jnp.stack([(tokens * valid[..., None]).sum(axis=2) / lengths[..., None] for tokens in found], axis=1)

    def conditions(self, target: dict[str, Any], batch: Batch) -> jax.Array:
        """Representations that are decoded, standardised feature by feature: float32 [B, kinds, M, D], without gradient."""
        found = self.represent(target, batch)
        mean, std = (along_last(target[name], found) for name in ("mean", "std"))
        return jax.lax.stop_gradient((found - mean) / std)

    def weight(self, batch: Batch) -> jax.Array:
        """Parts of a batch count by their number of valid target patches."""
        return batch["target_length"].sum().astype(jnp.float32)

    def loss(
        self, params: dict[str, dict], target: dict[str, Any], batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Squared error of the guessed pixels over all valid patches, weighted by 1 + min(signal to noise, 5).

        The bound on the weight is that of Hang et al. 2023; without it this would be the error of the velocity.
        """
        which_key, time_key, noise_key = jax.random.split(key, 3)
        conditions = self.conditions(target, batch)
        which = jax.random.randint(which_key, batch["target_length"].shape, 0, conditions.shape[1])
        condition = jnp.take_along_axis(conditions, which[:, None, :, None], axis=1).reshape(-1, conditions.shape[-1])
        index, lengths, clean = self.blocks(batch)
        count = len(clean)
        times = (jnp.arange(count) + jax.random.uniform(time_key)) / count  # evenly spread: less noisy gradients
        signal, noise = schedule(times[:, None, None])
        noisy = signal * clean + noise * jax.random.normal(noise_key, clean.shape)
        guess = self.denoiser.apply({"params": params["denoiser"]}, noisy, index, lengths, times, condition, self.grid)
        valid = jnp.arange(index.shape[1])[None] < lengths[:, None]
        error = jnp.where(valid, jnp.square(guess - clean).mean(axis=-1), 0) / valid.sum()
        ratio = jnp.minimum(jnp.square(signal / noise)[..., 0], _MOST_SIGNAL)
        return (error * (1 + ratio)).sum(), {"squared_error": error.sum()}

    def blocks(self, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """All blocks of a batch: their patches' places int [B * M, T], lengths [B * M], and pixels float32 [B * M, T, P]."""
        b, m, t = batch["target"].shape
        patches = patchify(scaled(batch["image"]), self.patch)
        pixels = take_tokens(patches, batch["target"].reshape(b, m * t)).reshape(b * m, t, -1)
        return batch["target"].reshape(b * m, t), batch["target_length"].reshape(b * m), pixels

    def pictures(self, look: Look) -> dict[str, Any]:
        """Blocks of test images drawn anew, see decode/pictures.py."""
        return pictures.show(self, look)

    def sample(
        self, average: dict, condition: jax.Array, index: jax.Array, lengths: jax.Array, key: jax.Array, steps: int = 32
    ) -> jax.Array:
        """Blocks drawn from representations [n, D] by DDIM (Song et al. 2021) without noise: float32 [n, T, P], -1 .. 1.

        Each block starts from its own noise, the only thing that tells samples of one representation apart.

        Args:
            average: the moving average of the denoiser's parameters.
            index: int [n, T], places of the blocks' patches.
            lengths: int [n], how many of these are valid.
            key: of the noise.
            steps: denoising steps.
        """
        times = jnp.linspace(_LAST, 0, steps + 1)

        def denoise(pixels, now_and_next):
            now, after = now_and_next
            given = pixels, index, lengths, jnp.full(len(pixels), now), condition
            guess = self.denoiser.apply({"params": average}, *given, self.grid).clip(-1, 1)
            (signal, noise), (next_signal, next_noise) = schedule(now), schedule(after)
            return next_signal * guess + next_noise * (pixels - signal * guess) / noise, None

        start = jax.random.normal(key, (*index.shape, self.values))
        return jax.lax.scan(denoise, start, (times[:-1], times[1:]))[0]


def _check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for a decoder of nothing, or one that is to start from an encoder."""
    if not config.decoder.checkpoint:
        raise ValueError("decoder.checkpoint is missing: give the workdir whose representations are to be decoded")
    if config.warm_start:
        raise ValueError(f"warm_start {config.warm_start}: a decoder starts afresh")


def _decoded(section: ml_collections.ConfigDict) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
    """The settings of what is decoded, and the decoder's own that are found out."""
    saved = checkpoint.restore_encoder(section.checkpoint, section.step)[1]
    decoded, method = saved.config(), saved.method()
    if not isinstance(method, IJepa):
        raise ValueError(f"decoder.checkpoint {section.checkpoint} is of {method.title}, not of I-JEPA's kind")
    look_up = inspect.getattr_static
    if own := [part for part in _PARTS if look_up(type(method), part) is not look_up(IJepa, part)]:
        whose = f"decoder.checkpoint {section.checkpoint} is of {method.title}, which has its own {', '.join(own)}"
        raise ValueError(f"{whose}: a decoder reads I-JEPA's representations only")
    masks = method.masks
    if masks is None:
        raise ValueError(f"decoder.checkpoint {section.checkpoint}: its grid is too small for masks")
    decoded.masks.mode, decoded.masks.context_patches = masks.mode, masks.context_patches
    return decoded, {"step": saved.step, "teacher": _KEPT["encoder_only" not in saved.notes]}


def schedule(times: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The shares of image and noise at times 0 (the image) to 1 (noise); their squares add up to 1."""
    return jnp.cos(jnp.pi / 2 * times), jnp.sin(jnp.pi / 2 * times)


def scaled(images: jax.Array) -> jax.Array:
    """uint8 images as float32 from -1 to 1."""
    return images.astype(jnp.float32) / 127.5 - 1
