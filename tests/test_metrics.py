"""Metric lines: valid JSON whatever the values, later steps dropped on resume, a cut line tolerated."""

import json
import math
import re
import struct
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from ijepa_jax import metrics

PICTURE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
# Stands for the package: writes what it is called with to a file.
FAKE = """
import json, os
class Image(list):
    pass
class Run:
    def __init__(self, options):
        self.options, self.step = options, 0
        self.config = self
        self.note("init", options)
    def note(self, name, value):
        with open(os.environ["FAKE_WANDB"], "a") as file:
            file.write(json.dumps([name, value]) + "\\n")
    def update(self, settings, allow_val_change):
        assert allow_val_change
        self.note("config", settings)
    def define_metric(self, name, step_metric=None):
        self.note("define", [name, step_metric])
    def log(self, values):
        self.note("log", {k: v if not isinstance(v, Image) else f"picture {len(v)}" for k, v in values.items()})
    def finish(self):
        self.note("finish", None)
def init(**options):
    if options["project"] == "refused":
        raise Exception("api_key not configured (no-tty).\\ncall wandb.login")
    return Run(options)
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A package wandb; a function that returns what it was called with since."""
    place = tmp_path / "packages" / "wandb"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(FAKE)
    monkeypatch.syspath_prepend(place.parent)
    monkeypatch.setenv("FAKE_WANDB", str(tmp_path / "calls"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)

    def calls() -> list:
        found = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
        (tmp_path / "calls").unlink()
        return found

    yield calls
    sys.modules.pop("wandb", None)


def events(workdir):
    """What TensorBoard reads: (tag, step, scalar or picture) of all files."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            for value in event.summary.value:
                encoded = value.image.encoded_image_string
                yield value.tag, event.step, encoded or value.simple_value


def test_lines_and_tensorboard(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, 0)
    writer.write(1, {"loss": 0.5, "probe/rankme": math.nan})
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5, "probe/rankme": None}
    assert list((tmp_path / "tensorboard").iterdir())


def test_resuming_drops_what_will_be_written_again(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, 0)
    for step in range(1, 8):
        writer.write(step, {"loss": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # a kill in the middle of a line
    assert [line["step"] for line in metrics.read(tmp_path)] == list(range(1, 8))
    writer = metrics.MetricsWriter(tmp_path, 4)
    writer.write(5, {"loss": 50})
    writer.close()
    assert [(line["step"], line["loss"]) for line in metrics.read(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50)]


def test_no_file_no_lines(tmp_path):
    assert metrics.read(tmp_path) == []


def test_pictures_in_tensorboard(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, 0)
    writer.pictures(3, {"features/patches": PICTURE})
    writer.close()
    ((tag, step, encoded),) = events(tmp_path)
    assert (tag, step) == ("features/patches", 3)
    (tmp_path / "back.png").write_bytes(encoded)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "back.png")), PICTURE)
    assert metrics.read(tmp_path) == []


def test_wandb_gets_the_same_and_goes_on_with_the_same_run(tmp_path, wandb):
    assert metrics.has_wandb()
    workdir = metrics.epath.Path(tmp_path / "run")
    workdir.mkdir()
    ids = []
    for start_step in (0, 2):
        run = metrics.WandbRun("a project", workdir, {"optim": {"steps": 5}})
        writer = metrics.MetricsWriter(workdir, start_step, run)
        writer.write(3, {"loss": 0.5, "probe/rankme": 4.0})  # made again after the second start
        writer.pictures(3, {"features/patches": PICTURE})
        writer.close()
        (_, options), config, *rest = wandb()
        ids.append(options.pop("id"))
        assert options == {"project": "a project", "name": "run", "resume": "allow", "dir": str(workdir)}
        assert config == ["config", {"optim": {"steps": 5}}] and rest[:2] == [
            ["define", ["step", None]],
            ["define", ["*", "step"]],
        ]
        assert rest[2] == ["log", {"step": 3, "train/loss": 0.5, "probe/rankme": 4.0}]  # never as the package's own step
        assert rest[3:] == [["log", {"step": 3, "features/patches": "picture 4"}], ["finish", None]]
    assert ids[0] == ids[1] and re.fullmatch(r"[0-9a-f]{16}", ids[0])
    other = metrics.epath.Path(tmp_path / "other")
    other.mkdir()
    metrics.WandbRun("a project", other, {})
    assert wandb()[0][1]["id"] != ids[0]


def test_wandb_that_does_not_start_is_one_line(tmp_path, wandb):
    with pytest.raises(
        ValueError, match=r"log.wandb 'refused': .* did not start \(api_key not configured \(no-tty\). call wandb"
    ):
        metrics.WandbRun("refused", metrics.epath.Path(tmp_path), {})


def test_a_folder_named_wandb_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert not metrics.has_wandb()
