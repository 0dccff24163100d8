"""SALT (arXiv 2509.24317): latent prediction as I-JEPA's, of what a frozen teacher sees, without a moving average."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ijepa_jax.methods.contract import Batch
from ijepa_jax.methods.ijepa import IJepa, by_fan_in
from ijepa_jax.model.encoder import Encoder
from ijepa_jax.model.stacks import laid_out
from ijepa_jax.model.vit import ViT, from_settings
from ijepa_jax.settings.axes import by, each_axis
from ijepa_jax.settings.ranges import flag, number, text, whole
from ijepa_jax.train import checkpoint

RANDOM = "random"

SETTINGS = {
    "salt": {
        # the workdir of a run whose encoder is the teacher, trained by pixels in the paper; `random`: weights that saw nothing
        "teacher": text("", fixed=True),
        "step": whole(0, -1, 1_000_000_000, fixed=True),  # which of its checkpoints, as decoder.step
    },
    # the teacher's network, which is found out; of the size of `model` where its weights are random
    "teacher": {
        "width": whole(None, 4, 65_536, fixed=True),
        "depth": whole(None, 1, 1000, fixed=True),
        "heads": whole(None, 1, 4096, fixed=True),
        "mlp_ratio": number(None, 0, 1000, "(]", fixed=True),
        "patch": whole((0,), 0, 65_536, length=0, fixed=True),
        "grid": whole((0,), 0, 65_536, length=0, fixed=True),
        "epsilon": number(1e-6, 1e-20, 1, fixed=True),
        "positions": text("sincos", fixed=True),
        "class_token": flag(False, fixed=True),
    },
}
_FOUND = ("width", "depth", "heads", "mlp_ratio", "epsilon", "positions", "class_token")


@dataclasses.dataclass(frozen=True)
class Salt(IJepa):
    """The second stage of the paper; the first is another run: of `pixels`, or of any method with an encoder.

    The teacher may be of another size, as long as its patches lie on the same grid. It is kept, with each checkpoint, where
    I-JEPA keeps its moving average. What is used is the encoder that is trained.
    """

    title = "SALT"
    about = "I-JEPA's latent prediction with a frozen teacher (arXiv 2509.24317)"

    teacher: ViT | None = None  # None: a network like the encoder
    checkpoint: str = RANDOM
    step: int = 0

    def __post_init__(self):
        super().__post_init__()
        teacher = self.teacher or self.network
        object.__setattr__(self, "teacher", dataclasses.replace(teacher, drop_path=0.0))
        object.__setattr__(self, "predictor", dataclasses.replace(self.predictor, outputs=teacher.width))

    @classmethod
    def settings(cls) -> dict[str, Mapping[str, Any]]:
        """I-JEPA's, and those of the teacher."""
        return {**super().settings(), **SETTINGS}

    @classmethod
    def completed(cls, config: Any, earlier: Any = None) -> Any:
        """The settings with those of the teacher's network. Raises ValueError where it does not fit, or none is named.

        A run that is continued has its teacher's weights: the run that they came from may be gone, or have better ones.
        """
        config = config.copy_and_resolve_references()
        path = config.salt.teacher = config.salt.teacher.rstrip("/")
        if not path:
            raise ValueError(f"salt.teacher is missing: give the workdir of a run whose encoder is the teacher, or {RANDOM!r}")
        if path == RANDOM:
            if config.teacher.width is not None:
                raise ValueError("teacher.width: a random teacher is of the size of model; another one's size is found out")
            return config
        if earlier is not None and "salt" in earlier:
            config.salt.step = earlier.salt.step if config.salt.step in (0, -1) else config.salt.step
            config.teacher.update(earlier.teacher)
            return config
        saved = checkpoint.restore_parts(path, config.salt.step, ())
        encoder = saved.method().backbone()
        if encoder is None:
            raise ValueError(f"salt.teacher {path}: {saved.method().title} trains no encoder")
        _check_fits(config, path, encoder)
        config.salt.step = saved.step
        config.teacher.update({name: getattr(encoder.network, name) for name in _FOUND})
        config.teacher.patch, config.teacher.grid = each_axis(encoder.network.patch, len(encoder.grid)), encoder.grid
        return config

    @classmethod
    def targets(cls, config: Any) -> dict[str, Any]:
        """The fields that say what is predicted, of a run's settings."""
        network, found = from_settings(config.model), config.teacher
        if found.width is not None:
            known = {name: getattr(found, name) for name in _FOUND}
            network = dataclasses.replace(network, **known, patch=tuple(found.patch), trained_grid=tuple(found.grid))
        return {**super().targets(config), "teacher": network, "checkpoint": config.salt.teacher, "step": config.salt.step}

    @property
    def target_network(self) -> ViT:
        """The teacher."""
        return dataclasses.replace(self.teacher, float8=True) if self.target_float8 else self.teacher

    def target(self, params: dict[str, dict]) -> None:
        """Nothing follows the encoder."""
        return None

    def init_target(self, params: dict[str, dict], key: jax.Array) -> dict:
        """A teacher of random weights, other ones than the encoder's, until `begin` brings those that are trained."""
        weights = Encoder(self.teacher, self.image_size, self.channels).init(jax.random.fold_in(key, 1))
        return by_fan_in(weights) if self.init_scheme == "fan_in" else weights

    def begin(self, state: Any, batches: Callable[[], Iterator[Batch]]) -> Any:
        """Brings the teacher's weights."""
        if self.checkpoint == RANDOM:
            return state
        weights = laid_out(checkpoint.restore_encoder(self.checkpoint, self.step)[0], self.teacher.scan)
        placed = jax.tree.map(lambda old, new: jax.device_put(jnp.asarray(new, old.dtype), old.sharding), state.target, weights)
        return state.replace(target=placed)


def _check_fits(config: Any, path: str, teacher: Encoder) -> None:
    """Raises ValueError where a teacher cannot be shown what the encoder is shown."""
    wanted, data = Encoder.from_settings(config), config.data
    if teacher.grid != wanted.grid or teacher.image_size != wanted.image_size:
        raise ValueError(
            f"salt.teacher {path} is for images of {by(teacher.image_size)} in {by(teacher.grid)} patches, the encoder for "
            f"{by(wanted.image_size)} in {by(wanted.grid)}: both must be alike"
        )
    if (teacher.channels, teacher.mean, teacher.std) != (wanted.channels, wanted.mean, wanted.std):
        raise ValueError(
            f"salt.teacher {path} was shown images with data.channels={teacher.channels}, data.mean={teacher.mean}, "
            f"data.std={teacher.std}: give these, instead of {data.channels}, {tuple(data.mean)}, {tuple(data.std)}"
        )
