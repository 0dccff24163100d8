"""I-JEPA in JAX: the only entry point.

    python launch.py                                                         # the quickstart: pretrain, probe, report
    python launch.py pretrain --config configs/in1k_vith14.py --workdir DIR  # any other run; the same command continues it
    python launch.py pretrain ... --config.optim.peak_lr=1e-3                # any setting can be overridden
    python launch.py evaluate --config configs/evaluate/knn.py --checkpoint DIR  # or another of configs/evaluate/
    python launch.py features --checkpoint DIR --data folder:PATH --out features.npz  # for other tools
    python launch.py visualize --checkpoint DIR                              # pictures of what it has learned, as a page
    python launch.py decode --checkpoint DIR                                 # a diffusion decoder of its representations
    python launch.py prepare --from folder:PATH --out DIR                    # pack images into a data set, tfds:DIR
    python launch.py import --from WEIGHTS --out DIR                         # weights of the authors, transformers, timm
    python launch.py export --checkpoint DIR --format huggingface --out DIR  # and back: huggingface, timm or reference
    python launch.py benchmark --model vit_huge --patch 14 --batch 128       # the training step, timed
    python launch.py plan --config FILE --topology v5e:16x16                 # would it fit there? compiled, without the chips

Without a command it is `pretrain`. `python launch.py COMMAND --help` shows a command's flags, and the settings that there are.
"""

import contextlib
import ctypes
import inspect
import json
import logging
import os
import platform
import shlex
import sys
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ijepa_jax import cli as commandline
from ijepa_jax.host import errors

EXPECTED = (ValueError, OSError, RuntimeError, MemoryError, ModuleNotFoundError)  # told in one line


def main(argv: list[str]) -> int:
    """Runs a command; returns the exit code. `--help` exits by itself."""
    given = Namespace(command_name="launch.py", debug=False)
    try:
        given = commandline.parse(argv[1:], __doc__)
        if not given.dry_run:
            before_jax(given)
        trains = given.command_name == "pretrain" and not given.dry_run
        commandline.configure(given, training_images if trains else None)
        if given.dry_run:
            return check_only(given)
        run = RUN[given.command_name]
        return compute(run, given) if run in ON_ALL_DEVICES else done(run(given))
    except KeyboardInterrupt:
        continues = given.command_name in ("pretrain", "decode", "prepare")
        return fail(f"{given.command_name} was interrupted" + "; the same command continues" * continues)
    except commandline.UsageError as error:
        return fail(str(error))
    except EXPECTED as error:
        if given.debug:
            raise
        return fail(one_line(error))


def training_images(config: Any) -> int:
    """How many there are, for a configuration that makes its settings of their number; no device is touched."""
    from ijepa_jax.data.open import open_source

    data = config.data
    if data.name == "scenes":
        return data.size
    found = {"size": data.size, "directory": data.directory or None, "image_size": tuple(data.image_size)}
    return len(open_source(data.name, "train", seed=0, **found))


def before_jax(given: Namespace) -> None:
    """What must be done before JAX is imported, as the configuration of a run does."""
    if given.command_name == "plan":
        stand_in_for_tpus()
    if getattr(given, "cpu", False):
        os.environ["JAX_PLATFORMS"] = "cpu"
    if given.command_name == "benchmark":
        keep_freed_memory()


def check_only(given: Namespace) -> int:
    """Checks a command line and its settings and runs nothing: no data, no checkpoint and no device is looked at."""
    from ijepa_jax.host.files import absolute

    config = getattr(given, "config", {})
    for place in ("workdir", "out", "checkpoint"):
        absolute(getattr(given, place, None) or ".")
    if "method" in config:
        from ijepa_jax import build

        if given.command_name in ("pretrain", "decode") and config.data.name:  # else that of the run that is decoded
            from ijepa_jax.data.open import check_name
            from ijepa_jax.methods import config as config_lib

            config_lib.check(config)
            check_name(config.data.name, tuple(config.data.image_size))
        build.run_method(config)
    for evaluation in [config, *(config for _, config in getattr(given, "evaluations", ()))]:
        if evaluation and "protocol" in evaluation:
            from ijepa_jax.data.open import check_name
            from ijepa_jax.settings import evaluation as settings

            settings.check(evaluation)
            if evaluation.data.name and not evaluation.data.image_size:
                check_name(evaluation.data.name, 1)
    print(f"{given.command_name}: nothing wrong was found in flags and settings; --dry-run ends here")
    return 0


def compute(run: Callable[[Namespace], dict | int], given: Namespace) -> int:
    """Runs what computes on all devices, perhaps as one of several processes; returns the exit code."""
    set_up_jax()
    allow_open_files()
    quieten_background()
    from ijepa_jax.devices import processes
    from ijepa_jax.host.files import full_disk_named
    from ijepa_jax.pretrain.command import OutOfMemory
    from ijepa_jax.train.checkpoint import CheckpointError
    from ijepa_jax.train.recorder import Diverged

    place = getattr(given, "out", None) or getattr(given, "checkpoint", "")  # a pretraining run names its own
    try:
        processes.start(given.coordinator, given.num_processes, given.process_id)
        with full_disk_named(place):
            return done(run(given), processes.is_first())
    except KeyboardInterrupt:
        processes.leave_others(1)
        raise
    except BaseException as error:
        if given.debug or not isinstance(error, EXPECTED):
            traceback.print_exc()
            processes.leave_others(1)
            raise
        named = (ValueError, OSError, MemoryError, CheckpointError, Diverged, OutOfMemory, processes.ProcessLost)
        code = fail(processes.named(one_line(error, named)))
        processes.leave_others(code)
        return code


def done(result: dict | int, shown: bool = True) -> int:
    """Prints a command's result, if it has one, as a line of JSON; returns the exit code."""
    if isinstance(result, int):
        return result
    if shown:
        print(json.dumps(result), flush=True)
    return 0


def fail(message: str) -> int:
    """Prints one clear line; returns the exit code for a failure."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 1


def one_line(error: BaseException, named: tuple = (Exception,)) -> str:
    """An error in one line; of a kind that is not `named`, how to see where it came from."""
    message = errors.one_line(error)
    if isinstance(error, MemoryError):
        return f"out of memory: {message}"
    return message if isinstance(error, named) else f"{type(error).__name__}: {message}; --debug shows where it came from"


def call(function: Callable, given: Namespace, *arguments: Any, **options: Any) -> Any:
    """Calls a function with these arguments, and with the flags given that are its parameters by name."""
    free = [*inspect.signature(function).parameters][len(arguments) :]
    flags = {name: value for name, value in vars(given).items() if name in free and value is not None}
    return function(*arguments, **flags, **options)


def command_line() -> str:
    """The command that this is, for reports."""
    return shlex.join(["python", "launch.py", *sys.argv[1:]])


def console() -> Any:
    """What progress is shown on, by the first of all processes."""
    from ijepa_jax.devices import processes
    from ijepa_jax.host.console import Display

    return Display(quiet=not processes.is_first())


def pretrain(given: Namespace) -> int:
    """Pretrains or continues a run, and prints its table of probes."""
    from ijepa_jax.devices import processes
    from ijepa_jax.pretrain import command
    from ijepa_jax.train.loop import Stopped

    try:
        command.pretrain(given.config, given.workdir or str(Path("runs", Path(given.config_file).stem)), command=command_line())
    except Stopped as stopped:
        if processes.is_first():
            print(stopped, flush=True)
        return given.stopped_code
    return 0


def evaluate(given: Namespace) -> dict:
    """Evaluates a checkpoint by a protocol, or by all that the paper has, and prints the table."""
    from ijepa_jax.evaluate import paper, suite, table

    display = console()
    if given.suite:
        result = call(paper.evaluate, given, given.evaluations, given.checkpoint, command=command_line(), display=display)
        display.log(paper.terminal(result))
        asked = [row for row in result["rows"] if row["asked"]]
        lost = [row["name"] for row in asked if row["accuracy"] is None]
        named = [row["name"] for row in asked if given.only or row["data"] in (given.data or {}).values()]
        missed = [name for name in lost if name in named or len(lost) == len(asked)]
        return fail(f"asked for and not evaluated: {', '.join(missed)}") if missed else result
    result = call(suite.evaluate, given, given.config, given.checkpoint, command=command_line(), display=display)
    display.log(table.terminal(result))
    return {key: value for key, value in result.items() if key not in ("details", "settings")}


def features(given: Namespace) -> dict:
    """Writes features of a data set to a file."""
    from ijepa_jax.evaluate.extract import extract

    return call(extract, given, given.checkpoint, display=console())


def visualize(given: Namespace) -> dict:
    """Draws what a checkpoint has learned as a page of pictures."""
    from ijepa_jax.visualize.explore import explore

    return call(explore, given, given.checkpoint, command=command_line(), display=console())


def prepare(given: Namespace) -> int:
    """Packs images into an ArrayRecord data set."""
    allow_open_files()
    from ijepa_jax.data.pack import pool
    from ijepa_jax.data.pack.prepare import prepare as pack
    from ijepa_jax.host.console import Display
    from ijepa_jax.host.files import full_disk_named

    try:
        with full_disk_named(given.out):
            name = call(pack, given, getattr(given, "from"), display=Display())["name"]
    except pool.Stopped as stopped:
        return fail(f"{stopped}; the same command continues")
    if name.startswith("tfds:s3://"):
        print("to train with it, mount the bucket, or copy the folder to a local disk or to gs://")
    else:
        print(f"train with: python launch.py pretrain --config configs/folder.py --config.data.name={shlex.quote(name)}")
    return 0


def import_(given: Namespace) -> dict:
    """Writes foreign weights as a workdir, and prints what to do with it."""
    quieten_background()
    from ijepa_jax.interop import convert

    base = given.config if given.config_given else None
    read = call(convert.import_weights, given, getattr(given, "from"), base=base)
    print(end="".join(f"left out: {part}\n" for part in read["left_out"]))
    out = shlex.quote(given.out)
    print(f"evaluate it with: python launch.py evaluate --config configs/evaluate/knn_in1k.py --checkpoint {out}")
    if read["continues"] and base is not None:
        settings = ["--config", given.config_file, *given.overrides, "--config.model.positions=table"]
        print(f"continue it with: python launch.py pretrain {shlex.join(settings)} --workdir {out}")
    elif read["continues"]:
        print("it holds a whole training state: import it with --config FILE, the settings of its run, to continue that")
    return read


def export(given: Namespace) -> dict:
    """Writes an encoder for other libraries, and prints how they load it."""
    quieten_background()
    from ijepa_jax.interop import convert

    written = call(convert.export_weights, given, given.checkpoint, given.out, given.format, command=command_line())
    print(end="".join(f"left out: {part}\n" for part in written["left_out"]))
    print(f"load it with: {written['load']}")
    return written


def benchmark(given: Namespace) -> dict:
    """Times the training step of the sizes given, or of a run's settings."""
    import jax

    from ijepa_jax.measure import benchmark as timing

    loader = None
    if given.config_file:
        from ijepa_jax.measure import configured

        work, loader = configured.of_run(given.config)
    else:
        given.dtype = given.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        work = call(timing.Workload, given).work()
    if not given.data:
        return call(timing.benchmark, given, work)
    from ijepa_jax.measure import configured

    result = call(timing.benchmark, given, work, feed=configured.feed(work, given.data, loader))
    return {**result, "fed": {"data": given.data, **result["fed"]}}


def plan(given: Namespace) -> dict:
    """Compiles a run's training step for hardware that is not there, and prints what it needs."""
    from ijepa_jax.measure import plan as planning

    result = call(planning.plan, given, given.config, given.topology)
    print(planning.table(result))
    return result


RUN = {
    "pretrain": pretrain, "evaluate": evaluate, "features": features, "visualize": visualize, "decode": pretrain,
    "prepare": prepare, "import": import_, "export": export, "benchmark": benchmark, "plan": plan,
}  # fmt: skip
ON_ALL_DEVICES = (pretrain, evaluate, features, visualize)


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
    """Has glibc keep what is freed: a step on CPU allocates the same buffers again, and is up to a fifth faster for it.

    On a CPU all threads share one arena, as others give large buffers back to the system whatever the options say. Beside an
    accelerator the step's buffers are not here, and a loader of many threads would wait for the one arena.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_threshold, mmap_max, arena_max = -1, -2, -3, -4, -8  # as malloc.h names mallopt's options
    never = -1
    chosen = {trim_threshold: never, top_pad: 256 << 20}
    chosen |= {mmap_threshold: 32 << 20} if accelerator_at_hand() else {mmap_max: 0, arena_max: 1}
    for option, value in chosen.items():
        ctypes.CDLL(None).mallopt(option, value)


def accelerator_at_hand() -> bool:
    """Whether JAX will find a GPU or TPU, as far as can be told without asking it, which would start its threads."""
    devices = ("nvidia[0-9]*", "kfd", "accel[0-9]*", "vfio/[0-9]*")
    return os.environ.get("JAX_PLATFORMS") != "cpu" and any(any(Path("/dev").glob(name)) for name in devices)


def quieten_background() -> None:
    """Keeps background writers from printing tracebacks of failures that the run itself reports, in one line."""
    import absl.logging  # noqa: F401 - the logger that is filtered here must be absl's own, which knows who called it

    for library in ("asyncio", "gcsfs", "s3fs"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)  # where one that waited has failed
    usual, usual_unraisable = sys.excepthook, sys.unraisablehook
    late = "Event loop is closed"  # what writes that are still under way run into when another has failed

    def hook(kind, error, traceback):
        if late not in str(error):
            usual(kind, error, traceback)

    def unraisable(event):
        if late not in str(event.exc_value):
            usual_unraisable(event)

    sys.excepthook, sys.unraisablehook = hook, unraisable


if __name__ == "__main__":
    sys.exit(main(sys.argv))
