"""Metric lines: valid JSON whatever the values, later steps dropped on resume, a cut line tolerated."""

import json
import math

from ijepa_jax import metrics


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
