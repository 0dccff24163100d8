"""The contract of a method: what the training step and everything around it ask of an objective."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.data.multiview import Views
from ijepa_jax.data.source import Arrays
from ijepa_jax.methods.optim import Optimizer, make_optimizer, moving_average
from ijepa_jax.model.encoder import Encoder

Params = dict[str, dict]
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Look:
    """What a method's own pictures are drawn from: what was trained, some test images, and where pictures go.

    `batch` holds `image` (or `video`, `signal`), `valid` (bool [B], whether a row is a readable image) and the arrays of
    `Method.prepare`, placed on the devices of `mesh`; `rows` the same on the host, of all processes.
    """

    folder: Any  # a path; only the first process writes there
    params: Any
    target: Any
    batch: Batch
    rows: Arrays
    mesh: jax.sharding.Mesh


class Method(abc.ABC):
    """An objective: a frozen dataclass that has at least `init` and `loss`; for all else there is a default.

    `title` is what reports, curves and cards call it: the class's name, unless it says another. `about` is what a card says of
    it, as the end of a sentence. `additive` tells whether a batch's loss is the mean of its parts', by their `weight`: if not,
    gradients cannot be accumulated.
    """

    title: ClassVar[str]
    about: ClassVar[str] = ""
    additive = False

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        cls.title = vars(cls).get("title", cls.__name__)
        cls.about = vars(cls).get("about", "")

    # from settings to a method

    @classmethod
    def settings(cls) -> dict[str, Mapping[str, Any]]:
        """The sections of the configuration that are the method's own, by name: settings (see ranges.py), or their defaults.

        By default there is one, `custom`, with the fields that a class outside of this package adds to those of its bases and
        that have a number, text or tuple for a default. What a default alone declares must not change when a run continues.
        """
        known = {
            field.name
            for base in cls.__mro__
            if base.__module__.startswith("ijepa_jax.") and dataclasses.is_dataclass(base)
            for field in dataclasses.fields(base)
        }
        added = {
            field.name: _default(field)
            for field in (dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ())
            if field.init and field.name not in {*known, *vars(Method)} and _is_plain(field.default)
        }
        return {"custom": added} if added else {}

    @classmethod
    def completed(cls, config: Any, earlier: Any = None) -> Any:
        """A run's settings, completed by those of what they name (another run's, say), before anything is made of them.

        `earlier` are the completed settings of the checkpoint that the run continues, if it does: what it keeps with its own
        weights need not be there any more.
        """
        return config

    @classmethod
    def from_settings(cls, config: Any) -> Self:
        """The method of a run's settings. Raises ValueError, naming the setting, where they do not fit each other."""
        return cls(**cls.custom(config))

    @classmethod
    def from_checkpoint(cls, config: Any) -> Self:
        """Likewise, to use what was trained: what only training needs need not fit, and nothing is dropped at random."""
        return cls.from_settings(config)

    @classmethod
    def custom(cls, config: Any) -> dict[str, Any]:
        """The values of the settings that the class's own fields declare."""
        return {name: config.custom[name] for name in Method.settings.__func__(cls).get("custom", ())}

    # what is trained

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32, as named sub-trees."""

    def target(self, params: Params) -> Any:
        """The sub-tree that an exponential moving average follows; None: nothing is followed."""
        return None

    def init_target(self, params: Params, key: jax.Array) -> Any:
        """What is kept beside the parameters and gets no gradient: a copy of what the average follows, None without.

        A frozen teacher, perhaps of another size, is kept by a method that has its own, and `update_target`.
        """
        return jax.tree.map(jnp.copy, self.target(params))

    def update_target(self, target: Any, params: Params, momentum: jax.Array) -> Any:
        """The target after a step, given the updated parameters: the moving average; as it was where nothing is followed."""
        followed = self.target(params)
        return target if followed is None else moving_average(momentum, target, followed)

    def begin(self, state: Any, batches: Callable[[], Any]) -> Any:
        """Completes a fresh state before the first step, outside of what is compiled: by weights of elsewhere, say.

        `batches()` streams training batches as the step will get them, placed on the devices.
        """
        return state

    # the objective

    def prepare(self) -> Callable[[np.ndarray], Arrays]:
        """The host-side maker of each example's masks and other arrays [B, ...] from global example indices int64 [B].

        Loader processes call it: it must be picklable, and is best free of jax. By default there are none.
        """
        return nothing

    def views(self) -> tuple[Views, ...]:
        """What training batches hold of an image: several views each, under their names. None: the one plain view, `image`."""
        return ()

    @abc.abstractmethod
    def loss(self, params: Params, target: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The scalar loss of a batch and scalar metrics.

        `batch` has `image` uint8 [B, H, W, C], `video` uint8 [B, T, H, W, C] or `signal` float32 [B, L, C], or of each of
        `views` uint8 [B, count, H, W, C], and what `prepare` makes.
        """

    def weight(self, batch: Batch) -> jax.Array:
        """How much a part of a batch counts in the whole one's loss: its examples."""
        return jnp.float32(len(next(iter(batch.values()))))

    def optimiser(self, **settings: Any) -> Optimizer:
        """The optimiser and its schedules; arguments are those of `optim.make_optimizer`, which makes it by default."""
        return make_optimizer(**settings)

    # what there is to be used and shown

    def backbone(self) -> Encoder | None:
        """The network whose parameters `encoder` gives, with the images it is for; None: there is no encoder to use."""
        return None

    def encoder(self, params: Params, target: Any) -> Any:
        """The parameters of what is probed, evaluated, exported and drawn: the average, or, without one, `params["encoder"]`.

        It should only pick: then no more than that is read of a checkpoint.
        """
        return target if params is None or self.target(params) is not None else params["encoder"]

    def flops(self) -> dict[str, int] | None:
        """Floating-point operations of an image and step by part; None: it does not tell."""
        return None

    def padding(self) -> dict[str, Any] | None:
        """What of them is padding on TPUs (see flops.py), by `index_padding`, `lane_padding`, `unfriendly_sizes`; or None."""
        return None

    def reconstruct(self, params: Params, batch: Batch) -> jax.Array | None:
        """A batch's examples, normalised, with what the method guesses of their pixels in place of what it does not see.

        float32 [B, H, W, C] (or videos, signals); 0 where nothing is guessed. None: it guesses no pixels.
        """
        return None

    def pictures(self, look: Look) -> dict[str, Any]:
        """Draws what the method alone can show into `look.folder`; with several processes all must call it, the first draws.

        Returns what is added to the report: `pictures` (names of PNG files), `captions` ({name: [title, text]}), `sections` (of
        figures: [{title, text, columns, rows}]), `warnings` (sentences), and whatever else programs shall find there.
        """
        return {}


def _is_plain(default: Any) -> bool:
    """Whether a default is one of a setting: a number, a text, a flag, or several of one of these."""
    values = default if isinstance(default, tuple) else (default,)
    kinds = {float if type(value) is int else type(value) for value in values}
    return len(kinds) == 1 and kinds <= {bool, float, str}


def _default(field: dataclasses.Field) -> Any:
    """A field's default; numbers that are annotated as floats are floats."""
    if "float" not in str(field.type):
        return field.default
    several = isinstance(field.default, tuple)
    made = [float(value) if type(value) is int else value for value in (field.default if several else (field.default,))]
    return tuple(made) if several else made[0]


def nothing(index: np.ndarray) -> Arrays:
    """The arrays of examples that have none."""
    return {}
