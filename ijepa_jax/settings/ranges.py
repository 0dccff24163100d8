"""Settings with the values that they may have: a default and its range are written down in one place, and checked as one.

A tree of settings is a dict whose leaves are `Setting`s and whose branches are sections; `defaults` makes a configuration of
it, and `check` refuses one whose values are out of range.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ijepa_jax.settings.axes import AXES, POSITION_FEATURES
from ijepa_jax.settings.plain import flat

_INTERVALS = {
    "[]": "from {} to {}",
    "(]": "above {} and at most {}",
    "[)": "at least {} and below {}",
    "()": "between {} and {}",
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting: its default, and which values it may have."""

    default: Any
    kind: type  # bool, int, float or str
    low: float = -math.inf
    high: float = math.inf
    ends: str = "[]"  # whether `low` and `high` may be had: [] () [) (]
    names: tuple[str, ...] = ()  # the texts that there are; none: any
    optional: bool = False  # whether it may be None
    length: int | None = None  # how many values it has, as a tuple; 0: one or more; None: it is no tuple
    each_axis: bool = False  # whether there are up to three values, one for each axis; without a length, or one for all axes
    never: float | None = None  # a number in between that it may not be
    rising: bool = False  # whether the second of two values may not be below the first
    fixed: bool = False  # whether it must stay what it was when a run continues: it is the task, the data, the weights' shapes

    def problem(self, value: Any) -> str:
        """What a value that this setting may not have should be; empty for one that it may."""
        if value is None and self.optional:
            return ""
        several = self.length is not None or (self.each_axis and isinstance(value, (tuple, list)))
        values, most = value if several else (value,), len(AXES) if self.each_axis else math.inf
        good = isinstance(values, (tuple, list)) and (not self.length or len(values) == self.length) and 0 < len(values) <= most
        good = good and all(map(self._may_be, values)) and (not self.rising or values[0] <= values[1])
        return "" if good else self.described()

    def _may_be(self, value: Any) -> bool:
        if self.kind in (bool, str):
            return isinstance(value, self.kind) and (not self.names or value in self.names)
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else (int, float)) or value != value:
            return False
        if value == self.never:
            return False
        above = value > self.low if self.ends[0] == "(" else value >= self.low
        return above and (value < self.high if self.ends[1] == ")" else value <= self.high)

    def described(self) -> str:
        """What its values are, in words."""
        several = self.length is not None
        if self.kind is bool:
            one = "True or False"
        elif self.names:
            one = f"one of {', '.join(self.names)}"
        elif self.kind is str:
            one = "a text"
        else:
            interval = _INTERVALS[self.ends].format(*(f"{bound:,}" for bound in (self.low, self.high)))
            one = f"{'whole numbers' if self.kind is int else 'numbers'} {interval}"
            one += "" if self.never is None else f", but not {self.never}"
            one = one if several else f"a {one.replace('numbers', 'number', 1)}"
        if several:
            count = "one to three" if self.each_axis else self.length or "one or more"
            one = f"{count} values, {one}{', the first not above the second' * self.rising}"
        elif self.each_axis:
            one = f"{one}, or one for each axis"
        return f"{one}{', or None' * self.optional}"


def whole(default: int | None, low: int, high: int, **options) -> Setting:
    """A setting that is a whole number from `low` to `high`; one whose default is None may be None."""
    return Setting(default, int, low, high, optional=default is None, **options)


def number(default: float | None, low: float, high: float, ends: str = "[]", **options) -> Setting:
    """A setting that is a number within `ends` of `low` and `high`, never nan; one whose default is None may be None."""
    return Setting(default, float, low, high, ends, optional=default is None, **options)


def choice(default: Any, names: Iterable[str], **options) -> Setting:
    """A setting that is one of some names."""
    return Setting(default, str, names=tuple(names), **options)


def text(default: str, **options) -> Setting:
    """A setting that is any text."""
    return Setting(default, str, **options)


def flag(default: bool, **options) -> Setting:
    """A setting that is True or False."""
    return Setting(default, bool, **options)


def declared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same tree with a `Setting` for each leaf that is but a default: of its kind, and fixed when a run continues."""
    return {key: declared(leaf) if isinstance(leaf, Mapping) else _of_default(key, leaf) for key, leaf in settings.items()}


def _of_default(key: str, default: Any) -> Setting:
    if isinstance(default, Setting):
        return default
    several = isinstance(default, (tuple, list)) and len(default) > 0
    kinds = {type(value) for value in (default if several else (default,))}
    kind = float if kinds == {int, float} else kinds.pop() if len(kinds) == 1 else None
    if kind not in (bool, int, float, str):
        raise ValueError(f"{key} {default!r} is no default of a setting: give a number, text, True, False, or a tuple of these")
    return Setting(tuple(default) if several else default, kind, length=len(default) if several else None, fixed=True)


def defaults(settings: Mapping[str, Any]) -> Any:
    """The ConfigDict of all default values."""
    import ml_collections  # not there on a bare GPU image, where a command line is read for `benchmark`
    from ml_collections import config_dict

    def made(entry: Any) -> Any:
        if not isinstance(entry, Setting):
            return {key: made(below) for key, below in entry.items()}
        if entry.each_axis and entry.length is None:  # a number or a tuple
            return config_dict.FieldReference(entry.default, field_type=object)
        return config_dict.placeholder(entry.kind) if entry.default is None else entry.default

    return ml_collections.ConfigDict(made(settings))


def check(config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the key and what it may be, for the first setting whose value is out of range."""
    for key, setting in flat(settings):
        value = config
        for name in key.split("."):
            value = value[name]
        if problem := setting.problem(value):
            raise ValueError(f"{key} {value!r} must be {problem}")


def check_heads(prefix: str, width: int, heads: int, axes: int) -> None:
    """Raises ValueError for a width that does not divide into positions of so many axes, and into heads.

    `prefix` is what is before `width` and `heads` in the keys that are named.
    """
    if width % (features := POSITION_FEATURES[axes]) or heads < 1 or width % heads:
        raise ValueError(f"{prefix}width {width} must be a multiple of {features} and of {prefix}heads {heads}")
