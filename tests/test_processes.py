"""Several real processes on this machine train one run: they agree, stop together, and continue in other numbers."""

import argparse
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from ijepa_jax.cli import UsageError, parse_mesh
from ijepa_jax.devices import processes
from ijepa_jax.train import checkpoint, workdir
from ijepa_jax.train.metrics import MetricsWriter, read
from tests import equivalence, object_store

ROOT = pathlib.Path(__file__).resolve().parent.parent
THREE_STEPS = argparse.Namespace(steps=3, accumulation=1, config="", settings=[])
SMALL = (
    "--config.data.size=64", "--config.data.test_size=32", "--config.probe.every=0", "--config.log.line_seconds=0.5",
    "--config.optim.warmup=5.0", "--config.checkpoint.every=20",
)  # fmt: skip


class Cluster:
    """Processes of one command, by default a small run's, each with some simulated CPU devices."""

    def __init__(
        self,
        workdir: pathlib.Path,
        count: int,
        devices: int,
        *arguments: str,
        differing: tuple = (),
        task: tuple = (),
        folders: tuple = (),
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        self.logs, self.processes = [], []
        for i in range(count):
            task = task or ("pretrain", "--config", ROOT / "configs/tiny.py", "--workdir", workdir, *SMALL)
            command = [sys.executable, ROOT / "launch.py", *task, *arguments, *(differing if i == count - 1 else ())]
            if count > 1:
                command += ["--coordinator", coordinator, "--num_processes", str(count), "--process_id", str(i)]
            folder = folders[i] if folders else ROOT
            folder.mkdir(exist_ok=True)
            self.logs.append(workdir.parent / f"{workdir.name}.{count}x{devices}.{i}.log")
            with self.logs[-1].open("w") as log:
                self.processes.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
                )

    def log(self, i: int = 0) -> str:
        return self.logs[i].read_text()

    def wait(self, seconds: float = 600) -> list[int]:
        """The exit codes."""
        try:
            return [process.wait(seconds) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def wait_for(self, text: str) -> None:
        """Returns when the first process has logged a text."""
        end = time.monotonic() + 400
        while text not in self.log():
            assert self.processes[0].poll() is None and time.monotonic() < end, self.log()
            time.sleep(0.1)


def _losses(workdir: pathlib.Path) -> np.ndarray:
    return np.array([line["loss"] for line in read(workdir) if "loss" in line])


def _report(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / "report" / "report.json").read_text())


def test_the_same_steps_on_other_meshes(tmp_path):
    one, *others = (equivalence.run_cell(cell, THREE_STEPS, tmp_path) for cell in ("1x1", "4x2", "2 processes: 2x2"))
    for other in others:
        errors = equivalence.compare(other, one)
        assert errors["compilations"] == 1 and errors["split_tensors"] > 0
        assert errors["loss_error"] < 1e-5 and errors["weight_error"] < 1e-5


def test_the_statistic_of_views_is_that_of_all_processes_rows(tmp_path):
    words = [f"--config.{setting}" for setting in (
        "method=lejepa", "lejepa.local_size=16,16", "lejepa.projector_width=64", "lejepa.slices=64", "model.init=fan_in",
        "data.size=64", "data.test_size=32",
    )]  # fmt: skip
    options = argparse.Namespace(steps=2, accumulation=1, config=str(ROOT / "configs/tiny.py"), settings=words)
    one, two = (equivalence.run_cell(cell, options, tmp_path) for cell in ("1x1", "2 processes: 4x1"))
    errors = equivalence.compare(two, one)
    assert errors["loss_error"] < 1e-5 and errors["weight_error"] < 1e-5


def test_key_biases_alone_are_left_out_of_the_comparison():
    bias = np.arange(6.0)
    assert equivalence.without_key_bias("params/encoder/qkv/bias", bias).tolist() == [0, 1, 4, 5]
    assert equivalence.without_key_bias("params/encoder/fc1/bias", bias) is bias


def test_processes_that_differ_refuse_to_start(tmp_path):
    cluster = Cluster(tmp_path / "run", 2, 1, differing=("--config.optim.peak_lr=0.5",))
    assert cluster.wait() == [1, 1]
    for i in range(2):
        assert "process 1 on" in cluster.log(i) and "optim.peak_lr is 0.5, there 0." in cluster.log(i)
        assert "Traceback" not in cluster.log(i)


@pytest.mark.slow
def test_stopped_by_one_and_continued_by_other_numbers_of_processes(tmp_path):
    """2 x 2 stop together, as one is asked to; 1 x 8 (fsdp 2) and 4 x 1 each end as a run of one device does."""
    steps = "--config.optim.steps=60"
    whole = Cluster(tmp_path / "whole", 1, 1, steps)
    assert whole.wait() == [0], whole.log()
    cluster = Cluster(tmp_path / "run", 2, 2, steps, "--mesh", "data=2,fsdp=2")
    cluster.wait_for("step 1/60")
    cluster.processes[1].send_signal(signal.SIGTERM)
    assert cluster.wait() == [0, 0], cluster.log() + cluster.log(1)
    assert "stopped by SIGTERM to one of its processes at step" in cluster.log()
    expected, _ = checkpoint.restore_encoder(str(tmp_path / "whole"))
    for count, devices, mesh in ((1, 8, "data=4,fsdp=2"), (4, 1, "data=4")):
        continued = tmp_path / f"continued_{count}x{devices}"
        shutil.copytree(tmp_path / "run", continued)
        cluster = Cluster(continued, count, devices, steps, "--mesh", mesh)
        assert set(cluster.wait()) == {0}, cluster.log()
        assert "continuing from checkpoint" in cluster.log()
        np.testing.assert_allclose(_losses(continued), _losses(tmp_path / "whole"), rtol=1e-4)
        weights, _ = checkpoint.restore_encoder(str(continued))
        for a, b in zip(_leaves(weights), _leaves(expected), strict=True):
            assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(b) + 1e-6
        assert _report(continued)["environment"]["processes"] == count


def _leaves(tree) -> list[np.ndarray]:
    return [leaf for value in tree.values() for leaf in _leaves(value)] if isinstance(tree, dict) else [np.asarray(tree)]


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_read_is_set_aside_by_all(tmp_path):
    """With weights split over two processes, one of whose parts of the newest checkpoint is damaged."""
    split = ("--mesh", "data=1,fsdp=2", "--config.model.width=128", "--config.checkpoint.every=10")
    cluster = Cluster(tmp_path / "run", 2, 1, "--config.optim.steps=20", *split)
    assert cluster.wait() == [0, 0], cluster.log() + cluster.log(1)
    (tmp_path / "run" / "report" / "report.json").unlink()
    largest = max((tmp_path / "run/checkpoints/20/state/ocdbt.process_1/d").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    third = len(data) // 3
    data[third : 2 * third] = bytes(third)
    largest.write_bytes(data)
    cluster = Cluster(tmp_path / "run", 2, 1, "--config.optim.steps=20", *split)
    assert cluster.wait() == [0, 0], cluster.log() + cluster.log(1)
    assert (
        "checkpoint 20 in" in cluster.log()
        and "is damaged" in cluster.log()
        and "continuing from checkpoint 10" in cluster.log()
    )
    assert (tmp_path / "run" / "checkpoints" / "damaged-20").is_dir()


@pytest.mark.slow
def test_a_workdir_that_not_all_processes_see_is_refused(tmp_path):
    task = ("pretrain", "--config", ROOT / "configs/tiny.py", "--workdir", "runs/mine", *SMALL)
    cluster = Cluster(tmp_path / "run", 2, 1, task=task, folders=(tmp_path / "a", tmp_path / "b"))
    assert cluster.wait() == [1, 1]
    for i in range(2):
        assert "does not see the workdir" in cluster.log(i) and "process 1 on" in cluster.log(i), cluster.log(i)


@pytest.mark.slow
def test_an_evaluation_counts_every_image_once_on_any_number_of_processes_and_devices(tmp_path):
    """Odd numbers of images: 2 processes x 2 devices and 1 x 8 find the neighbours of one, and train heads alike."""
    run = Cluster(tmp_path / "run", 1, 1, "--config.optim.steps=20")
    assert run.wait() == [0], run.log()

    def evaluate(count: int, devices: int, only: str) -> dict[str, dict]:
        """kNN, heads on new crops and attentive ones, and fine-tuning: what the paper's suite runs on one data set."""
        out = tmp_path / f"{count}x{devices}"
        task = ("evaluate", "--suite=paper", "--scale=tiny", "--data=scenes", "--checkpoint", tmp_path / "run", "--out", out)
        images = (
            "--config.data.train_images=63",
            "--config.data.test_images=31",
            "--config.data.tasks=count",
            f"--only={only}",
        )
        batches = [f"--config.{name}.batch_size=48" for name in ("linear", "attentive", "finetune")]
        cluster = Cluster(tmp_path / "run", count, devices, *images, *batches, "--config.cache=False", task=task)
        assert set(cluster.wait()) == {0}, cluster.log()
        return {path.name: json.loads(path.read_text()) for path in out.glob("*-scenes-*.json")}

    alone, several, eight = evaluate(1, 1, "imagenet,lowshot"), evaluate(2, 2, "imagenet,lowshot"), evaluate(1, 8, "knn_in1k")
    assert sorted(name.split("-")[0] for name in several) == ["attentive", "finetune", "finetune", "knn", "linear"]
    assert len(eight) == 1
    for name, result in [*several.items(), *eight.items()]:
        points = 0.001 if name.startswith("knn") else 3.3  # one of the 31 answers
        assert result["test_images"] == 31 and result["encoder_digest"] == alone[name]["encoder_digest"]
        assert result["accuracy"] == pytest.approx(alone[name]["accuracy"], abs=points)
        assert result["baselines"] == pytest.approx(alone[name]["baselines"], abs=points)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_run_goes_on_from_its_last_checkpoint(tmp_path):
    steps = "--config.optim.steps=400"
    cluster = Cluster(tmp_path / "run", 2, 1, steps)
    end = time.monotonic() + 400
    while not (tmp_path / "run" / "checkpoints" / "40").exists():
        assert cluster.processes[0].poll() is None and time.monotonic() < end, cluster.log()
        time.sleep(0.1)
    cluster.processes[1].kill()
    killed = time.monotonic()
    codes = cluster.wait()
    assert codes[0] != 0 and time.monotonic() - killed < 120
    assert "another process of the run is gone" in cluster.log() or "another task died" in cluster.log()
    cluster = Cluster(tmp_path / "run", 1, 1, "--config.optim.steps=80")
    assert cluster.wait() == [0], cluster.log()
    assert "continuing from checkpoint" in cluster.log()
    assert len(_losses(tmp_path / "run")) == 80


def test_a_second_run_in_a_workdir_is_refused(tmp_path):
    with (
        workdir.claim(epath.Path(tmp_path)) as check,
        pytest.raises(ValueError, match=f"another run is at work in {tmp_path}"),
        workdir.claim(epath.Path(tmp_path)),
    ):
        pass
    check()
    with workdir.claim(epath.Path(tmp_path)):  # free again
        pass


def test_without_locks_the_newer_run_takes_over(tmp_path, monkeypatch):
    with object_store.mounted(tmp_path, monkeypatch):
        place = epath.Path("gs://bucket/run")
        with workdir.claim(place) as check_first:
            check_first()
            with workdir.claim(place) as check_second:
                check_second()
                with pytest.raises(ValueError, match="another run has taken over gs://bucket/run"):
                    check_first()


def test_metrics_need_no_appending(tmp_path, monkeypatch):
    with object_store.mounted(tmp_path, monkeypatch):
        writer = MetricsWriter("gs://bucket/run", 0)
        for step in (1, 2, 3):
            writer.write(step, {"loss": step / 2})
            writer.flush()
        writer.close()
        again = MetricsWriter("gs://bucket/run", 2)
        again.write(3, {"loss": 7.0})
        again.close()
        assert [line["loss"] for line in read("gs://bucket/run")] == [0.5, 1.0, 7.0]
    assert len(list((tmp_path / "bucket" / "run" / "tensorboard").iterdir())) == 2


def test_a_run_that_was_taken_over_leaves_the_metrics_alone(tmp_path, monkeypatch):
    with object_store.mounted(tmp_path, monkeypatch):
        place = epath.Path("gs://bucket/run")
        with workdir.claim(place):
            first = MetricsWriter(place, 0)
            first.write(1, {"loss": 1.0})
            first.flush()
            with workdir.claim(place):
                second = MetricsWriter(place, 1)
                second.write(2, {"loss": 2.0})
                second.flush()
                first.write(2, {"loss": 3.0})
                first.close()
                assert [line["loss"] for line in read(place)] == [1.0, 2.0]
                second.close()


def test_places_are_given_as_a_whole_or_not_at_all():
    with pytest.raises(ValueError, match="give coordinator, num_processes and process_id together"):
        processes.start("127.0.0.1:1234", 2, None)
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        processes.start("127.0.0.1", 2, 0)


@pytest.mark.parametrize("text", ["data", "data=x", "rows=3", "data=2 fsdp=3"])
def test_meshes_that_cannot_be_read_are_refused(text):
    with pytest.raises(UsageError, match="must be like data=8,fsdp=4"):
        parse_mesh(text)


def test_facts_of_one_process_agree():
    processes.check_agreement({"anything": 1})
    assert processes.gather_objects({"a": 1}) == [{"a": 1}] and processes.all_succeeded(True)
    assert not processes.all_succeeded(False)
    assert len(processes.code_digest()) == 16
