"""The command line: commands and their flags, which argparse reads, and settings, which ml_collections reads.

`parse` reads the flags, and imports neither JAX nor ml_collections; `configure` reads the configuration, with the settings that
the command line changes. Neither looks at the environment.
"""

import argparse
import dataclasses
import difflib
import functools
import os
import re
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ijepa_jax.settings import paper, ranges
from ijepa_jax.settings.architectures import ATTENTION, REMAT, SIZES
from ijepa_jax.settings.plain import flat
from ijepa_jax.settings.ranges import Setting, choice, flag, number, text, whole

_ROOT = Path(__file__).resolve().parent.parent
_MANY = 10**9
_BROKEN = (AttributeError, KeyError, ValueError, TypeError, SyntaxError, ImportError)  # what a configuration's file may raise
_format = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=28, width=128)


class UsageError(argparse.ArgumentTypeError):
    """A command line that cannot be understood: one line that names what was given and what would be right."""


class Parser(argparse.ArgumentParser):
    """One whose errors are a `UsageError`, with the usage in the same line."""

    def error(self, message: str) -> None:
        message = re.sub(r"^argument (\S+): ", r"\1 ", message)
        message = re.sub(r"ignored explicit argument (.*)", r"takes no value: \1 is given", message)
        raise UsageError(f"{message.rstrip('.')}{'.' * (message[-1] != '?')} {' '.join(self.format_usage().split())}")


def parse_mesh(given: str) -> dict[str, int]:
    """The sizes of a mesh that are written data=8,fsdp=4: either may be left out, or -1; raises UsageError."""
    parts = re.findall(r"(data|fsdp)=(-1|[1-9][0-9]{0,5})(?:,|$)", given)
    sizes = {name: int(size) for name, size in parts}
    if len(sizes) < len(parts) or ",".join(f"{name}={size}" for name, size in parts) != given:
        raise UsageError(f"{given!r} must be like data=8,fsdp=4, each once (-1: what is left)")
    return sizes


def compiler_options(given: str) -> dict[str, str | bool]:
    """Options as KEY=VALUE,KEY=VALUE; a value may hold commas. Raises UsageError for what has no value."""
    parts = [part.partition("=") for part in re.split(r",(?=\w+=)", given) if given]
    if not all(equals for _, equals, _ in parts):
        raise UsageError(f"{given!r} must be KEY=VALUE,KEY=VALUE")
    return {name: {"true": True, "false": False}.get(value.lower(), value) for name, _, value in parts}


def data_sets(given: str) -> dict[str, str]:
    """Data sets by the keys of `paper.DATA`, of NAME,KEY=NAME,...; a name without a key is ImageNet's. Raises UsageError."""
    parts = [part.partition("=")[::2] if re.match(r"\w+=", part) else ("imagenet", part) for part in given.split(",") if part]
    found = dict(parts)
    if unknown := found.keys() - paper.DATA.keys():
        raise UsageError(f"{given!r} has {', '.join(sorted(unknown))}: there is {', '.join(paper.DATA)}")
    if len(found) < len(parts) or not all(found.values()):
        raise UsageError(f"{given!r} must be NAME,KEY=NAME,..., each once")
    return found


_ANY = text(None)


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of a command: its default and what it may be are those of a setting. Empty it may be only if its default is."""

    help: str
    values: Setting = _ANY
    shown: str | None = None  # what stands for its value in the usage; None: N, or the names that it may have
    required: bool = False
    setting: str = ""  # of the configuration, that it stands for
    read: Callable[[str], Any] | None = None  # what makes its value of a text

    def value(self, given: str) -> Any:
        """Its value of a text; raises UsageError."""
        if not given and self.values.default != "":
            raise UsageError("is empty: give it a value" + ", or leave it out" * (not self.required))
        if self.read or not given:
            return self.read(given) if self.read else given
        try:
            value = self.values.kind(given)
        except ValueError:
            value = None
        if problem := dataclasses.replace(self.values, optional=False).problem(value):
            subject = f"{given!r} is not known: it" if self.values.names else given
            raise UsageError(f"{subject} must be {problem}")
        return value

    def add_to(self, group: argparse._ArgumentGroup, name: str) -> None:
        """Declares it to argparse."""
        default, kind = self.values.default, self.values.kind
        told = f" (default: {default})" if default not in (None, "") and kind is not bool else ""
        options = {"type": self.value, "choices": self.values.names or None, "default": default, "required": self.required}
        options["metavar"] = {int: "N", float: "X"}.get(kind, self.shown)
        group.add_argument(_spelt(name), help=self.help + told, **({"action": "store_true"} if kind is bool else options))


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: the line that tells what it does, its flags, and, where it has a configuration, of what and which."""

    help: str
    flags: dict[str, Flag]
    config: str = ""  # the key that its configuration must have; empty: it has none
    file: str | None = "configs/quickstart.py"  # the configuration where none is given; empty: one must be; None: there is none


_EVERY = {
    "debug": Flag("show where an error came from", flag(False)),
    "dry_run": Flag("check flags and settings, and run nothing", flag(False)),
}
_PROCESSES = {
    "coordinator": Flag("of process 0, where no cluster tells which processes there are", shown="HOST:PORT"),
    "num_processes": Flag("how many there are, likewise", whole(None, 1, _MANY)),
    "process_id": Flag("which one this is, likewise", whole(None, 0, _MANY)),
}
_MESH = {"mesh": Flag("sizes of the device mesh; -1: what is left", shown="data=8,fsdp=4", read=parse_mesh)}
_DEVICES = _MESH | _PROCESSES
_CHECKPOINT = {"checkpoint": Flag("the workdir of a pretraining run, or of imported weights", shown="DIR", required=True)}
_STEP = {"step": Flag("which checkpoint; 0: the best by probe, else the newest; -1: the newest", whole(0, -1, _MANY))}
_DIRECTORY = {"directory": Flag("where tfds data sets are prepared", text(""), "DIR")}
_SIZES = {
    "model": Flag("a named size", choice("vit_huge", SIZES)),
    "patch": Flag("side of a patch, in pixels", whole(14, 1, _MANY)),
    "image": Flag("side of the images, in pixels", whole(224, 1, _MANY)),
    "batch": Flag("images a step, over all devices", whole(128, 1, _MANY)),
    "context": Flag("patches that the context encoder sees of an image", whole(72, 1, _MANY)),
    "target": Flag("patches of a target block", whole(42, 1, _MANY)),
    "blocks": Flag("target blocks", whole(4, 1, _MANY)),
    "width": Flag("width of the encoder; 0: the named size's", whole(0, 0, _MANY)),
    "depth": Flag("its depth, likewise", whole(0, 0, _MANY)),
    "predictor_width": Flag("width of the predictor", whole(384, 4, _MANY)),
    "predictor_depth": Flag("its depth", whole(12, 1, _MANY)),
    "dtype": Flag("of the computation; by default float32 on CPUs, else bfloat16", choice(None, ("float32", "bfloat16"))),
    "attention": Flag("what computes it; auto: cuDNN where it applies", choice("auto", ATTENTION)),
    "scan": Flag("scan over blocks instead of unrolling them", flag(False)),
    "remat": Flag("what the backward pass computes again", choice("none", REMAT)),
    "context_blocks": Flag("context blocks of an image, for which the target encoder runs once", whole(1, 1, _MANY)),
    "predictor_context": Flag("see predictor.context", choice("joint", ("joint", "alone"))),
    "target_last_block": Flag("see target.last_block", choice("all", ("all", "targets", "distinct"))),
    "target_float8": Flag("multiply in eight bits in the target encoder", flag(False)),
}
_RUN = {
    "workdir": Flag("where the run lives, by default runs/NAME; the same command continues it", shown="DIR"),
    "stopped_code": Flag(
        "exit code after a stop that was asked for; not 0 for schedulers that restart what fails", whole(0, 0, 255)
    ),
}
COMMANDS = {
    "pretrain": Command("pretrain, or continue a run, and print its probes", _RUN | _DEVICES, "method"),
    "evaluate": Command("evaluate a checkpoint by a protocol, or by all that the paper has", _CHECKPOINT | {
        "out": Flag("where the table goes, as JSON and Markdown; by default WORKDIR/evaluate", shown="DIR"),
        "suite": Flag("instead of --config: all evaluations of the paper, beside its figures", choice(None, ("paper",))),
        "data": Flag(
            f"of a suite: ImageNet, and others as KEY=NAME with commas between ({', '.join(paper.DATA)})", text(""), "NAME",
            read=data_sets),
        "published": Flag("of a suite: the run to compare with; by default the encoder's own", choice(None, paper.RUNS), "RUN"),
        "only": Flag("of a suite: these, by configuration or data, with commas between: linear_in1k,clevr", text(""), "NAMES"),
        "scale": Flag("of a suite: tiny, to rehearse it", choice(None, ("tiny",))),
    } | _DEVICES, "protocol", ""),
    "features": Command("write features of a data set to a file, for other tools", _CHECKPOINT | {
        "out": Flag("gets features, files, split, and label_TASK where there are labels", shown="FILE.npz", required=True),
        "data": Flag("what to take features of, named as for training; by default the checkpoint's own", text(""), "NAME"),
        "kind": Flag("last4: of four blocks; layers: of each", choice("last", ("last", "last4", "patches", "layers", "class"))),
        "split": Flag("of the data", choice("all", ("train", "test", "all"))),
    } | _DIRECTORY | _STEP | _PROCESSES),
    "visualize": Command("draw what a checkpoint has learned, as a page of pictures", _CHECKPOINT | {
        "out": Flag("where pictures and page go; by default WORKDIR/visualize", shown="DIR"),
        "data": Flag("whose images are drawn, named as for training; by default the checkpoint's own", text(""), "NAME"),
        "split": Flag("of the data", choice("test", ("train", "test"))),
        "images": Flag("images drawn", whole(8, 1, 64)),
        "bank": Flag("images that neighbours are looked for among, and that the map shows", whole(2000, 1, _MANY)),
        "seed": Flag("of the random encoder, the masks, and which images are drawn", whole(0, 0, 2**31 - 1)),
    } | _DIRECTORY | _STEP | _PROCESSES),
    "decode": Command("train a diffusion decoder of a checkpoint's representations", {
        "checkpoint": Flag("the workdir to decode from", shown="DIR", required=True, setting="decoder.checkpoint"),
        "step": Flag(_STEP["step"].help, whole(None, -1, _MANY), setting="decoder.step"),
    } | _RUN | _DEVICES, "method", "configs/decode.py"),
    "prepare": Command("pack images into a data set, tfds:DIR", {
        "from": Flag("what to pack: folder:PATH, arrays:FILE.npz, idx:DIR, tfds:NAME or scenes", shown="NAME", required=True),
        "out": Flag("a new folder, gs:// or s3:// too; the same command continues it", shown="DIR", required=True),
        "short_side": Flag("which larger images are shrunk to; 0: none; 416 serves crops of 224", whole(416, 0, _MANY)),
        "quality": Flag("of the JPEG files that are made where an image cannot stay as it is", whole(92, 1, 100)),
        "workers": Flag("processes; 0: none but this one", whole(os.cpu_count() or 1, 0, _MANY)),
        "max_bad_fraction": Flag("more unreadable images than this stop the command", number(0.01, 0, 1)),
    }),
    "import": Command("make a workdir of weights of the authors, transformers or timm", {
        "from": Flag("the authors' .pth.tar, transformers' or timm's folder, or .safetensors", shown="WEIGHTS", required=True),
        "out": Flag("a new workdir, for all other commands", shown="DIR", required=True),
        "heads": Flag("of the attention, where neither a configuration nor a known size tells", whole(None, 1, _MANY)),
    }, "method", None),
    "export": Command("write a checkpoint's encoder for transformers, timm or the authors' code", _CHECKPOINT | {
        "format": Flag("reference: the authors'", choice(None, ("huggingface", "timm", "reference")), required=True),
        "out": Flag("a new folder", shown="DIR", required=True),
        "encoder": Flag("the one that is evaluated, or the one that it follows", choice("target", ("target", "context"))),
    } | _STEP),
    "benchmark": Command("time the training step, of the sizes given or of a configuration", _SIZES | {
        "steps": Flag("that are timed", whole(20, 1, _MANY)),
        "warmup": Flag("steps before these", whole(5, 1, _MANY)),
        "data": Flag("also feed the step with this data set, named as for training", text(""), "NAME"),
        "compiler_options": Flag("options of the compiler", text(""), "KEY=VALUE,...", read=compiler_options),
        "cpu": Flag("on the CPU, also where there is an accelerator", flag(False)),
    }, "method", None),
    "plan": Command("compile a run's training step for hardware that is not there: would it fit?", {
        "topology": Flag(
            "v5e, v5p or v6e and the slice's sides (needs libtpu: pip install 'jax[tpu]'); h100, h200, a100 and GPUs, h100:8, "
            "or hosts and GPUs, h100:2x8 (needs jax's CUDA plugin: pip install 'jax[cuda13]'); or simulated devices, cpu:8",
            shown="v5e:16x16", required=True,
        ),
        "images": Flag("images of the data, for the chip-hours of a run whose length is in epochs", whole(0, 0, _MANY)),
    } | _MESH, "method"),
}  # fmt: skip


def read(arguments: list[str], count: Callable[[Any], int] | None = None) -> argparse.Namespace:
    """What a command line gives a command, its configuration included (see `configure`); raises UsageError."""
    given = parse(arguments)
    configure(given, count)
    return given


def parse(arguments: list[str], examples: str = "") -> argparse.Namespace:
    """The flags of a command line, `command_name`, and of what its configuration is to be made; raises UsageError.

    `--help` prints and exits; where no command is named, with the `examples`.
    """
    made = parsers(examples)
    if arguments[:1] in (["--help"], ["-h"]):
        made[""].parse_args(arguments[:1])
    name, words = (arguments[0], arguments[1:]) if arguments and not arguments[0].startswith("-") else ("pretrain", arguments)
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name!r}: there is {', '.join(COMMANDS)}. See python launch.py --help")
    command = COMMANDS[name]
    words, overrides = separated(words)
    if "--help" in words or "-h" in words:
        made[name].epilog = described(command, words, overrides)
        made[name].parse_args(["--help"])
    known = [*map(_spelt, [*command.flags, *_EVERY]), *["--config"] * bool(command.config)]
    for word in (word.partition("=")[0] for word in words):
        if word.startswith("--") and word not in known:
            near = difflib.get_close_matches(word, known, 1)
            made[name].error(f"unknown flag {word}" + (f": did you mean {near[0]}?" if near else ""))
    given, left = made[""].parse_known_args([name, *words])
    if left:
        made[name].error(f"unexpected argument {left[0]!r}")
    files = getattr(given, "files", None)
    suite = getattr(given, "suite", None)
    if command.file == "" and not files and not suite:
        made[name].error("the following arguments are required: --config")
    if suite and files:
        made[name].error("--suite has configurations of its own: leave --config out")
    if (
        name == "evaluate"
        and not suite
        and (own := [flag for flag in ("data", "published", "only", "scale") if getattr(given, flag)])
    ):
        made[name].error(f"--{own[0]} is of a suite: give --suite paper, or settings as --config.KEY")
    given.overrides, given.config_file, given.config_given = overrides, chosen_file(command, files), bool(files)
    if overrides and not given.config_file and not suite:
        why = "give --config FILE" if command.config else f"{name} has none"
        made[name].error(f"{overrides[0]} is a setting of a configuration: {why}")
    return given


def parsers(examples: str = "") -> dict[str, Parser]:
    """The parser of all commands, as "", and that of each."""
    shared = {"formatter_class": _format, "allow_abbrev": False}
    main = Parser("python launch.py", usage="python launch.py [COMMAND] [FLAG ...]", epilog=examples, **shared)
    listed = main.add_subparsers(title="commands", metavar="COMMAND [FLAG ...]", dest="command_name", prog="python launch.py")
    made = {"": main}
    for name, command in COMMANDS.items():
        parser = listed.add_parser(name, help=command.help, description=command.help, add_help=False, **shared)
        made[name] = parser
        if command.config:
            group = parser.add_argument_group("configuration")
            options = {"dest": "files", "action": "append"}
            shown = "FILE" if command.file != "" else "configs/evaluate/PROTOCOL.py"
            default = f" (default: {command.file})" if command.file else ""
            group.add_argument("--config", **options, metavar=shown, help=f"see configs/; --help lists its settings{default}")
            group.add_argument("--config.KEY", metavar="VALUE", default=argparse.SUPPRESS, help="changes one of its settings")
        own, devices, every = (parser.add_argument_group(title) for title in ("flags", "devices", "every command"))
        for key, spec in (command.flags | _EVERY).items():
            spec.add_to(every if key in _EVERY else devices if key in _DEVICES else own, key)
        every.add_argument("-h", "--help", action="help", help="show this")
    return made


def separated(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words of flags, as argparse knows them, and the settings, each --config.KEY=VALUE, or --config.KEY of what is True.

    The value of a setting may be a word of its own; flags may be written with underscores.
    """
    words: list[str] = []
    overrides: list[str] = []
    opened = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--config."):
            overrides.append(argument)
        elif opened and not name.startswith("--"):
            overrides[-1] += f"={argument}"
        else:
            words.append(_spelt(name.removeprefix("--")) + equals + value if name.startswith("--") else argument)
        opened = name.startswith("--config.") and not equals
    return words, overrides


def _spelt(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _asked(overrides: list[str]) -> dict[str, str]:
    return {key: value if equals else "True" for key, equals, value in (each[9:].partition("=") for each in overrides)}


def chosen_file(command: Command, files: list[str] | None) -> str:
    """The configuration file that a command line names, else the command's own, if it has one; raises UsageError."""
    if not files:
        return str(_ROOT / command.file) if command.config and command.file else ""
    if len(files) > 1:
        times = f"{len(files)} times, {' and '.join(files)}"
        raise UsageError(f"--config is given {times}: give one file, and settings as --config.KEY")
    if not Path(files[0]).is_file():
        raise UsageError(f"no configuration file {files[0]!r}: see configs/")
    return files[0]


def configure(given: argparse.Namespace, count: Callable[[Any], int] | None = None) -> None:
    """Reads the configuration of a command, if it has one, into `given.config`; raises UsageError.

    `count` tells the number of training images of a configuration; None: data are not to be looked at.
    """
    command = COMMANDS[given.command_name]
    if getattr(given, "suite", None):
        given.evaluations = evaluations(given)
    if not given.config_file:
        return
    for name in command.flags.keys() & _SIZES.keys():
        if getattr(given, name) != command.flags[name].values.default:
            raise UsageError(f"{_spelt(name)} is the configuration's own: leave it out, or --config")
    config, known, derive = load(command, given.config_file, given.overrides)
    given.config = overridden(config, known, given.overrides)
    if derive:
        ranges.check(given.config, known)
        derive(given.config, _asked(given.overrides).keys(), count and functools.partial(count, given.config))
    if getattr(given, "mesh", None):
        given.config.mesh.update(given.mesh)
    for name, spec in command.flags.items():
        if spec.setting and spec.setting.partition(".")[0] not in given.config:
            raise UsageError(f"{_spelt(name)} is for configurations with {spec.setting}, which {given.config_file} has not")
        if spec.setting and getattr(given, name) is not None:
            given.config.update_from_flattened_dict({spec.setting: getattr(given, name)})


def evaluations(given: argparse.Namespace) -> list[tuple[paper.Evaluation, Any]]:
    """The evaluations of a suite with their configurations; without one (None): no data set is known by its name."""
    command, named, made = COMMANDS["evaluate"], given.data or {}, []
    found, given.only = {**paper.DATA, **named}, [name for name in given.only.split(",") if name]
    if own := [key for key in ("protocol", "data.name", "data.fraction") if key in _asked(given.overrides)]:
        raise UsageError(f"--config.{own[0]} is each evaluation's own in a suite: data sets are named by --data")
    if unknown := {*given.only} - {*_names_of_evaluations()}:
        raise UsageError(f"--only names {', '.join(sorted(unknown))}: there is {', '.join(_names_of_evaluations())}")
    for each in paper.EVALUATIONS:
        config, known, _ = load(command, str(_ROOT / "configs" / "evaluate" / f"{each.file}.py"), [])
        if each.data == "lowshot" and "imagenet" in named and "lowshot" not in named:  # drawn of the images at hand
            config.data.name, config.data.fraction = found["imagenet"], 0.01
        else:
            config.data.name = found[each.data]
        config.update_from_flattened_dict(paper.TINY if given.scale == "tiny" else {})
        config = overridden(config, known, given.overrides)
        config.mesh.update(given.mesh or {})
        made.append((each, config if config.data.name else None))
    return made


def _names_of_evaluations() -> list[str]:
    return list(dict.fromkeys([each.file for each in paper.EVALUATIONS] + [each.data for each in paper.EVALUATIONS]))


def load(command: Command, file: str, overrides: list[str]) -> tuple[Any, dict[str, Setting], Callable | None]:
    """The configuration of a file, with the sections of the method asked for, and all settings there are by dotted keys.

    Third, the file's function `derive`, if it has one: called with the configuration once the command line's settings are in
    it, with their keys, and, where data may be read, with a function that counts training images, it sets what follows.
    """
    try:
        module = runpy.run_path(file) if file else {}
        if file and "get_config" not in module:
            raise UsageError(f"{file} is no configuration: it has no function get_config")
        config = module["get_config"]() if file else None
        if file and command.config not in config:
            kind = "an evaluation: see configs/evaluate/" if command.config == "protocol" else "a run: see configs/"
            raise UsageError(f"{file} is not the configuration of {kind}")
        if command.config == "protocol":
            from ijepa_jax.settings import evaluation

            return config or evaluation.default("knn"), dict(flat(evaluation.SETTINGS)), module.get("derive")
        from ijepa_jax.methods import config as runs

        method = _asked(overrides).get("method", config.method)
        return runs.with_method(config, method), dict(flat(runs.sections(method))), module.get("derive")
    except _BROKEN as error:
        raise UsageError(plain(error)) from error


def overridden(config: Any, known: Mapping[str, Setting], overrides: list[str]) -> Any:
    """A configuration with some settings changed, as ml_collections reads them; raises UsageError."""
    from absl import flags
    from ml_collections import config_flags  # not there on a bare GPU image, where `benchmark` runs

    asked = _asked(overrides)
    unset = [key for key, value in asked.items() if value == "None" and known.get(key, text("")).optional]
    arguments = ["launch.py", *(each for each in overrides if each not in [f"--config.{key}=None" for key in unset])]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        values(arguments)
        values.config.update_from_flattened_dict(dict.fromkeys(unset))  # absl has no None among numbers
    except (flags.Error, *_BROKEN) as error:
        raise UsageError(explain(error, asked, known)) from error
    return values.config


def explain(error: Exception, asked: Mapping[str, str], known: Mapping[str, Setting]) -> str:
    """One line for an error in reading settings; for an unknown key, the nearest there is."""
    for key, value in asked.items():
        if key not in known and not any(each.startswith(f"{key}.") for each in known):
            ends = {each.rpartition(".")[2]: each for each in known}
            near = difflib.get_close_matches(key, known, 1) or difflib.get_close_matches(key.rpartition(".")[2], ends, 1)
            hint = f"did you mean --config.{ends.get(near[0], near[0])}?" if near else "--help lists all there are"
            return f"unknown setting --config.{key}: {hint}"
        if f"flag --config.{key}={value}" in str(error) and key in known:
            return f"--config.{key}={value} must be {known[key].described()}"
    return plain(error)


def plain(error: Exception) -> str:
    """An error of absl's or of Python's in one line."""
    line = " ".join(str(error).replace("\\n", " ").replace('"', "").replace("\\", "").split())
    return line[1:-1] if line.startswith("'") and line.endswith("'") else line


def described(command: Command, words: list[str], overrides: list[str]) -> str:
    """The settings of a command's configuration, with their values and ranges; of the one that stands beside --help, if any."""
    first = Parser("python launch.py", add_help=False, allow_abbrev=False)
    first.add_argument("--config", dest="files", action="append")
    file = chosen_file(command, first.parse_known_args(words)[0].files)
    if not file and command.config != "protocol":
        return ""
    config, known, _ = load(command, file, overrides)
    values = dict(flat(config.to_dict()))
    whose = f"those of {os.path.relpath(file)}" if file else "the defaults"
    lines = [f"{key}={values.get(key)}".ljust(40) + f"  {spec.described()}" for key, spec in known.items()]
    return "\n  ".join([f"settings, each as --config.KEY=VALUE; values are {whose}:", *lines])
