"""The only entry point.

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
    python launch.py plan --config FILE --topology v5e:16x16                 # would it fit there? compiled, without a TPU

Nothing in ijepa_jax/ reads flags or the environment; this file does.
"""

import contextlib
import ctypes
import json
import logging
import os
import platform
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from ijepa_jax import cli as commandline
from ijepa_jax.cli import Command, Flag, UsageError


def main(argv: list[str]) -> int:
    """Runs a command; returns the exit code."""
    name = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else "pretrain"
    if name not in COMMANDS:
        return fail(f"unknown command {name!r}: there is {', '.join(COMMANDS)}. See python launch.py --help")
    command = COMMANDS[name]
    rest = argv[2:] if len(argv) > 1 and argv[1] == name else argv[1:]
    if "--help" in rest or "-h" in rest:
        print(f"{__doc__}\n{commandline.usage(name, command)}\n{commandline.described(command)}")
        return 0
    try:
        given = commandline.read(name, command, rest)
        return check_only(name, given) if given.dry_run else command.run(given)
    except UsageError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail(f"{name} was interrupted" + "; the same command continues" * (name in ("pretrain", "prepare")))


def check_only(name: str, given: SimpleNamespace) -> int:
    """Checks a command line and its settings and runs nothing: no data, no checkpoint and no device is looked at."""
    from ijepa_jax.host.files import absolute

    config = getattr(given, "config", {})
    try:
        for place in ("workdir", "out", "checkpoint"):
            absolute(getattr(given, place, None) or ".")
        if "method" in config:
            from ijepa_jax import build
            from ijepa_jax.methods import config as config_lib

            build.method(config)
            config_lib.check_run(config)
        if "protocol" in config:
            from ijepa_jax.settings import evaluation as settings

            settings.check(config)
    except ValueError as error:
        return fail(one_line(error))
    print(f"{name}: nothing wrong was found in flags and settings; --dry-run ends here")
    return 0


def fail(message: str) -> int:
    """Prints one clear line; returns the exit code for a failure."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 1


def pretrain(given: SimpleNamespace) -> int:
    """Pretrains or continues a run, and prints its table of probes."""
    workdir = given.workdir or str(Path("runs", Path(given.config_file).stem))

    def run() -> int:
        from ijepa_jax.devices import processes
        from ijepa_jax.pretrain import command
        from ijepa_jax.train.loop import Stopped

        try:
            command.pretrain(given.config, workdir, command=command_line())
        except Stopped as stopped:
            if processes.is_first():
                print(stopped, flush=True)
            return given.stopped_code
        return 0

    return compute(run, given)


def evaluate(given: SimpleNamespace) -> int:
    """Evaluates a checkpoint by a protocol; prints the table, and the result as a line of JSON."""

    def run() -> None:
        from ijepa_jax.devices import processes
        from ijepa_jax.evaluate import suite, table
        from ijepa_jax.host.console import Display

        display = Display(quiet=not processes.is_first())
        result = suite.evaluate(given.config, given.checkpoint, out=given.out, command=command_line(), display=display)
        display.log(table.terminal(result))
        if processes.is_first():
            print(json.dumps({key: value for key, value in result.items() if key not in ("details", "settings")}), flush=True)

    return compute(run, given)


def features(given: SimpleNamespace) -> int:
    """Writes features of a data set to a file; prints what was written as a line of JSON."""

    def run() -> None:
        from ijepa_jax.devices import processes
        from ijepa_jax.evaluate.extract import extract
        from ijepa_jax.host.console import Display

        options = {name: getattr(given, name) for name in ("data", "directory", "kind", "split", "step")}
        display = Display(quiet=not processes.is_first())
        written = extract(given.checkpoint, given.out, **options, display=display)
        if processes.is_first():
            print(json.dumps(written), flush=True)

    return compute(run, given)


def visualize(given: SimpleNamespace) -> int:
    """Draws what a checkpoint has learned as a page of pictures; prints what was written as a line of JSON."""

    def run() -> None:
        from ijepa_jax.devices import processes
        from ijepa_jax.host.console import Display
        from ijepa_jax.visualize.explore import explore

        names = ("out", "data", "directory", "split", "images", "bank", "step", "seed")
        options = {name: getattr(given, name) for name in names}
        display = Display(quiet=not processes.is_first())
        written = explore(given.checkpoint, **options, command=command_line(), display=display)
        if processes.is_first():
            print(json.dumps(written), flush=True)

    return compute(run, given)


def compute(run: Callable[[], int | None], given: SimpleNamespace) -> int:
    """Runs what computes on all devices, perhaps as one of several processes; returns the exit code."""
    set_up_jax()
    allow_open_files()
    quieten_background()
    from ijepa_jax.devices import processes
    from ijepa_jax.host.files import full_disk_named
    from ijepa_jax.pretrain.command import OutOfMemory
    from ijepa_jax.train.checkpoint import CheckpointError
    from ijepa_jax.train.recorder import Diverged

    place = getattr(given, "out", "") or getattr(given, "checkpoint", "")  # a pretraining run names its own
    try:
        processes.start(given.coordinator, given.num_processes, given.process_id)
        with full_disk_named(place):
            return run() or 0
    except KeyboardInterrupt:
        processes.leave_others(1)
        raise
    except BaseException as error:
        if given.debug or not isinstance(error, (ValueError, OSError, RuntimeError, MemoryError)):
            traceback.print_exc()
            processes.leave_others(1)
            raise
        named = (ValueError, OSError, MemoryError, CheckpointError, Diverged, OutOfMemory, processes.ProcessLost)
        code = fail(processes.named(one_line(error, named)))
        processes.leave_others(code)
        return code


def one_line(error: BaseException, named: tuple = (Exception,)) -> str:
    """An error in one line; of a kind that is not `named`, how to see where it came from."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError):
        return f"out of memory: {message}"
    return message if isinstance(error, named) else f"{type(error).__name__}: {message}; --debug shows where it came from"


def command_line() -> str:
    """The command that this is, for reports."""
    return shlex.join(["python", "launch.py", *sys.argv[1:]])


def prepare(given: SimpleNamespace) -> int:
    """Packs images into an ArrayRecord data set."""
    allow_open_files()
    from ijepa_jax.data.pack import pool
    from ijepa_jax.data.pack.prepare import prepare as pack
    from ijepa_jax.host.console import Display
    from ijepa_jax.host.files import full_disk_named

    options = {name: getattr(given, name) for name in ("short_side", "quality", "workers", "max_bad_fraction")}
    try:
        with full_disk_named(given.out):
            name = pack(getattr(given, "from"), given.out, **options, display=Display())["name"]
    except pool.Stopped as stopped:
        return fail(f"{stopped}; the same command continues")
    except (ValueError, OSError) as error:
        return fail(one_line(error))
    if name.startswith("tfds:s3://"):
        print("to train with it, mount the bucket, or copy the folder to a local disk or to gs://")
        return 0
    print(f"train with: python launch.py pretrain --config configs/folder.py --config.data.name={shlex.quote(name)}")
    return 0


def import_(given: SimpleNamespace) -> int:
    """Writes foreign weights as a workdir; prints what to do with it, and what was read as a line of JSON."""
    quieten_background()
    from ijepa_jax.interop import convert

    base = given.config if given.config_given else None
    try:
        read = convert.import_weights(getattr(given, "from"), given.out, heads=given.heads, base=base)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if given.debug:
            raise
        return fail(one_line(error))
    report_left_out(read["left_out"])
    out = shlex.quote(given.out)
    print(f"evaluate it with: python launch.py evaluate --config configs/evaluate/knn_in1k.py --checkpoint {out}")
    if read["continues"] and base is not None:
        settings = ["--config", given.config_file, *given.overrides, "--config.model.positions=table"]
        print(f"continue it with: python launch.py pretrain {shlex.join(settings)} --workdir {out}")
    elif read["continues"]:
        print("it holds a whole training state: import it with --config FILE, the settings of its run, to continue that")
    print(json.dumps(read), flush=True)
    return 0


def report_left_out(parts: list[str]) -> None:
    """Says what could not be carried over."""
    for part in parts:
        print(f"left out: {part}")


def export(given: SimpleNamespace) -> int:
    """Writes an encoder for other libraries; prints how they load it, and what was written as a line of JSON."""
    quieten_background()
    from ijepa_jax.interop import convert

    options = {name: getattr(given, name) for name in ("step", "encoder")}
    try:
        written = convert.export_weights(given.checkpoint, given.out, given.format, **options, command=command_line())
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if given.debug:
            raise
        return fail(one_line(error))
    report_left_out(written["left_out"])
    print(f"load it with: {written['load']}")
    print(json.dumps(written), flush=True)
    return 0


def benchmark(given: SimpleNamespace) -> int:
    """Times the training step of the sizes given, or of a run's settings; prints what was measured as a line of JSON."""
    if given.cpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    keep_freed_memory()
    import jax

    from ijepa_jax.measure import benchmark as timing

    fields = [field for field in timing.Workload.__dataclass_fields__ if field != "dtype"]
    dtype = given.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    try:
        work = timing.Workload(**{field: getattr(given, field) for field in fields}, dtype=dtype)
        if given.config_file:
            if sizes := [field for field in fields if getattr(given, field) != COMMANDS["benchmark"].flags[field].default]:
                raise ValueError(f"--{sizes[0].replace('_', '-')} is the configuration's own: leave it out, or --config")
            work = timing.of_run(given.config)
        options = compiler_options(given.compiler_options)
        result = timing.benchmark(work, steps=given.steps, warmup=given.warmup, data=given.data, compiler_options=options)
    except (ValueError, OSError, RuntimeError) as error:
        if given.debug:
            raise
        return fail(one_line(error))
    print(json.dumps(result), flush=True)
    return 0


def compiler_options(given: str) -> dict[str, str | bool]:
    """Options as KEY=VALUE,KEY=VALUE; a value may hold commas. Raises ValueError for what has no value."""
    options: dict[str, str | bool] = {}
    for part in re.split(r",(?=\w+=)", given) if given else ():
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"--compiler-options {given!r} must be KEY=VALUE,KEY=VALUE")
        options[name] = {"true": True, "false": False}.get(value.lower(), value)
    return options


def plan(given: SimpleNamespace) -> int:
    """Compiles a run's training step for hardware that is not there; prints what it needs, and the same as a line of JSON."""
    stand_in_for_tpus()
    from ijepa_jax.measure import plan as planning

    try:
        result = planning.plan(given.config, given.topology)
    except (ValueError, ModuleNotFoundError, RuntimeError) as error:
        if given.debug:
            raise
        return fail(one_line(error))
    print(planning.table(result))
    print(json.dumps(result), flush=True)
    return 0


CLUSTER = {
    "coordinator": Flag("HOST:PORT", "of process 0, where no cluster tells which processes there are"),
    "num_processes": Flag("N", "how many there are, likewise", kind=int, low=1),
    "process_id": Flag("I", "which one this is, likewise", kind=int, low=0),
}
CHECKPOINT = Flag("DIR", "the workdir of a pretraining run, or of imported weights", required=True)
STEP = Flag("N", "which checkpoint; 0: the best by probe, else the newest; -1: the newest", 0, low=-1, high=10**9)
MESH = Flag("data=8,fsdp=4", "sizes of the device mesh; -1: what is left")
COMMANDS = {
    "pretrain": Command(
        pretrain,
        {
            "workdir": Flag("DIR", "where the run lives, by default runs/NAME; the same command continues it"),
            "stopped_code": Flag(
                "0", "exit code of a run that was asked to stop and has saved: not 0 for schedulers that restart what fails", 0,
                low=0, high=255,
            ),
            "mesh": MESH,
            **CLUSTER,
        },
        config="method",
    ),
    "evaluate": Command(
        evaluate,
        {
            "checkpoint": CHECKPOINT,
            "out": Flag("DIR", "where the table goes, as JSON and Markdown; by default WORKDIR/evaluate", ""),
            "mesh": MESH,
            **CLUSTER,
        },
        config="protocol",
        config_required="configs/evaluate/ has one for each protocol",
    ),
    "features": Command(
        features,
        {
            "checkpoint": CHECKPOINT,
            "out": Flag("FILE.npz", "gets features, files, split, and label_TASK where there are labels", required=True),
            "data": Flag("NAME", "what to take features of, named as for training; by default the checkpoint's own", ""),
            "directory": Flag("DIR", "where tfds data sets are prepared", ""),
            "kind": Flag("last", "last (pooled), last4 (of the last four blocks), patches, or layers (each block)", "last"),
            "split": Flag("all", "train, test or all", "all"),
            "step": STEP,
            **CLUSTER,
        },
    ),
    "visualize": Command(
        visualize,
        {
            "checkpoint": CHECKPOINT,
            "out": Flag("DIR", "where pictures and page go; by default WORKDIR/visualize", ""),
            "data": Flag("NAME", "whose images are drawn, named as for training; by default the checkpoint's own", ""),
            "directory": Flag("DIR", "where tfds data sets are prepared", ""),
            "split": Flag("test", "train or test", "test"),
            "images": Flag("8", "images drawn", 8, low=1, high=64),
            "bank": Flag("2000", "images that neighbours are looked for among, and that the map shows", 2000, low=1),
            "step": STEP,
            "seed": Flag("0", "of the random encoder, the masks, and which images are drawn", 0, low=0, high=2**31 - 1),
            **CLUSTER,
        },
    ),
    "decode": Command(
        pretrain,
        {
            "checkpoint": Flag("DIR", "the workdir to decode representations of", required=True, setting="decoder.checkpoint"),
            "step": Flag(
                "N", "which checkpoint of it; 0: the best by probe, else the newest; -1: the newest", kind=int, low=-1,
                high=10**9, setting="decoder.step",
            ),
            "workdir": Flag("DIR", "where the decoder's run lives, by default runs/decode; the same command continues it"),
            "stopped_code": Flag("0", "as of pretrain", 0, low=0, high=255),
            "mesh": MESH,
            **CLUSTER,
        },
        config="method",
        config_default="configs/decode.py",
    ),
    "prepare": Command(
        prepare,
        {
            "from": Flag("NAME", "what to pack: folder:PATH, arrays:FILE.npz, idx:DIR, tfds:NAME or scenes", required=True),
            "out": Flag(
                "DIR", "a new folder, local or gs:// or s3://; the same command continues what was stopped", required=True
            ),
            "short_side": Flag(
                "416", "pixels that larger images are shrunk to, 0: none; 416 serves crops of 224, 832 of 448", 416, low=0
            ),
            "quality": Flag("92", "of the JPEG files that are made where an image cannot stay as it is", 92, low=1, high=100),
            "workers": Flag("N", "processes; 0: none but this one", os.cpu_count() or 1, low=0),
            "max_bad_fraction": Flag("0.01", "more unreadable images than this stop the command", 0.01, low=0.0, high=1.0),
        },
    ),
    "import": Command(
        import_,
        {
            "from": Flag(
                "WEIGHTS", "the authors' .pth.tar, a folder of transformers' or timm's, or a timm .safetensors", required=True
            ),
            "out": Flag("DIR", "a new workdir, for all other commands", required=True),
            "heads": Flag("N", "of the attention, where neither a configuration nor a known size tells", kind=int, low=1),
        },
        config="method",
    ),
    "export": Command(
        export,
        {
            "checkpoint": CHECKPOINT,
            "format": Flag(
                "huggingface", "huggingface (for transformers), timm, or reference (the authors' .pth.tar)", required=True
            ),
            "out": Flag("DIR", "a new folder", required=True),
            "encoder": Flag("target", "target: the one that is evaluated; or context: the one that a target follows", "target"),
            "step": STEP,
        },
    ),
    "benchmark": Command(
        benchmark,
        {
            "model": Flag("vit_huge", "a named size", "vit_huge"),
            "patch": Flag("14", "side of a patch, in pixels", 14, low=1),
            "image": Flag("224", "side of the images, in pixels", 224, low=1),
            "batch": Flag("128", "images a step, over all devices", 128, low=1),
            "context": Flag("72", "patches that the context encoder sees of an image", 72, low=1),
            "target": Flag("42", "patches of a target block", 42, low=1),
            "blocks": Flag("4", "target blocks", 4, low=1),
            "width": Flag("1280", "width of the encoder, instead of the named size's", 0, low=0),
            "depth": Flag("32", "its depth, likewise", 0, low=0),
            "predictor_width": Flag("384", "width of the predictor", 384, low=4),
            "predictor_depth": Flag("12", "its depth", 12, low=1),
            "steps": Flag("20", "that are timed", 20, low=1),
            "warmup": Flag("5", "steps before these", 5, low=1),
            "dtype": Flag("bfloat16", "of the computation; by default float32 on CPUs, else bfloat16", ""),
            "attention": Flag("xla", "xla or cudnn", "xla"),
            "scan": Flag("", "scan over blocks instead of unrolling them", False),
            "remat": Flag("none", "none, dots or full", "none"),
            "context_blocks": Flag("1", "context blocks of an image, for which the target encoder runs once", 1, low=1),
            "predictor_context": Flag("joint", "joint or alone, see predictor.context", "joint"),
            "target_last_block": Flag("all", "all, targets or distinct, see target.last_block", "all"),
            "target_float8": Flag("", "multiply in eight bits in the target encoder", False),
            "data": Flag("NAME", "also feed the step with this data set, named as for training", ""),
            "compiler_options": Flag("KEY=VALUE,...", "options of the compiler", ""),
            "cpu": Flag("", "on the CPU, also where there is an accelerator", False),
        },
        config="method",
        config_default=None,
    ),
    "plan": Command(
        plan,
        {
            "topology": Flag(
                "v5e:16x16", "v5e, v5p or v6e and the slice's sides (needs libtpu: pip install 'jax[tpu]'); or a number of "
                "simulated devices, cpu:8, h100:8, h200:8, a100:8 or gpu:8, for the collectives and the FLOPs", required=True,
            ),
            "mesh": MESH,
        },
        config="method",
    ),
}  # fmt: skip


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
