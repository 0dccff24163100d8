"""The launcher as its user meets it: commands, exit codes, one clear line for each mistake, resuming after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ijepa_jax.data.open import open_source
from ijepa_jax.train import metrics
from tests import killed

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "--config", str(ROOT / "configs" / "tiny.py"), "--config.probe.every=0", "--config.data.size=64",
    "--config.data.test_size=32",
    "--config.probe.train_images=32", "--config.probe.test_images=32", "--config.probe.batch_size=32",
]  # fmt: skip


def start(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "launch.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options)


def launch(*arguments, **options) -> tuple[int, str, str]:
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def digest(workdir: Path) -> str:
    return json.loads((workdir / "report" / "report.json").read_text())["params_digest"]


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--config.optim.peek_lr=1"], "error: unknown setting --config.optim.peek_lr: did you mean --config.optim.peak_lr?"),
        (
            ["--config.zzz=1"],
            "error: unknown setting --config.zzz: --help lists all there are",
        ),
        (["--config.optim.peak_lr=high"], "error: --config.optim.peak_lr=high must be a number above 0"),
        (
            ["--config.optim.clip=None", "--config.data.flip", "--config.data.image_size=32", "--dry-run"],
            "error: data.image_size (32,) is of signals, which are not flipped or jittered: images have (height, width)",
        ),
        (["--config.optim.peak_lr=None"], "error: --config.optim.peak_lr=None must be a number above 0 and at most 1,000"),
        (
            ["--config.seed", "99999999999999999999"],
            "error: seed 99999999999999999999 must be a whole number from 0 to 4,294,967",
        ),
        (
            ["--config.optim.warmup=9000", "--dry-run"],
            "error: optim.warmup 9000 steps must be shorter than the schedule, 2400 steps",
        ),
        (["--config.model.width=15", "--dry-run"], "error: model.width 15 must be a multiple of 4 and of model.heads 3"),
        (["--mesh", "data=2,data=1"], "error: --mesh 'data=2,data=1' must be like data=8,fsdp=4, each once"),
        (["--mesh=data=²"], "error: --mesh 'data=²' must be like data=8,fsdp=4"),
        (["--workdir="], "error: --workdir is empty"),
        (["--workdir", ""], "error: --workdir is empty"),
        (["--workdir=~nobody_here/x", "--dry-run"], "error: ~nobody_here/x: Could not determine home directory"),
        (
            ["visualize", "--checkpoint=x", "--seed=99999999999999999999"],
            "error: --seed 99999999999999999999 must be a whole number from 0 to 2,147",
        ),
        (["--workdir=foo://x", "--dry-run"], "error: foo://x: a place is a local path, or one of gs://, s3://"),
        (["--config=configs/tiny.py", "--config=configs/cifar10.py"], "error: --config is given 2 times, configs/tiny.py and"),
        (["evaluate", "--config=configs/evaluate/knn.py", "--checkpoint=foo://x"], "error: foo://x: a place is a local path"),
        (["--config=missing.py"], "error: no configuration file 'missing.py': see configs/"),
        (["--cofnig=x"], "error: unknown flag --cofnig: did you mean --config? usage: python launch.py pretrain "),
        (["pretian"], "error: unknown command 'pretian': there is pretrain, evaluate, features, visualize, decode, "),
        (
            ["prepare"],
            "error: the following arguments are required: --from, --out. usage: python launch.py prepare --from NAME --out DIR",
        ),
        (["prepare", "--from=folder:x"], "error: the following arguments are required: --out. usage: "),
        (["prepare", "--from", "x", "--out", "y"], "error: no data named 'x': use one of "),
        (["prepare", "--from", "folder:missing", "--out", "y"], f"error: folder:{ROOT}/missing: no such folder"),
        (
            ["prepare", "--from=x", "--out=y", "--quality=101"],
            "error: --quality 101 must be a whole number from 1 to 100. usage: ",
        ),
        (["prepare", "--from=x", "--out=y", "--short_side", "big"], "error: --short-side big must be a whole number from 0 to"),
        (["prepare", "--from=x", "--out=y", "--short-sid=3"], "error: unknown flag --short-sid: did you mean --short-side?"),
        (["prepare", "--from=x", "--out=y", "extra"], "error: unexpected argument 'extra'."),
        (["pretrain", "extra"], "error: unexpected argument 'extra'."),
    ],
    ids=str,
)
def test_a_misspelt_command_line_gets_one_clear_line(arguments, line):
    code, out, err = launch(*arguments)
    assert code == 1 and out == "" and err.count("\n") == 1 and err.startswith(line)


@pytest.mark.parametrize(
    "arguments, lines",
    [
        (
            ["--help"],
            ["    evaluate          evaluate a checkpoint by a protocol", "    python launch.py visualize --checkpoint DIR  "],
        ),
        (
            ["prepare", "-h"],
            [
                "usage: python launch.py prepare --from NAME --out DIR",
                "  --quality N           of the JPEG files that are made ",
            ],
        ),
        (["plan", "--help"], ["  model.patch=8 ", "values are those of configs/quickstart.py:"]),
        (["--help", "--config=configs/tiny.py", "extra"], ["    pretrain "]),
        (
            ["pretrain", "--config", "configs/tiny.py", "--help"],
            [
                "  --mesh data=8,fsdp=4     sizes of",
                "  model.width=32 ",
                "a whole number from 4 to 65,536, or None",
                "  masks.mode=",
            ],
        ),
        (["pretrain", "-h", "--config.method=rcdm", "--bogus"], ["  decoder.sample_steps=32 "]),
        (["decode", "--help"], ["  optim.steps=8000 ", "  decoder.width=160 "]),
        (["evaluate", "--help"], ["values are the defaults:", "  knn.k=20       ", "a whole number from 1 to 1,000,000"]),
        (["evaluate", "--help", "--config=configs/evaluate/lowshot.py"], ["  protocol=logistic  "]),
    ],
    ids=str,
)
def test_help_lists_commands_flags_and_the_settings_that_there_are(arguments, lines):
    code, out, err = launch(*arguments)
    assert code == 0 and not err and all(line in out for line in lines), out + err


def jpegs(folder: Path, count: int, size: int = 40) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"class{i % 2}" / f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (size + i % 7, size + i % 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    "changes, line",
    [
        (["--config.data.name=folder:missing"], "missing"),
        (["--config.data.name=folder:empty"], "empty"),
        (["--config.data.name=photos"], "no data named 'photos'"),
        (["--config.data.name=idx:empty"], "empty"),
        (["--config.data.name=arrays:missing.npz"], "missing.npz"),
        (["--config.data.name=tfds:not_prepared"], "not_prepared"),
        (
            ["--config.data.image_size=(2,2)"],
            "data.image_size, model.patch: image of 2x2 pixels does not divide into patches of 4x4",
        ),
        (["--config.data.image_size=(8,8)"], "grid"),
        (["--config.masks.context_patches=64"], "context_patches"),
        (["--workdir=/proc/run"], "/proc/run"),
    ],
    ids=str,
)
def test_a_wrong_setting_gets_one_clear_line(tmp_path, changes, line):
    (tmp_path / "empty").mkdir()
    changes = [
        change.replace("folder:empty", f"folder:{tmp_path}/empty").replace("idx:empty", f"idx:{tmp_path}/empty")
        for change in changes
    ]
    code, out, err = launch(*SMALL, f"--workdir={tmp_path}/run", *changes)
    assert code == 1 and err.count("\n") == 1 and err.startswith("error: ") and line in err, err
    assert "Traceback" not in out


def test_a_folder_of_mixed_jpegs_some_of_them_truncated(tmp_path):
    jpegs(tmp_path / "photos", 300)
    sources = [open_source(f"folder:{tmp_path}/photos", split, size=0, seed=0) for split in ("train", "test")]
    victims = [Path(source.name(5)) for source in sources]  # one to train on, one to probe with
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:200])
    settings = [f"--config.data.name=folder:{tmp_path}/photos", "--config.optim.epochs=2", "--config.optim.steps=0"]
    code, out, err = launch(*SMALL, f"--workdir={tmp_path}/run", *settings, "--config.optim.warmup=1")
    assert code == 0, err
    assert all(f"skipped unreadable image {victim}" in out for victim in victims)
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert report["bad_images"] == 2 and report["probes"].keys() == {"linear", "knn"}


def test_prepare_packs_a_folder_and_is_stopped_by_ctrl_c(tmp_path):
    jpegs(tmp_path / "photos", 300, 500)
    arguments = [
        "prepare",
        "--from",
        f"folder:{tmp_path}/photos",
        "--out",
        tmp_path / "packed",
        "--short-side=32",
        "--workers=1",
    ]
    process = start(*arguments, start_new_session=True)
    while process.poll() is None and not list((tmp_path / "packed").glob("1.0.0/.*")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
    _, err = process.communicate(timeout=60)
    stopped = r"error: stopped by SIGINT, [01] of 2 shards are finished; the same command continues\n"
    assert process.returncode == 1 and re.fullmatch(stopped, err), err
    code, out, err = launch(*arguments)
    assert code == 0 and not err, err
    assert re.search(r"\d+ train and \d+ test images, .* MB, 0 skipped", out)
    assert f"train with: python launch.py pretrain --config configs/folder.py --config.data.name=tfds:{tmp_path}/packed" in out
    assert len(open_source(f"tfds:{tmp_path}/packed", "train", size=0, seed=0)) > 200


def test_prepare_on_a_full_disk_stops_with_one_line(tmp_path):
    import resource

    jpegs(tmp_path / "photos", 60, 100)
    code, _, err = launch(
        "prepare", f"--from=folder:{tmp_path}/photos", f"--out={tmp_path}/packed", "--workers=1",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert code == 1 and err.count("\n") == 1 and "cannot write" in err and "File too large" in err, err


def test_too_many_bad_images_stop_the_run(tmp_path):
    jpegs(tmp_path / "photos", 60)
    for victim in sorted((tmp_path / "photos").rglob("*.jpg"))[:20]:
        victim.write_bytes(victim.read_bytes()[:200])
    code, _, err = launch(*SMALL, f"--workdir={tmp_path}/run", f"--config.data.name=folder:{tmp_path}/photos")
    assert code == 1 and err.count("\n") == 1 and "more than data.max_bad_fraction 0.01" in err


@pytest.mark.parametrize(
    "most, line", [(60_000, "error: cannot write checkpoints to "), (560_000, "error: cannot write to {run} (disk full?): ")]
)
def test_a_full_disk_stops_with_one_line(tmp_path, most, line):
    """While it saves; while it draws its report, when the checkpoints are safe."""
    import resource

    settings = [*SMALL, f"--workdir={tmp_path}/run", "--config.optim.steps=12", "--config.checkpoint.every=4"]
    code, out, err = launch(*settings, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
                            env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"})  # fmt: skip
    assert code == 1 and err.count("\n") == 1 and err.startswith(line.format(run=tmp_path / "run")), err
    assert "Traceback" not in out
    assert (tmp_path / "run" / "checkpoints" / "12").exists() == (most > 60_000)


def test_what_is_written_last_fails_with_one_line_and_leaves_nothing(tmp_path):
    """Features and tables, on a disk that is full."""
    import resource

    settings = [*SMALL, f"--workdir={tmp_path}/run", "--config.optim.steps=2", "--config.optim.warmup=1"]
    assert launch(*settings)[0] == 0
    (tmp_path / "out").mkdir()
    code, _, err = launch("features", f"--checkpoint={tmp_path}/run", f"--out={tmp_path}/out/features.npz",
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000)),
                          env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"})  # fmt: skip
    assert code == 1 and err == f"error: cannot write to {tmp_path}/out/features.npz (disk full?): File too large\n", err
    assert not list((tmp_path / "out").iterdir())


def test_sigterm_exits_cleanly_and_the_same_command_continues(tmp_path):
    arguments = [*SMALL, f"--workdir={tmp_path}/run", "--config.optim.steps=2000", "--config.checkpoint.every=5000"]
    process = start(*arguments)
    wait_for_step(tmp_path / "run", 20, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "stopped by SIGTERM at step" in out, err
    stopped = int(re.search(r"at step (\d+), saved", out)[1])
    process = start(*arguments)
    wait_for_step(tmp_path / "run", stopped + 20, process)
    process.kill()
    out, _ = process.communicate(timeout=120)
    assert f"continuing from checkpoint {stopped} of 2000 steps" in out


def wait_for_step(workdir: Path, step: int, process: subprocess.Popen) -> int:
    """Waits until a run has logged a step, or has ended; returns the last step logged."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        steps = [line["step"] for line in metrics.read(workdir) if "loss" in line]
        if process.poll() is not None or (steps and steps[-1] >= step):
            return steps[-1] if steps else 0
        time.sleep(0.02)
    raise TimeoutError(f"no step {step} in {workdir}")


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path):
    arguments = ["pretrain", *SMALL, "--config.optim.steps=800", "--config.checkpoint.every=10"]
    found = killed.compare(arguments, 3, tmp_path)
    assert found["kills"] == 3 and found["whole"] == found["killed"]


def test_what_was_compiled_is_kept_for_the_next_run(tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # then it lies in the home folder
    steps = ("--config.optim.steps=3", "--config.optim.warmup=1")
    kept = []
    for name in ("first", "second"):
        code, _, err = launch(*SMALL, f"--workdir={tmp_path}/{name}", *steps, env=environment)
        assert code == 0, err
        kept.append({path.name for path in (tmp_path / ".cache" / "ijepa_jax" / "jax").glob("jit_train_step-*-cache")})
    assert len(kept[0]) == 1 and kept[0] == kept[1] and digest(tmp_path / "first") == digest(tmp_path / "second")
