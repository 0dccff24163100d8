"""The only entry point.

    python launch.py                                                         # the quickstart: pretrain, probe, report
    python launch.py pretrain --config configs/in1k_vith14.py --workdir DIR  # any other run; the same command continues it
    python launch.py pretrain ... --config.optim.peak_lr=1e-3                # any setting can be overridden
    python launch.py evaluate --config configs/evaluate/knn.py --checkpoint DIR  # or another of configs/evaluate/
    python launch.py features --checkpoint DIR --data folder:PATH --out features.npz  # for other tools
    python launch.py prepare --from folder:PATH --out DIR                    # pack images into a data set, tfds:DIR
    python launch.py plan --config FILE --topology v5e:16x16                 # would it fit there? compiled, without a TPU

Nothing in ijepa_jax/ reads flags or the environment; this file does.
"""

import contextlib
import ctypes
import json
import logging
import os
import platform
import shlex
import sys
import traceback
from pathlib import Path

USAGE = {
    "pretrain": (
        "usage: python launch.py [pretrain] [--config FILE] [--workdir DIR] [--mesh data=8,fsdp=4] [--config.KEY=VALUE ...] "
        "[--coordinator HOST:PORT --num_processes N --process_id I] [--stopped_code 0]"
    ),
    "evaluate": (
        "usage: python launch.py evaluate --config configs/evaluate/PROTOCOL.py --checkpoint DIR [--out DIR] "
        "[--mesh data=8,fsdp=4] [--config.KEY=VALUE ...] [--coordinator HOST:PORT --num_processes N --process_id I]"
    ),
    "features": (
        "usage: python launch.py features --checkpoint DIR --out FILE.npz [--data NAME] [--directory DIR] [--kind last] "
        "[--split all] [--coordinator HOST:PORT --num_processes N --process_id I]"
    ),
    "prepare": (
        "usage: python launch.py prepare --from NAME --out DIR [--short-side 416] [--quality 92] [--workers N] "
        "[--max-bad-fraction 0.01]"
    ),
    "plan": "usage: python launch.py plan --config FILE --topology v5e:16x16 [--mesh data=64,fsdp=4] [--config.KEY=VALUE ...]",
}
PRETRAIN_HELP = """
    --config        the run's settings: see configs/
    --workdir       where the run lives, by default runs/NAME; the same command continues it
    --mesh          sizes of the device mesh; -1: what is left
    --stopped_code  exit code of a run that was asked to stop and has saved: not 0 for schedulers that start again what fails
"""
PREPARE_HELP = """
    --from              what to pack: folder:PATH, arrays:FILE.npz, idx:DIR, tfds:NAME or scenes
    --out               where to: a new folder, local or gs:// or s3://; the same command continues what was stopped
    --short-side        pixels that larger images are shrunk to, 0 for none: 416 serves crops of 224 pixels, 832 of 448
    --quality           of the JPEG files that are made where an image cannot stay as it is
    --workers           processes; 0: none but this one
    --max-bad-fraction  more unreadable images than this stop the command
"""
PLAN_HELP = """
    --topology  v5e, v5p or v6e and the sides of the slice, v5e:4x4 (needs libtpu: pip install 'jax[tpu]'); or a number of
                simulated devices, cpu:8, h100:8, h200:8, a100:8 or gpu:8, for the collectives and the FLOPs
"""
EVALUATE_HELP = """
    --config      the protocol and its settings: those of configs/evaluate/ without _in1k take the checkpoint's own data
    --checkpoint  the workdir of a pretraining run, whose target encoder is evaluated
    --out         where the table goes, as JSON and Markdown; by default WORKDIR/evaluate
"""
FEATURES_HELP = """
    --checkpoint  the workdir of a pretraining run, whose target encoder is used
    --out         an .npz file: features, files, split, and label_TASK where there are labels
    --data        what to take features of, named as for training; by default the checkpoint's own
    --directory   where tfds data sets are prepared
    --kind        last (pooled), last4 (of the last four blocks), patches, or layers (every block, pooled)
    --split       train, test or all
"""
HELP = {
    "pretrain": PRETRAIN_HELP,
    "prepare": PREPARE_HELP,
    "plan": PLAN_HELP,
    "evaluate": EVALUATE_HELP,
    "features": FEATURES_HELP,
}


class UsageError(ValueError):
    """A command line that cannot be understood: one line that names what was given and what would be right."""


def main(argv: list[str]) -> int:
    """Runs a command; returns the exit code."""
    command = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else "pretrain"
    if command not in COMMANDS:
        return fail(f"unknown command {command!r}: there is {', '.join(COMMANDS)}. {USAGE['pretrain']}")
    rest = argv[2:] if len(argv) > 1 and argv[1] == command else argv[1:]
    if "--help" in rest or "-h" in rest:
        print(f"{__doc__}\n{USAGE[command]}{HELP.get(command, '')}")
        return 0
    try:
        return COMMANDS[command](rest)
    except KeyboardInterrupt:
        return fail(f"{command} was interrupted; the same command continues")


def fail(message: str) -> int:
    """Prints one clear line; returns the exit code for a failure."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 1


def pretrain(arguments: list[str]) -> int:
    """Pretrains or continues a run, and prints its table of probes."""
    try:
        config, workdir, stopped_code, cluster = read_flags(arguments)
    except UsageError as error:
        return fail(str(error))

    def run() -> int:
        from ijepa_jax import processes, train

        try:
            train.pretrain(config, workdir, command=command_line())
        except train.Stopped as stopped:
            if processes.is_first():
                print(stopped, flush=True)
            return stopped_code
        return 0

    return compute(run, cluster, arguments)


def evaluate(arguments: list[str]) -> int:
    """Evaluates a checkpoint by a protocol; prints the table, and the result as a line of JSON."""
    try:
        settings, checkpoint, out, cluster = read_evaluate_flags(arguments)
    except UsageError as error:
        return fail(str(error))

    def run() -> None:
        from ijepa_jax import processes
        from ijepa_jax.console import Display
        from ijepa_jax.evaluate import suite, table

        display = Display(quiet=not processes.is_first())
        result = suite.evaluate(settings, checkpoint, out=out, command=command_line(), display=display)
        display.log(table.terminal(result))
        if processes.is_first():
            print(json.dumps({key: value for key, value in result.items() if key not in ("details", "settings")}), flush=True)

    return compute(run, cluster, arguments)


def features(arguments: list[str]) -> int:
    """Writes features of a data set to a file; prints what was written as a line of JSON."""
    try:
        values = read_features_flags(arguments)
    except UsageError as error:
        return fail(str(error))

    def run() -> None:
        from ijepa_jax import processes
        from ijepa_jax.console import Display
        from ijepa_jax.evaluate.extract import extract

        options = {name: values[name].value for name in ("data", "directory", "kind", "split")}
        display = Display(quiet=not processes.is_first())
        written = extract(values.checkpoint, values.out, **options, display=display)
        if processes.is_first():
            print(json.dumps(written), flush=True)

    return compute(run, cluster_of(values), arguments)


def compute(run, cluster: tuple, arguments: list[str]) -> int:
    """Runs what computes on all devices, perhaps as one of several processes; returns the exit code."""
    set_up_jax()
    allow_open_files()
    quieten_background()
    from ijepa_jax import processes, train
    from ijepa_jax.checkpoint import CheckpointError

    try:
        processes.start(*cluster)
        return run() or 0
    except BaseException as error:
        if "--debug" in arguments or not isinstance(error, (ValueError, OSError, RuntimeError)):
            traceback.print_exc()
            processes.leave_others(1)
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        named = (ValueError, OSError, CheckpointError, train.Diverged, train.OutOfMemory, processes.ProcessLost)
        if not isinstance(error, named):
            message = f"{type(error).__name__}: {message}; --debug shows where it came from"
        code = fail(processes.named(message))
        processes.leave_others(code)
        return code


def command_line() -> str:
    """The command that this is, for reports."""
    return shlex.join(["python", "launch.py", *sys.argv[1:]])


def prepare(arguments: list[str]) -> int:
    """Packs images into an ArrayRecord data set."""
    try:
        settings = read_prepare_flags(arguments)
    except UsageError as error:
        return fail(str(error))
    allow_open_files()
    from ijepa_jax.console import Display
    from ijepa_jax.data import pool
    from ijepa_jax.data.prepare import prepare as pack

    try:
        name = pack(settings.pop("from"), settings.pop("out"), **settings, display=Display())["name"]
    except pool.Stopped as stopped:
        return fail(f"{stopped}; the same command continues")
    except (ValueError, OSError) as error:
        return fail(" ".join(str(error).split()) or type(error).__name__)
    if name.startswith("tfds:s3://"):
        print("to train with it, mount the bucket, or copy the folder to a local disk or to gs://")
        return 0
    print(f"train with: python launch.py pretrain --config configs/folder.py --config.data.name={shlex.quote(name)}")
    return 0


def plan(arguments: list[str]) -> int:
    """Compiles a run's training step for hardware that is not there; prints what it needs, and the same as a line of JSON."""
    try:
        config, topology = read_plan_flags(arguments)
    except UsageError as error:
        return fail(str(error))
    stand_in_for_tpus()
    from ijepa_jax import plan as planning

    try:
        result = planning.plan(config, topology)
    except (ValueError, ModuleNotFoundError, RuntimeError) as error:
        if "--debug" in arguments:
            raise
        return fail(" ".join(str(error).split()) or type(error).__name__)
    print(planning.table(result))
    print(json.dumps(result), flush=True)
    return 0


COMMANDS = {"pretrain": pretrain, "evaluate": evaluate, "features": features, "prepare": prepare, "plan": plan}


def read_flags(arguments: list[str]):
    """The settings, the workdir, the exit code of a stopped run and the place among processes; raises UsageError."""
    from absl import flags

    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Where the run lives.", flag_values=values)
    flags.DEFINE_integer("stopped_code", 0, "Exit code of a run that was asked to stop.", 0, 255, flag_values=values)
    define_cluster(values)
    settings, file = read_settings(arguments, values, "pretrain")
    return settings, values.workdir or str(Path("runs", Path(file).stem)), values.stopped_code, cluster_of(values)


def read_evaluate_flags(arguments: list[str]):
    """The settings, the checkpoint, where the table goes, and the place among processes; raises UsageError."""
    from absl import flags

    if not any(argument.lstrip("-").startswith("config") and "config." not in argument for argument in arguments):
        raise UsageError(f"--config is missing: configs/evaluate/ has one for each protocol. {USAGE['evaluate']}")
    values = flags.FlagValues()
    flags.DEFINE_string("checkpoint", None, "The workdir of a pretraining run.", flag_values=values)
    flags.DEFINE_string("out", "", "Where the table goes.", flag_values=values)
    define_cluster(values)
    settings, _ = read_settings(arguments, values, "evaluate")
    if not values.checkpoint:
        raise UsageError(f"--checkpoint is missing. {USAGE['evaluate']}")
    return settings, values.checkpoint, values.out, cluster_of(values)


def read_features_flags(arguments: list[str]):
    """The flags of `features`; raises UsageError."""
    from absl import flags

    values = flags.FlagValues()
    for name, default in (
        ("checkpoint", None),
        ("out", None),
        ("data", ""),
        ("directory", ""),
        ("kind", "last"),
        ("split", "all"),
    ):
        flags.DEFINE_string(name, default, "See FEATURES_HELP.", flag_values=values)
    flags.DEFINE_boolean("debug", False, "Show where an error came from.", flag_values=values)
    define_cluster(values)
    try:
        left = values(["launch.py", *arguments])[1:]
    except flags.Error as error:
        raise UsageError(f"{explain(error, arguments)}; {USAGE['features']}") from error
    missing = [name for name in ("checkpoint", "out") if not values[name].value]
    if left or missing:
        raise UsageError(f"{f'unexpected argument {left[0]!r}' if left else f'--{missing[0]} is missing'}. {USAGE['features']}")
    return values


def define_cluster(values) -> None:
    """Flags that say who is who, where no cluster does."""
    from absl import flags

    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no cluster tells.", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "How many processes there are, likewise.", 1, flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which one this is, likewise.", 0, flag_values=values)


def cluster_of(values) -> tuple:
    """What they say."""
    return values.coordinator, values.num_processes, values.process_id


def read_plan_flags(arguments: list[str]):
    """The settings and the topology that a plan is asked for; raises UsageError."""
    from absl import flags

    values = flags.FlagValues()
    flags.DEFINE_string("topology", None, "What to compile for.", flag_values=values)
    settings, _ = read_settings(arguments, values, "plan")
    if not values.topology:
        raise UsageError(f"--topology is missing. {USAGE['plan']}")
    return settings, values.topology


def read_settings(arguments: list[str], values, command: str):
    """Reads a command line into the flags defined so far and those all runs have; returns the settings and their file."""
    from absl import flags
    from ml_collections import config_flags

    file = config_file(arguments)
    try:
        config_flags.DEFINE_config_file("config", file, flag_values=values, sys_argv=["launch.py", *arguments])
        flags.DEFINE_string("mesh", None, "Sizes of the device mesh: data=8,fsdp=4; -1: what is left.", flag_values=values)
        flags.DEFINE_boolean("debug", False, "Show where an error came from.", flag_values=values)
        left = values(["launch.py", *arguments])[1:]
        settings = values.config
        if values.mesh:
            settings.mesh.update(parse_mesh(values.mesh))
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, SyntaxError) as error:
        raise UsageError(explain(error, arguments)) from error
    if left:
        raise UsageError(f"unexpected argument {left[0]!r}. {USAGE[command]}")
    key, kind = (
        ("protocol", "an evaluation: see configs/evaluate/") if command == "evaluate" else ("method", "a run: see configs/")
    )
    if key not in settings:
        raise UsageError(f"{file} is not the configuration of {kind}")
    return settings, file


def parse_mesh(text: str) -> dict[str, int]:
    """The sizes of a mesh that are written data=8,fsdp=4: either may be left out, or -1; raises UsageError."""
    sizes = dict(part.partition("=")[::2] for part in text.split(","))
    if not sizes.keys() <= {"data", "fsdp"} or not all(size.removeprefix("-").isdigit() for size in sizes.values()):
        raise UsageError(f"--mesh {text!r} must be like data=8,fsdp=4 (-1: what is left)")
    return {name: int(size) for name, size in sizes.items()}


def read_prepare_flags(arguments: list[str]) -> dict:
    """The keyword arguments of `prepare`, and `from` and `out`, that a command line asks for; raises UsageError."""
    from absl import flags

    values = flags.FlagValues()
    flags.DEFINE_string("from", None, "What to pack.", flag_values=values)
    flags.DEFINE_string("out", None, "Where the data set goes.", flag_values=values)
    flags.DEFINE_integer("short_side", 416, "Of what is stored, in pixels.", 0, flag_values=values)
    flags.DEFINE_integer("quality", 92, "Of JPEG files that are made.", 1, 100, flag_values=values)
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes.", 0, flag_values=values)
    flags.DEFINE_float("max_bad_fraction", 0.01, "Of unreadable images.", 0.0, 1.0, flag_values=values)
    try:
        left = values(["launch.py", *(underscored(argument) for argument in arguments)])[1:]
    except flags.Error as error:
        raise UsageError(f"{explain(error, arguments)}; {USAGE['prepare']}") from error
    if left:
        raise UsageError(f"unexpected argument {left[0]!r}. {USAGE['prepare']}")
    settings = values.flag_values_dict()
    if settings["max_bad_fraction"] != settings["max_bad_fraction"]:
        raise UsageError(f"--max-bad-fraction must be 0 to 1. {USAGE['prepare']}")
    missing = [name for name in ("from", "out") if not settings[name]]
    if missing:
        raise UsageError(f"--{missing[0]} is missing. {USAGE['prepare']}")
    return settings


def underscored(argument: str) -> str:
    """--short-side=3 as absl knows it, --short_side=3."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


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


def stand_in_for_tpus() -> None:
    """Has JAX and libtpu compile for TPUs without looking for one; must come before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # compile_s is to be the compiler's time
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no chip is opened: neither another plan nor a run is in the way
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")  # what the topology asked for replaces
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")  # errors only: libtpu logs much


def set_up_jax() -> None:
    """Settings of the runtime that belong to a process and not to a run."""
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path.home() / ".cache" / "ijepa_jax" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    keep_freed_memory()


def allow_open_files() -> None:
    """Raises the limit on open files as far as it goes, within reason: a reader of ArrayRecord keeps every shard open."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):  # macOS may allow fewer than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def keep_freed_memory() -> None:
    """Has glibc keep what is freed: a step on CPU allocates the same buffers again, and is a fifth faster for it."""
    if platform.libc_ver()[0] != "glibc":
        return
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # names of mallopt's options, see malloc.h
    for option, value in ((mmap_threshold, 32 << 20), (trim_threshold, 2**31 - 1), (top_pad, 256 << 20)):
        ctypes.CDLL(None).mallopt(option, value)


def quieten_background() -> None:
    """Keeps background writers from printing tracebacks of failures that the run itself reports, in one line."""
    import absl.logging  # noqa: F401 - the logger that is filtered here must be absl's own, which knows who called it

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    usual = sys.excepthook

    def hook(kind, error, traceback):
        if "Event loop is closed" not in str(error):
            usual(kind, error, traceback)

    sys.excepthook = hook


if __name__ == "__main__":
    sys.exit(main(sys.argv))
