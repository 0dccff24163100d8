"""Metric lines: valid JSON whatever the values, later steps dropped on resume, lines that are none left out and said."""

import errno
import json
import math
import re
import struct
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from ijepa_jax.train import metrics
from ijepa_jax.visualize import curves
from tests import object_store

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
    assert writer.problems == []  # a kill is nothing to speak of: that step is made again
    writer.write(5, {"loss": 50})
    writer.close()
    assert [(line["step"], line["loss"]) for line in metrics.read(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50)]


def test_no_file_no_lines(tmp_path):
    assert metrics.read(tmp_path) == []


NO_METRICS = [
    b"\x00\xff\xfe\x80", b"[1, 2]", b"null", b"# a remark", b'{"loss": 1.0}', b'{"step": "3", "loss": 1.0}', b'{"step": 3.5}',
    b'{"step": true}', b'{"step": -1}', b'{"step": 1' + 400 * b"0" + b"}", b'{"step": 2, "lo{"step": 3}', b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("wrong", NO_METRICS, ids=range(len(NO_METRICS)))
def test_lines_that_are_no_metrics_are_left_out_and_said(tmp_path, wrong):
    good = [b'{"step": %d, "loss": 0.5}' % step for step in range(1, 5)]
    before = b"\n".join([good[0], wrong, b"", good[1], wrong, *good[2:], b""])
    (tmp_path / "metrics.jsonl").write_bytes(before)
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4]
    writer = metrics.MetricsWriter(tmp_path, 4)
    writer.close()
    kept = tmp_path / "damaged-metrics.jsonl"
    assert writer.problems == [
        f"{tmp_path}/metrics.jsonl: 2 of 6 lines are no metrics and left out, the first is line 2; the file as it was is {kept}"
    ]
    assert kept.read_bytes() == before and (tmp_path / "metrics.jsonl").read_bytes().splitlines() == good


def test_a_damaged_file_in_an_object_store(tmp_path, monkeypatch):
    with object_store.mounted(tmp_path, monkeypatch):
        place = metrics.epath.Path("gs://bucket/run")
        damaged = b'{"step": 1, "loss": 0.5}\n\xff\n{"step": 2, "loss": 0.5}\n'
        (place / "metrics.jsonl").write_bytes(damaged)
        writer = metrics.MetricsWriter(place, 2)
        assert "1 of 3 lines are no metrics" in writer.problems[0] and (place / "damaged-metrics.jsonl").read_bytes() == damaged
        assert [line["step"] for line in metrics.read(place)] == [1, 2]
        writer.close()
        assert [line["step"] for line in metrics.read(place)] == [1, 2]


def test_a_file_that_cannot_be_read_is_set_aside(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(type(metrics.epath.Path(tmp_path)), "read_bytes", refuse)
        writer = metrics.MetricsWriter(tmp_path, 1)
    writer.close()
    assert "cannot be read (Permission denied)" in writer.problems[0] and (tmp_path / "damaged-metrics.jsonl").exists()


def test_odd_values_and_names_stop_no_curve(tmp_path):
    odd = ['"high"', "[1]", '{"a": 1}', "true", "null", "NaN", "Infinity", "1e999", "1" + 400 * "0", "1e308"]
    names = ["loss", "target_std", "probe/linear/count", "probe/linear/a/b", "probe/knn/$\\\\x$", "probe/"]
    lines = [f'{{"step": {i}, ' + ", ".join(f'"{name}": {value}' for name in names) + "}" for i, value in enumerate(odd)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 99, "loss": 0.5, "probe/linear/count": 3}', ""]))
    found = metrics.read(tmp_path)
    assert [line["loss"] for line in found] == [None] * 9 + [1e308, 0.5]
    assert curves.draw_run(metrics.epath.Path(tmp_path), found[10:], "I-JEPA") == ["curves.png", "probes.png"]
    assert curves.draw_run(metrics.epath.Path(tmp_path), found[:9], "I-JEPA") == ["probes.png"]
    assert curves.draw_run(metrics.epath.Path(tmp_path), [{"step": 1, "probe/linear/a/b": 0.5}], "I-JEPA") == []


def test_a_full_disk_is_an_error_of_whoever_writes(tmp_path, monkeypatch):
    """Not of a thread of its own, whose failure would be a traceback, and a full queue after it."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = metrics.MetricsWriter(tmp_path, 0)
    monkeypatch.setattr(metrics.EventsWriter, "write_event", full)
    for step in range(1, 30):
        with pytest.raises(OSError, match="No space left"):
            writer.write(step, {"loss": 0.5})
    monkeypatch.undo()
    writer.close()
    (tmp_path / "metrics.jsonl").write_bytes(before := b'\xff\n{"step": 1}\n')
    monkeypatch.setattr(type(metrics.epath.Path(tmp_path)), "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        metrics.MetricsWriter(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before  # what is damaged is only moved when the rest is safe


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


@pytest.mark.parametrize("broken", [b"\xff\xfe", b"", b"a b/c\n"], ids=["binary", "empty", "foreign"])
def test_a_damaged_id_begins_a_new_run_and_is_said(tmp_path, wandb, broken):
    (tmp_path / "wandb_id").write_bytes(broken)
    run = metrics.WandbRun("a project", metrics.epath.Path(tmp_path), {})
    writer = metrics.MetricsWriter(tmp_path, 0, run)
    assert writer.problems == [f"{tmp_path}/wandb_id holds no id of Weights & Biases: a new run begins there"]
    writer.close()
    assert wandb()[0][1]["id"] == (tmp_path / "wandb_id").read_text() != broken.decode(errors="replace")


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
