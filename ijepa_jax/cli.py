"""What a command line asks of a command: flags as data, with the settings of a configuration file among them."""

import dataclasses
import difflib
import re
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import flags

from ijepa_jax.settings import ranges
from ijepa_jax.settings.plain import flat


class UsageError(ValueError):
    """A command line that cannot be understood: one line that names what was given and what would be right."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of a command; without a default it is of the kind given, and None where it is not given."""

    shown: str  # what stands for its value in the line of usage
    help: str
    default: Any = None
    required: bool = False
    kind: type = str
    low: float | None = None
    high: float | None = None
    setting: str = ""  # of the configuration, that it stands for


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: what runs it, its flags, and, where it has a configuration, of what that must be."""

    run: Callable[[SimpleNamespace], int]
    flags: dict[str, Flag]
    config: str = ""  # the key that its configuration must have; empty: it has none
    config_required: str = ""  # what is said where none is given
    config_default: str | None = "configs/quickstart.py"  # what is taken where none is given; None: the flags say it all


def flags_of(command: Command) -> dict[str, Flag]:
    """All flags of a command but its configuration's."""
    return {
        **command.flags,
        "debug": Flag("", "show where an error came from", False),
        "dry_run": Flag("", "check flags and settings, and run nothing", False),
    }


def usage(name: str, command: Command) -> str:
    """The line that shows how a command is called."""
    parts = [name]
    if command.config:
        parts.append("--config FILE" if command.config_required else "[--config FILE] [--config.KEY=VALUE ...]")
    for flag, spec in flags_of(command).items():
        shown = f"--{flag.replace('_', '-')} {spec.shown}".strip()
        parts.append(shown if spec.required else f"[{shown}]")
    return f"usage: python launch.py {' '.join(parts)}"


def described(command: Command) -> str:
    """What the flags of a command mean."""
    flags = {"config": Flag("", "settings: see configs/; keys can be overridden")} if command.config else {}
    flags |= flags_of(command)
    return "\n".join(f"    --{flag.replace('_', '-'):<18}{spec.help}" for flag, spec in flags.items())


def read(name: str, command: Command, arguments: list[str]) -> SimpleNamespace:
    """What a command line gives a command; raises UsageError."""
    values = flags.FlagValues()
    for flag, spec in flags_of(command).items():
        define(flag, spec, values)
    arguments = joined([underscored(argument) for argument in arguments])
    given = SimpleNamespace(overrides=overrides(arguments))
    if command.config:
        given.config_file, given.config_given = config_file(arguments, name, command)
    if command.config and given.config_file:
        left = read_config(given.config_file, without_file(arguments), values, command.config)
    else:
        left = read_flags(arguments, values, usage(name, command))
    if left:
        raise UsageError(f"unexpected argument {left[0]!r}. {usage(name, command)}")
    named = {argument.partition("=")[0].removeprefix("--") for argument in arguments}
    empty = [flag for flag in ("workdir", "out", "mesh") if flag in named and not values[flag].value]
    if empty:
        raise UsageError(f"--{empty[0]} is empty: name a place, or leave it out")
    missing = [flag for flag, spec in command.flags.items() if spec.required and not values[flag].value]
    if missing:
        raise UsageError(f"--{missing[0]} is missing. {usage(name, command)}")
    vars(given).update({key: value for key, value in values.flag_values_dict().items() if key in flags_of(command)})
    if command.config and given.config_file:
        given.config = values.config
        if command.config not in given.config:
            kind = "an evaluation: see configs/evaluate/" if command.config == "protocol" else "a run: see configs/"
            raise UsageError(f"{given.config_file} is not the configuration of {kind}")
        if getattr(given, "mesh", None):
            given.config.mesh.update(parse_mesh(given.mesh))
        for flag, spec in command.flags.items():
            if spec.setting and spec.setting.partition(".")[0] not in given.config:
                raise UsageError(f"--{flag} is for configurations with {spec.setting}, which {given.config_file} has not")
            if spec.setting and getattr(given, flag) is not None:
                given.config.update_from_flattened_dict({spec.setting: getattr(given, flag)})
    return given


def define(name: str, spec: Flag, values: Any) -> None:
    """Declares a flag to absl."""
    kind = spec.kind if spec.default is None else type(spec.default)
    declare = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}[kind]
    bounds = {"lower_bound": spec.low, "upper_bound": spec.high} if kind in (int, float) else {}
    declare(name, spec.default, spec.help, flag_values=values, **bounds)


def read_flags(arguments: list[str], values: Any, usage: str) -> list[str]:
    """Reads a command line without a configuration; returns what is left of it."""
    try:
        left = values(["launch.py", *arguments])[1:]
    except flags.Error as error:
        raise UsageError(f"{plain(error)}; {usage}") from error
    if any(value != value for value in values.flag_values_dict().values()):
        raise UsageError(f"a number must be given. {usage}")
    return left


def read_config(file: str, arguments: list[str], values: Any, kind: str) -> list[str]:
    """Reads a command line with a configuration, which has the key `kind`, into `values.config`; returns what is left of it."""
    from ml_collections import config_flags  # not there on a bare GPU image, where `benchmark` runs

    given = dict(override.removeprefix("--config.").split("=", 1) for override in overrides(arguments))
    known: Mapping[str, ranges.Setting] = {}
    try:
        config = load_config(file)
        if kind in config:
            config, known = for_settings(config, kind, given)
        unset = [key for key, value in given.items() if value == "None" and known.get(key, ranges.text("")).optional]
        arguments = [argument for argument in arguments if argument not in [f"--config.{key}=None" for key in unset]]
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["launch.py", *arguments])
        left = values(["launch.py", *arguments])[1:]
        values.config.update_from_flattened_dict(dict.fromkeys(unset))  # absl has no None among numbers
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, SyntaxError, ImportError) as error:
        raise UsageError(explain(error, given, known)) from error
    return left


def load_config(file: str) -> Any:
    """What `get_config` of a configuration file returns."""
    module = runpy.run_path(file)
    if "get_config" not in module:
        raise UsageError(f"{file} is no configuration: it has no function get_config")
    return module["get_config"]()


def for_settings(config: Any, kind: str, given: Mapping[str, str]) -> tuple[Any, dict[str, ranges.Setting]]:
    """A configuration with the sections of its method, which the command line may name, and all settings by dotted keys."""
    from ijepa_jax.methods import config as runs
    from ijepa_jax.settings import evaluation as evaluations

    if kind != "method":
        return config, dict(flat(evaluations.SETTINGS))
    method = given.get("method", config.method)
    return runs.with_method(config, method), dict(flat(runs.sections(method)))


def parse_mesh(text: str) -> dict[str, int]:
    """The sizes of a mesh that are written data=8,fsdp=4: either may be left out, or -1; raises UsageError."""
    parts = re.findall(r"(data|fsdp)=(-1|[1-9][0-9]{0,5})(?:,|$)", text)
    sizes = {name: int(size) for name, size in parts}
    if len(sizes) < len(parts) or ",".join(f"{name}={size}" for name, size in parts) != text:
        raise UsageError(f"--mesh {text!r} must be like data=8,fsdp=4, each once (-1: what is left)")
    return sizes


def underscored(argument: str) -> str:
    """--short-side=3 as absl knows it, --short_side=3; settings keep their names."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or name.startswith("--config"):
        return argument
    return name.replace("-", "_").replace("__", "--", 1) + equals + value


def joined(arguments: list[str]) -> list[str]:
    """The arguments with settings whose value is a word of its own made one: --config.KEY=VALUE."""
    found: list[str] = []
    for argument in arguments:
        if found and found[-1].startswith("--config.") and "=" not in found[-1] and not argument.startswith("--"):
            found[-1] += f"={argument}"
        else:
            found.append(argument)
    return found


def config_file(arguments: list[str], name: str, command: Command) -> tuple[str, bool]:
    """The configuration file that a command line names, else the command's default, and whether it names one."""
    files = []
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == "config":
            files.append(value if equals else next(iter(arguments[i + 1 :]), ""))
    if len(files) > 1:
        raise UsageError(
            f"--config is given {len(files)} times, {' and '.join(files)}: give one file, and settings as --config.KEY"
        )
    if files:
        if not Path(files[0]).is_file():
            raise UsageError(f"no configuration file {files[0]!r}: see configs/")
        return files[0], True
    if command.config_required:
        raise UsageError(f"--config is missing: {command.config_required}. {usage(name, command)}")
    if command.config_default is None:
        if settings := overrides(arguments):
            raise UsageError(f"{settings[0]} is a setting of a configuration: give --config FILE. {usage(name, command)}")
        return "", False
    return str(Path(__file__).resolve().parent.parent / command.config_default), False


def without_file(arguments: list[str]) -> list[str]:
    """The arguments without the one that names the configuration file, in one word or two."""
    left = []
    for argument in arguments:
        if left and left[-1] in ("--config", "-config"):
            left.pop()
        elif not re.match(r"--?config=", argument):
            left.append(argument)
    return left


def overrides(arguments: list[str]) -> list[str]:
    """The settings that a command line overrides, as --config.KEY=VALUE each."""
    return [argument if "=" in argument else f"{argument}=True" for argument in arguments if argument.startswith("--config.")]


def explain(error: Exception, given: Mapping[str, str], settings: Mapping[str, ranges.Setting]) -> str:
    """One line for an error in reading a configuration; for an unknown key, the nearest there is."""
    for key, value in given.items() if settings else ():  # without, it is not known which there are
        if key not in settings and not any(known.startswith(f"{key}.") for known in settings):
            ends = {known.rpartition(".")[2]: known for known in settings}
            near = difflib.get_close_matches(key, settings, 1) or difflib.get_close_matches(key.rpartition(".")[2], ends, 1)
            hint = (
                f"did you mean --config.{ends.get(near[0], near[0])}?"
                if near
                else "ijepa_jax/methods/config.py, and the method's file, list all there are"
            )
            return f"unknown setting --config.{key}: {hint}"
        if isinstance(error, flags.IllegalFlagValueError) and f"--config.{key}={value}" in str(error) and key in settings:
            return f"--config.{key}={value} must be {settings[key].described()}"
    return plain(error)


def plain(error: Exception) -> str:
    """An error of absl's in one line."""
    return " ".join(str(error).replace("\\n", " ").replace('"', "").replace("\\", "").split()).strip("' ")
