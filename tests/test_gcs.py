"""Runs in a bucket: killed and continued, over unfinished and damaged checkpoints, and taken over by a second run."""

import dataclasses
import json
import re
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests import gcs, test_launch

WORKDIR = "gs://bucket/run"
SMALL = (*test_launch.SMALL, "--config.optim.steps=40")


class Bucket:
    """A stand-in for a bucket; can hold back one object's writing for good, as a kill before it does."""

    def __init__(self):
        self.objects: dict[str, gcs.Object] = {}
        self.written: list[str] = []
        self.held, self.reached = "", threading.Event()

    def before_write(self, name: str) -> None:
        self.written.append(name)
        if name == self.held:
            self.reached.set()
            raise ConnectionAbortedError

    def names(self, start: str) -> set[str]:
        return {name for name in list(self.objects) if name.startswith(start)}

    def steps(self) -> set[int]:
        """Steps of the finished checkpoints."""
        finished = (re.fullmatch(r"bucket/run/checkpoints/(\d+)/commit_success.txt", name) for name in list(self.objects))
        return {int(match[1]) for match in finished if match}

    def text(self, name: str) -> str:
        return self.objects[f"bucket/run/{name}"].data.decode()

    def logged(self) -> list[int]:
        return [line["step"] for line in map(json.loads, self.text("metrics.jsonl").splitlines()) if "loss" in line]

    def digest(self) -> str:
        return json.loads(self.text("report/report.json"))["params_digest"]


@pytest.fixture
def bucket(monkeypatch) -> Iterator[Bucket]:
    bucket = Bucket()
    with gcs.serve(bucket.objects, bucket.before_write) as url:
        for name, value in gcs.environment(url).items():
            monkeypatch.setenv(name, value)
        yield bucket


@pytest.fixture
def whole(tmp_path_factory) -> str:
    """The digest of an uninterrupted run on a local disk."""
    workdir = tmp_path_factory.mktemp("whole")
    code, _, err = test_launch.launch(*SMALL, f"--workdir={workdir}")
    assert code == 0, err
    return test_launch.digest(workdir)


def wait_until(process, happened) -> None:
    end = time.monotonic() + 400
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def test_killed_and_continued_over_unfinished_and_damaged_checkpoints_it_ends_like_a_local_run(bucket, whole, tmp_path):
    arguments = [*SMALL, f"--workdir={WORKDIR}"]
    bucket.held = "bucket/run/checkpoints/30/commit_success.txt"
    process = test_launch.start(*arguments)
    wait_until(process, bucket.reached.is_set)
    process.kill()
    process.communicate()
    assert not bucket.names("bucket/run/report/report.json")
    bucket.held = ""
    bucket.objects["bucket/run/checkpoints/damaged-20/x"] = gcs.Object(b"from setting one aside before")
    left = bucket.names("bucket/run/checkpoints/30/")
    assert left and bucket.steps() == {10, 20}
    before = bucket.names("bucket/run/checkpoints/20/")
    biggest = max(before, key=lambda name: len(bucket.objects[name].data))
    data = bytearray(bucket.objects[biggest].data)
    data[5000] ^= 1
    bucket.objects[biggest] = dataclasses.replace(bucket.objects[biggest], data=bytes(data))
    code, out, err = test_launch.launch(*arguments)
    assert code == 0 and "checkpoint 30 was never finished: ignored" in out, out + err
    assert "checkpoint 20 in gs://bucket/run/checkpoints is damaged" in out
    assert "continuing from checkpoint 10 of 40 steps in gs://bucket/run" in out
    assert bucket.digest() == whole and bucket.logged() == list(range(1, 41))
    assert bucket.steps() == {30, 40} and not bucket.names("bucket/run/checkpoints/20/")
    assert not left & bucket.names("bucket/run/checkpoints/30/state/ocdbt.process_0/d/")
    aside = bucket.names("bucket/run/checkpoints/damaged-20.1/")
    assert {name.replace("damaged-20.1", "20") for name in aside} == before
    report = {name.rpartition("/")[2] for name in bucket.names("bucket/run/report/")}
    assert report == {"report.json", "report.md", "report.html", "curves.png", "masks.png", "pca.png", "neighbours.png"}
    assert json.loads(bucket.text("config.json"))["optim"]["steps"] == 40
    assert bucket.names("bucket/run/tensorboard/events.")
    short = ["--config.optim.steps=1", "--config.optim.warmup=0.0"]
    code, out, err = test_launch.launch(*SMALL, *short, f"--config.warm_start={WORKDIR}", f"--workdir={tmp_path}/warm")
    assert code == 0 and "warm start from gs://bucket/run, checkpoint 40" in out, err


def test_a_second_run_in_a_bucket_takes_over(bucket):
    arguments = [*SMALL, f"--workdir={WORKDIR}", "--config.optim.steps=100000"]
    first = test_launch.start(*arguments)
    wait_until(first, lambda: 20 in bucket.steps())
    second = test_launch.start(*arguments, "--config.checkpoint.every=50000", "--config.log.line_seconds=0.5")
    out, err = first.communicate(timeout=120)
    lines = [line for line in err.splitlines() if not line.startswith("I")]  # tensorstore tells how it signs in
    message = "error: another run has taken over gs://bucket/run: this one stops, and has not saved since"
    assert first.returncode == 1 and lines == [message], err
    taken = len(bucket.written) - bucket.written[::-1].index("bucket/run/owner")
    saved, saved_before = (
        {name.split("/")[3] for name in part if name.startswith("bucket/run/checkpoints/")}
        for part in (bucket.written[taken:], bucket.written[:taken])
    )
    assert len(saved - saved_before) <= 1  # what the first had begun to write just then
    assert bucket.written[taken:].count("bucket/run/metrics.jsonl") <= 1
    shown = []
    assert any(shown.append(line) or line.startswith("step ") for line in second.stdout), shown + second.stderr.readlines()
    for name in bucket.names(f"bucket/run/checkpoints/{min(bucket.steps())}/"):
        del bucket.objects[name]  # as the first may have done, whose save was under way
    second.send_signal(signal.SIGTERM)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    stopped = int(re.search(r"stopped by SIGTERM at step (\d+), saved", out)[1])
    assert stopped in bucket.steps() and bucket.logged() == list(range(1, stopped + 1))
