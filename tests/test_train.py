"""Runs: what a workdir holds, resuming to the same bits, stopping, refusing, faults."""

import errno
import io
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable

import jax
import numpy as np
import pytest
from PIL import Image

from ijepa_jax import build
from ijepa_jax.data.loader import Loader
from ijepa_jax.data.source import DataError
from ijepa_jax.devices import processes
from ijepa_jax.evaluate import probe
from ijepa_jax.pretrain import command, result
from ijepa_jax.train import checkpoint, metrics
from ijepa_jax.train.loop import Stopped
from ijepa_jax.train.recorder import Diverged
from ijepa_jax.visualize import curves
from tests import small
from tests.test_metrics import events, wandb  # noqa: F401 (a fixture)

METHOD = small.method()
TABLE_COLUMNS = {"trained", "random_init", "pixels"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped: (workdir, report)."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, command.pretrain(small.config(probe__every=4), workdir)


@pytest.fixture(autouse=True)
def no_pictures(whole, monkeypatch):
    """All other runs here draw none: pictures are half the time of so small a run."""
    monkeypatch.setattr(result, "draw_pictures", lambda *arguments: {"pictures": []})


def test_workdir_holds_what_it_should(whole):
    workdir, report = whole
    lines = metrics.read(workdir)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert all(np.isfinite(line[key]) for line in steps for key in ("loss", "target_std", "prediction_std", "gradient_norm"))
    assert steps[3]["learning_rate"] == pytest.approx(float(build.optimizer(small.config(), METHOD, 64).learning_rate(3)))
    assert {line["step"] for line in lines if "probe/linear/count" in line} == {0, 4, 8, 12}
    assert lines[-1]["step"] == 12 and "final/knn/colour" in lines[-1]
    assert {"baseline/random_init/knn/shape", "baseline/pixels/linear/colour"} <= lines[0].keys()
    assert list((workdir / "tensorboard").glob("events*"))
    assert json.loads((workdir / "config.json").read_text())["optim"]["steps"] == 12
    saved = json.loads((workdir / "report" / "report.json").read_text())
    assert saved["params_digest"] == report["params_digest"] and saved["steps"] == 12 and saved["compilations"] == 1
    assert saved["probes"].keys() == {"count", "distance", "shape", "colour"}
    assert all(result.keys() == TABLE_COLUMNS | {"interval", "l2"} for result in saved["probes"].values())
    assert {"report.md", "report.html", *saved["pictures"]} <= {path.name for path in (workdir / "report").iterdir()}
    assert saved["seconds"] > 0 and saved["images_per_s"] > 0
    assert saved["last_metrics"]["target_std"] == steps[-1]["target_std"] and saved["last_metrics"]["loss"] == steps[-1]["loss"]
    shown = [(tag, step, value) for tag, step, value in events(workdir) if isinstance(value, bytes)]
    assert [step for tag, step, _ in shown if tag == "features/patches"] == [0, 4, 8, 12]
    assert {tag for tag, _, _ in shown} == {"features/patches", *(f"report/{name[:-4]}" for name in saved["pictures"])}
    strip = Image.open(io.BytesIO(shown[0][2]))
    assert strip.size == (8 * 96, 2 * 96)  # images of 32 pixels are shown three times as large


def test_a_run_too_short_for_its_target_is_warned_of(tmp_path, monkeypatch, capsys):
    class Introduced(Exception):
        pass

    def stop(*_):
        raise Introduced

    monkeypatch.setattr(command, "Probes", stop)
    for changes, warned in (({}, True), ({"optim__momentum": 0.1}, False), ({"optim__momentum": 1.0}, True)):
        with pytest.raises(Introduced):
            command.pretrain(small.config(**changes), tmp_path / str(changes))
        assert ("warning: 12 steps are few for a target that averages over" in capsys.readouterr().out) == warned


def test_a_finished_run_is_left_alone(whole, capsys):
    workdir, report = whole
    before = (workdir / "metrics.jsonl").read_bytes()
    again = command.pretrain(small.config(probe__every=4), workdir)
    assert again["params_digest"] == report["params_digest"] and (workdir / "metrics.jsonl").read_bytes() == before
    assert "finished" in capsys.readouterr().out


def test_a_broken_report_is_said_and_written_anew(whole, tmp_path, capsys):
    """As whatever else of a finished run is only for looking at."""
    shutil.copytree(whole[0], tmp_path / "run")
    workdir = tmp_path / "run"
    report = workdir / "report" / "report.json"
    report.write_bytes(report.read_bytes()[:-500])
    shutil.rmtree(workdir / "tensorboard")
    for name in ("tensorboard", "owner", "bad_images.txt", "config.json"):
        (workdir / name).write_bytes(b"\xff\x00")
    lines = (workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_bytes(b"".join([*lines[:3], b"\x00\xff\n", *lines[3:], b'{"step": 12, "lo']))
    again = command.pretrain(small.config(probe__every=4), workdir)
    out = capsys.readouterr().out
    for said in (
        f"{report} is broken: it is no report of a finished run, and is written anew",
        f"{workdir}/tensorboard is no folder: set aside as {workdir}/damaged-tensorboard",
        f"{workdir}/metrics.jsonl: 1 of {len(lines) + 1} lines are no metrics and left out, the first is line 4",
        f"{workdir}/bad_images.txt is no list of names",
    ):
        assert said in out
    assert "None" not in out and "this run is finished" not in out
    assert again["params_digest"] == whole[1]["params_digest"] and again["probes"] == whole[1]["probes"]
    assert json.loads(report.read_bytes())["last_metrics"] == whole[1]["last_metrics"]
    assert (workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)[: len(lines)] == lines
    assert json.loads((workdir / "config.json").read_text())["optim"]["steps"] == 12
    assert command.pretrain(small.config(probe__every=4), workdir) == json.loads(report.read_bytes())
    assert "this run is finished" in capsys.readouterr().out


def test_a_report_of_fewer_steps_is_not_that_of_a_finished_run(whole, tmp_path):
    """A run that was made longer, and killed before its report."""
    shutil.copytree(whole[0], tmp_path / "run")
    report = tmp_path / "run" / "report" / "report.json"
    report.write_text(json.dumps({**json.loads(report.read_text()), "steps": 8}))
    assert command.pretrain(small.config(probe__every=4), tmp_path / "run")["steps"] == 12


def test_damaged_metrics_stop_no_run_that_goes_on(whole, tmp_path, monkeypatch, capsys):
    stopped_run(tmp_path, monkeypatch, probe__every=4)
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    odd = [b"\xff\x00\n", b"no metrics\n", b'{"step": 2, "probe/linear/count": "high", "loss": [1]}\n']
    (tmp_path / "metrics.jsonl").write_bytes(b"".join([*odd, *lines, b'{"step": 10, ']))
    report = command.pretrain(small.config(probe__every=4), tmp_path)
    assert f"{tmp_path}/metrics.jsonl: 2 of {len(lines) + 3} lines are no metrics and left out" in capsys.readouterr().out
    assert report["params_digest"] == whole[1]["params_digest"] and report["last_metrics"] == whole[1]["last_metrics"]
    assert [line["step"] for line in metrics.read(tmp_path) if line.get("loss")] == list(range(1, 13))


@pytest.mark.parametrize("where", ["metrics", "report"])
def test_a_full_disk_ends_the_run_by_its_name_and_the_same_call_continues(whole, tmp_path, monkeypatch, where):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "metrics":
            plain = metrics.EventsWriter.write_event
            patch.setattr(
                metrics.EventsWriter, "write_event", lambda self, event: (full if event.step >= 6 else plain)(self, event)
            )
        else:
            patch.setattr(result, "write_report", full)
        before = threading.active_count()
        with pytest.raises(OSError, match=rf"^cannot write to {tmp_path} \(disk full\?\): No space left on device$"):
            command.pretrain(small.config(), tmp_path)
        assert threading.active_count() <= before  # nothing is left that would fail, or wait, later
    report = command.pretrain(small.config(), tmp_path)
    assert report["resumed_from"] == (4 if where == "metrics" else 12)
    assert report["params_digest"] == whole[1]["params_digest"]
    assert [line["step"] for line in metrics.read(tmp_path) if "loss" in line] == list(range(1, 13))


def test_of_several_failures_at_the_end_the_first_is_told(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    ended = []
    plain = checkpoint.Checkpoints.close
    monkeypatch.setattr(checkpoint.Checkpoints, "close", lambda self: ended.append(plain(self)))
    monkeypatch.setattr(metrics.MetricsWriter, "close", full)
    kill_at(monkeypatch, 3)
    with pytest.raises(Killed):
        command.pretrain(small.config(), tmp_path)
    assert ended == [None]


def test_probes_never_disturb_training(whole, tmp_path):
    report = command.pretrain(small.config(probe__every=0), tmp_path)
    assert report["params_digest"] == whole[1]["params_digest"]


def at_batch(monkeypatch, step: int, act: Callable[[], None]) -> None:
    """Acts where the batch of a step is asked for: the step before it is at work, the metrics of that one not yet read."""
    plain = Loader.train_batches

    def batches(loader, source, sampler, start_step=0, views=()):
        for at, batch in enumerate(plain(loader, source, sampler, start_step, views), start_step + 1):
            if at == step:
                act()
            yield batch

    monkeypatch.setattr(Loader, "train_batches", batches)


@pytest.mark.parametrize("number", [signal.SIGINT])  # SIGTERM is sent to whole commands (test_launch.py)
def test_a_signal_saves_and_the_run_ends_with_the_same_bits(whole, tmp_path, monkeypatch, number):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_batch(patch, 7, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Stopped, match=rf"stopped by {number.name} at step 7, saved"):
            command.pretrain(small.config(), tmp_path)
    report = command.pretrain(small.config(), tmp_path)
    assert report["resumed_from"] == 7 and report["params_digest"] == whole[1]["params_digest"]
    assert [line["step"] for line in metrics.read(tmp_path) if "loss" in line] == list(range(1, 13))
    assert signal.getsignal(number) == before


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def kill_at(monkeypatch, step: int) -> None:
    """Ends a run while a step is at work, before its metrics are read; what was being saved by then is whole."""

    def kill():
        raise Killed

    at_batch(monkeypatch, step + 1, kill)


def stopped_run(tmp_path, monkeypatch, step: int = 11, **changes) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            command.pretrain(small.config(**changes), tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "notes"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(whole, tmp_path, monkeypatch, capsys, damage):
    stopped_run(tmp_path, monkeypatch)
    newest = tmp_path / "checkpoints" / "8"
    files = sorted((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    biggest = files[-1].read_bytes()
    if damage == "truncate":
        files[-1].write_bytes(biggest[: len(biggest) // 2])
    elif damage == "flip":
        files[-1].write_bytes(biggest[:5000] + bytes([biggest[5000] ^ 1]) + biggest[5001:])
    else:
        for path in files:
            if damage == "empty" or "notes" in str(path):
                path.write_text("")
    report = command.pretrain(small.config(), tmp_path)
    out = capsys.readouterr().out
    assert "checkpoint 8" in out and "is damaged" in out and "continuing from checkpoint 4" in out
    assert report["resumed_from"] == 4 and report["params_digest"] == whole[1]["params_digest"]
    assert (tmp_path / "checkpoints" / "damaged-8").exists()


def test_an_unfinished_checkpoint_is_reported(tmp_path, monkeypatch, capsys):
    stopped_run(tmp_path, monkeypatch, step=6)
    (tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir()
    command.pretrain(small.config(), tmp_path)
    out = capsys.readouterr().out
    assert "8.orbax-checkpoint-tmp was never finished: ignored" in out and "continuing from checkpoint 4" in out


def test_never_from_zero_over_damaged_checkpoints(tmp_path, monkeypatch):
    stopped_run(tmp_path, monkeypatch, step=6)
    for path in (tmp_path / "checkpoints" / "4").rglob("*"):
        if path.is_file():
            path.write_text("")
    with pytest.raises(checkpoint.CheckpointError, match="no readable checkpoint: checkpoint 4 in .* is damaged"):
        command.pretrain(small.config(), tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model__depth": 1}, "model.depth was 2, now 1"),
        ({"masks__context_patches": 12}, "masks.context_patches was 16, now 12"),
        ({"seed": 1, "data__size": 65}, "contents.scenes was .64 .* now .65 .*; examples was 64, now 65; seed was 0, now 1"),
    ],
    ids=str,
)
def test_other_settings_than_the_checkpoints_are_refused(whole, change, message):
    with pytest.raises(ValueError, match=f"holds checkpoints of other settings: {message}"):
        command.pretrain(small.config(probe__every=4, **change), whole[0])


def test_other_schedules_are_allowed_and_named(tmp_path, monkeypatch, capsys):
    stopped_run(tmp_path, monkeypatch)
    command.pretrain(small.config(optim__peak_lr=5e-4, optim__clip=1.0), tmp_path)
    assert (
        "continuing with changed settings: optim.clip was 3.0, now 1.0; optim.peak_lr was 0.001, now 0.0005"
        in capsys.readouterr().out
    )


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    plain = Loader.train_batches

    def poisoned(loader, source, sampler, start_step=0, views=()):
        for step, batch in enumerate(plain(loader, source, sampler, start_step, views), start_step + 1):
            image = batch["image"].astype(np.float32) / 128 - 1
            yield {**batch, "image": np.where(step == 6, np.nan, image).astype(np.float32)}

    monkeypatch.setattr(Loader, "train_batches", poisoned)
    with pytest.raises(Diverged, match=r"loss.* not finite at step 6.* Checkpoint 4 is good"):
        command.pretrain(small.config(), tmp_path)
    assert checkpoint.Checkpoints(tmp_path, read_only=True).steps() == [4]


def test_best_and_newest_checkpoints_are_kept(tmp_path, monkeypatch):
    scores = iter([50.0, 40.0, 30.0, 20.0, 10.0])
    monkeypatch.setattr(probe, "score", lambda results: next(scores))
    changes = {"checkpoint__keep": 1, "checkpoint__keep_every": 6, "probe__every": 2, "checkpoint__every": 2}
    stopped_run(tmp_path, monkeypatch, step=11, **changes)
    checkpoints = checkpoint.Checkpoints(tmp_path, read_only=True)
    assert checkpoints.steps() == [2, 6, 10] and checkpoints.best_step() == 2


def test_warm_start_takes_the_weights_and_a_fresh_optimiser(whole, tmp_path):
    config = small.config(warm_start=str(whole[0]), optim__steps=1, optim__warmup=0.0, optim__start_lr=0.0,
                          optim__peak_lr=1e-30, optim__final_lr=0.0)  # fmt: skip
    command.pretrain(config, tmp_path)
    given, _ = checkpoint.restore_encoder(whole[0])
    warm, _ = checkpoint.restore_encoder(tmp_path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), warm, given)


def test_a_warm_start_that_does_not_fit_is_refused(whole, tmp_path):
    with pytest.raises(
        ValueError, match=r"does not fit the model in \d+ tensors: blocks/0/fc1/bias: wanted \(192,\), given \(128,\)"
    ):
        command.pretrain(small.config(warm_start=str(whole[0]), model__width=48), tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="is not a workdir"):
        command.pretrain(small.config(warm_start=str(tmp_path / "nowhere")), tmp_path / "new")


def test_profile_of_chosen_steps(tmp_path):
    command.pretrain(small.config(profile__start=3, profile__steps=2, optim__steps=6), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_devices_share_a_batch_evenly(tmp_path):
    with pytest.raises(ValueError, match=r"optim.batch_size 16 does not divide into optim.accumulation 3"):
        command.pretrain(small.config(optim__accumulation=3), tmp_path)
    with pytest.raises(ValueError, match="optim.accumulation 0 must be a whole number from 1"):
        command.pretrain(small.config(optim__accumulation=0), tmp_path)
    with pytest.raises(ValueError, match="mesh data=7, fsdp=3 does not make up the"):
        command.pretrain(small.config(mesh__data=7, mesh__fsdp=3), tmp_path)
    with pytest.raises(DataError, match="scenes has 8 training images, fewer than optim.batch_size 16"):
        command.pretrain(small.config(data__size=8), tmp_path)


def test_accumulation_in_a_run(tmp_path):
    one = command.pretrain(small.config(optim__steps=3), tmp_path / "one")
    two = command.pretrain(small.config(optim__steps=3, optim__accumulation=2), tmp_path / "two")
    losses = [[line["loss"] for line in metrics.read(tmp_path / name) if "loss" in line] for name in ("one", "two")]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert one["steps"] == two["steps"] == 3


def test_the_process_that_waits_for_its_input_is_named(whole, tmp_path, monkeypatch, capsys):
    """Of several processes, where it waits for more than a twentieth of the time; one alone has its share in the report."""
    shares = iter([(0.01, 0.3), (0.01, 0.04), (0.4,)])  # at each of three checkpoints
    plain = processes.gather_objects

    def gather(mine):
        if not isinstance(mine, tuple):
            return plain(mine)
        return [(f"process {i} on {'ab'[i]}", share) for i, share in enumerate(next(shares))]

    monkeypatch.setattr(processes, "gather_objects", gather)
    stopped_run(tmp_path, monkeypatch, step=3, checkpoint__every=1)
    (said,) = (line for line in capsys.readouterr().out.splitlines() if "for its input" in line)
    assert "process 1 on b waits 30% of the time for its input, and all others for it" in said and not [*shares]
    assert whole[1]["input_wait_by_process"] == {processes.place(): whole[1]["input_wait_share"]}


def test_wandb_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"log\.wandb is set, but its package is not installed: pip install wandb"):
        command.pretrain(small.config(log__wandb="a project"), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_run_and_its_continuation_are_one_run_of_wandb(tmp_path, monkeypatch, wandb):  # noqa: F811
    stopped_run(tmp_path / "run", monkeypatch, step=7, log__wandb="mine", probe__every=4)
    first = wandb()
    command.pretrain(small.config(log__wandb="mine", probe__every=4), tmp_path / "run")
    second = wandb()
    assert first[0] == second[0] and first[0][1]["project"] == "mine"
    assert first[1][1]["optim"]["steps"] == 12 and second[-1] == ["finish", None]
    losses = [
        [values["step"] for name, values in calls if name == "log" and "train/loss" in values] for calls in (first, second)
    ]
    assert losses == [[1, 2, 3, 4, 5, 6], list(range(5, 13))]
    pictures = [
        [values["step"] for name, values in calls if name == "log" and "features/patches" in values]
        for calls in (first, second)
    ]
    assert pictures == [[0, 4], [8, 12]]


def test_a_run_that_goes_on_shows_what_was_probed_before(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(command.Display, "recall_probes", lambda self, name, results: shown.update({name: results}))
    stopped_run(tmp_path, monkeypatch, step=7, probe__every=4)
    assert not shown
    command.pretrain(small.config(probe__every=4), tmp_path)
    lines = [line for line in metrics.read(tmp_path) if "probe/rankme" in line]
    assert shown["I-JEPA"]["linear/count"] == lines[1]["probe/linear/count"] and lines[1]["step"] == 4
    assert shown["random init"]["rankme"] == lines[0]["baseline/random_init/rankme"]
    assert shown["pixels"]["knn/shape"] == lines[0]["baseline/pixels/knn/shape"]


def test_a_run_shorter_than_its_log_interval_has_a_report(tmp_path):
    """The last step is always written down: a report without a loss would have nothing to draw."""
    report = command.pretrain(small.config(optim__steps=4, log__every=50), tmp_path)
    lines = [line for line in metrics.read(tmp_path) if "loss" in line]
    assert [line["step"] for line in lines] == [4] and report["last_metrics"]["loss"] == lines[0]["loss"]
    assert curves.draw_run(tmp_path, lines, "I-JEPA") == ["curves.png"] and curves.draw_run(tmp_path, [], "I-JEPA") == []
