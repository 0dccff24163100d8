import io
import json

import numpy as np
from rich.console import Console

from ijepa_jax.visualize import report


def example():
    return {
        "seconds": 301.25,
        "images_per_s": np.float32(333.5),
        "steps": 3000,
        "params_digest": "ab" * 32,
        "compilations": 1,
        "command": "python launch.py",
        "config": {"model": {"width": 96}, "masks": {"scale": (0.1, 0.2)}},
        "environment": {"jax": "0.10.2", "devices": ["cpu"]},
        "data": "scenes",
        "probes": {
            "count": {"ijepa": 40.26, "random_init": 30.0, "pixels": 35.0},
            "shape": {"ijepa": np.float64(50.0), "random_init": 40.0, "pixels": 45.5},
        },
        "knn": {"count": {"ijepa": 38.0, "random_init": float("nan"), "pixels": 33.0}},
        "rankme": {"ijepa": 41.5, "random_init": 12.25},
        "feature_std": {"ijepa": 0.51, "random_init": 0.22},
        "pictures": ["curves.png", "masks.png"],
    }


def test_json_comes_back_as_it_went(tmp_path):
    report.write_report(tmp_path / "new" / "report", example())
    text = (tmp_path / "new" / "report" / "report.json").read_text()
    expected = example()
    expected["config"]["masks"]["scale"] = [0.1, 0.2]
    expected["knn"]["count"]["random_init"] = None
    assert json.loads(text) == expected
    assert "NaN" not in text and text.startswith('{\n  "')


def test_page_has_every_probe_and_picture(tmp_path):
    report.write_report(tmp_path, example())
    page = (tmp_path / "report.md").read_text()
    for expected in (
        "python launch.py",
        "| count | 40.3 | 30.0 | 35.0 |",
        "| shape | 50.0 | 40.0 | 45.5 |",
        "| mean | 45.1 | 35.0 | 40.2 |",
        "| count | 38.0 | – | 33.0 |",
        "| RankMe (effective rank) | 41.500 | 12.250 |",
        "(curves.png)",
        "(masks.png)",
        "| `model.width` | `96` |",
        "| `jax` | `0.10.2` |",
        "ab" * 32,
    ):
        assert expected in page
    assert "nan" not in page.lower()


def test_parts_that_are_missing_are_left_out(tmp_path):
    report.write_report(tmp_path, {"probes": {"count": {"ijepa": 1.0, "random_init": 2.0}}})
    page = (tmp_path / "report.md").read_text()
    assert "| count | 1.0 | 2.0 | – |" in page
    assert "Settings" not in page and "None" not in page and "mean" not in page


def test_terminal_table_has_the_same_rows():
    out = io.StringIO()
    Console(file=out, width=100).print(report.probe_table(example()))
    for cell in ("count", "40.3", "shape", "50.0", "mean", "45.1"):
        assert cell in out.getvalue()
    assert report.probe_rows(example())[0] == ["count", "40.3", "30.0", "35.0"]
