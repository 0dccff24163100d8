"""The only entry point.

    python launch.py                                                         # the quickstart: pretrain, probe, report
    python launch.py pretrain --config configs/in1k_vith14.py --workdir DIR  # any other run; the same command continues it
    python launch.py pretrain ... --config.optim.peak_lr=1e-3                # any setting can be overridden

Nothing in ijepa_jax/ reads flags or the environment; this file does.
"""

import ctypes
import logging
import os
import platform
import shlex
import sys
from pathlib import Path

USAGE = "usage: python launch.py [pretrain] [--config FILE] [--workdir DIR] [--config.KEY=VALUE ...]"


class UsageError(ValueError):
    """A command line that cannot be understood: one line that names what was given and what would be right."""


def main(argv: list[str]) -> int:
    """Runs a command; returns the exit code."""
    command = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else "pretrain"
    if command not in COMMANDS:
        return fail(f"unknown command {command!r}: there is {', '.join(COMMANDS)}. {USAGE}")
    rest = argv[2:] if len(argv) > 1 and argv[1] == command else argv[1:]
    if "--help" in rest or "-h" in rest:
        print(f"{__doc__}\n{USAGE}")
        return 0
    return COMMANDS[command](rest)


def fail(message: str) -> int:
    """Prints one clear line; returns the exit code for a failure."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 1


def pretrain(arguments: list[str]) -> int:
    """Pretrains or continues a run, and prints its table of probes."""
    try:
        config, workdir = read_flags(arguments)
    except UsageError as error:
        return fail(str(error))
    set_up_jax()
    quieten_background()
    from ijepa_jax import train
    from ijepa_jax.checkpoint import CheckpointError

    try:
        train.pretrain(config, workdir, command=shlex.join(["python", "launch.py", *sys.argv[1:]]))
    except train.Stopped as stopped:
        print(stopped, flush=True)
    except (ValueError, CheckpointError, train.Diverged, OSError) as error:
        if "--debug" in arguments:
            raise
        return fail(" ".join(str(error).split()) or type(error).__name__)
    return 0


COMMANDS = {"pretrain": pretrain}


def read_flags(arguments: list[str]):
    """The settings and the workdir that a command line asks for; raises UsageError."""
    from absl import flags
    from ml_collections import config_flags

    file = config_file(arguments)
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_file("config", file, flag_values=values, sys_argv=["launch.py", *arguments])
        flags.DEFINE_string("workdir", None, "Where the run lives.", flag_values=values)
        flags.DEFINE_boolean("debug", False, "Show where an error came from.", flag_values=values)
        left = values(["launch.py", *arguments])[1:]
        settings = values.config
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, SyntaxError) as error:
        raise UsageError(explain(error, arguments)) from error
    if left:
        raise UsageError(f"unexpected argument {left[0]!r}. {USAGE}")
    return settings, values.workdir or str(Path("runs", Path(file).stem))


def config_file(arguments: list[str]) -> str:
    """The configuration file that a command line names, the quickstart's where it names none."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            file = value if equals else next(iter(arguments[i + 1 :]), "")
            if not Path(file).is_file():
                raise UsageError(f"no configuration file {file!r}: see configs/")
            return file
    return str(Path(__file__).resolve().parent / "configs" / "quickstart.py")


def explain(error: Exception, arguments: list[str]) -> str:
    """One line for an error in reading settings; for an unknown key, the nearest there is."""
    text = " ".join(str(error).replace("\\n", " ").replace('"', "").replace("\\", "").split()).strip("' ")
    if isinstance(error, (AttributeError, KeyError)):
        unknown = text.split("'")[0]
        given = next((argument.split("=")[0] for argument in arguments if unknown in argument), unknown)
        _, _, nearest = text.partition("Did you mean ")
        hint = (
            f"did you mean {given.replace(unknown, nearest.split()[0])}?"
            if nearest
            else "ijepa_jax/config.py lists all there are"
        )
        return f"unknown setting {given}: {hint}"
    return text


def set_up_jax() -> None:
    """Settings of the runtime that belong to a process and not to a run."""
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path.home() / ".cache" / "ijepa_jax" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Has glibc keep what is freed: a step on CPU allocates the same buffers again, and is a fifth faster for it."""
    if platform.libc_ver()[0] != "glibc":
        return
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # names of mallopt's options, see malloc.h
    for option, value in ((mmap_threshold, 32 << 20), (trim_threshold, 2**31 - 1), (top_pad, 256 << 20)):
        ctypes.CDLL(None).mallopt(option, value)


def quieten_background() -> None:
    """Keeps background writers from printing tracebacks of failures that the run itself reports, in one line."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    usual = sys.excepthook

    def hook(kind, error, traceback):
        if "Event loop is closed" not in str(error):
            usual(kind, error, traceback)

    sys.excepthook = hook


if __name__ == "__main__":
    sys.exit(main(sys.argv))
