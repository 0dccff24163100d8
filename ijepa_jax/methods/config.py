"""The configuration of a run: the settings that all runs share (settings/run.py), and the sections of the run's method.

A file in configs/ starts from `default()` and changes what is its own; a command line overrides single keys
(`--config.optim.peak_lr=1e-3`). A key that there is not is refused.
"""

from typing import Any

import ml_collections

from ijepa_jax.methods.table import TABLE, find, found_again
from ijepa_jax.settings import ranges, run
from ijepa_jax.settings.plain import flat
from ijepa_jax.settings.run import SETTINGS

# Kept with the settings in checkpoints: how many training images there were, which (see `data.source.Source.contents`), and
# what tells a method of one's own from another (see `methods.identity`).
EXAMPLES, CONTENTS, CODE = "examples", "contents", "method_code"
_GONE = ("probe.knn_k", "probe.knn_temperature", "probe.lidar_views")  # settings of older checkpoints that changed no weight


def sections(method: str) -> dict[str, Any]:
    """All settings of runs with this method: those that runs share, and the method's own sections."""
    own = ranges.declared(find(method).settings())
    if shared := own.keys() & SETTINGS.keys():
        raise ValueError(f"method {method!r} has settings of its own named {', '.join(shared)}, as all runs have: rename them")
    for key, _ in flat(own):
        if hasattr(ml_collections.ConfigDict, key.rpartition(".")[2]):
            raise ValueError(f"method {method!r} has a setting {key}: a configuration has a function of that name, rename it")
    return {**SETTINGS, **own}


def default(method: str = "ijepa") -> ml_collections.ConfigDict:
    """All settings, at the values of the paper's ViT-B/16 on ImageNet-1K where it has them (METHOD: appendix A)."""
    config = ranges.defaults(sections(method))
    config.method = method
    return config


def with_method(config: ml_collections.ConfigDict, method: str) -> ml_collections.ConfigDict:
    """The same settings for another method: with its sections, at their defaults, where there are none of these yet.

    Raises ValueError for settings in its sections that it has not.
    """
    made = default(method)
    left = {section for section in own_sections(config.method) if section not in made} | {"method"}
    left |= set() if _same(method, config.method) else {"custom"}  # another class's
    for section, given in config.items():
        if section in left:
            continue
        if section not in made:
            raise ValueError(f"unknown setting {section}: method {method!r} has {', '.join(made)}")
        if not isinstance(given, ml_collections.ConfigDict):
            made[section] = given
            continue
        if unknown := [f"{section}.{key}" for key in given if key not in made[section]]:
            raise ValueError(f"unknown settings {', '.join(unknown)}: method {method!r} has {', '.join(made[section])}")
        made[section].update(given.to_dict())
    return made


def _same(method: str, other: str) -> bool:
    """Whether two names are of one class."""
    try:
        return method == other or find(method) is find(other)
    except ValueError:
        return False


def own_sections(method: str) -> set[str]:
    """The names of a method's own sections; none of a user's that cannot be found any more."""
    try:
        return {*find(method).settings()}
    except ValueError:
        return {"custom"}


def from_plain(settings: dict[str, Any]) -> ml_collections.ConfigDict:
    """The inverse of `to_plain`, for the settings kept with a checkpoint; keys that are newer than it take their default.

    Raises ValueError for keys that there are not: what they did, nobody knows here.
    """
    method = found_again(settings["method"], settings.get(CODE, {}))
    config = default(method)
    settings = {section: value for section, value in settings.items() if section not in (EXAMPLES, CONTENTS, CODE, "method")}
    known = dict(flat(config.to_dict()))
    if any(section not in config for section in settings):  # once every run had the sections of all methods
        others = {section for name in TABLE for section in own_sections(name)} - {*config}
        settings = {section: value for section, value in settings.items() if section not in others}
    if unknown := [f"{key}={value!r}" for key, value in flat(settings) if key not in {*known, *_GONE}]:
        whose = "" if method in TABLE else f", or of {method},"
        raise ValueError(f"unknown settings {', '.join(unknown)}: use the version of ijepa_jax{whose} that has them")
    for section, value in settings.items():
        if isinstance(value, dict):
            kept = {key: v for key, v in value.items() if f"{section}.{key}" not in _GONE}
            config[section].update({key: tuple(v) if isinstance(v, list) else v for key, v in kept.items()})
        else:
            config[section] = value
    return config.lock()


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError, naming the key, where settings contradict each other or are out of range."""
    known = sections(config.method)
    if missing := [section for section in known if section not in config]:
        raise ValueError(f"{', '.join(missing)} is missing in the settings of method {config.method!r}: see config.with_method")
    run.check(config, known)


def check_run(config: ml_collections.ConfigDict) -> None:
    """As `check`, and that there is all that a run needs; weights that were imported have settings, but no length of a run."""
    check(config)
    run.check_length(config)


def fixed_on_resume(key: str, method: str) -> bool:
    """Whether a dotted key must stay as it was when a run continues: the weights' shapes, the task, the order of the data."""
    if key.partition(".")[0] in (EXAMPLES, CONTENTS) or key == f"{CODE}.class":
        return True
    setting = dict(flat(sections(method))).get(key)
    return setting is not None and setting.fixed
