"""Pages that quote results say what docs/results.json says, which runs of the launcher have written."""

import json

import pytest

from tests import results


def test_every_page_quotes_the_same_results():
    for path, text in results.pages(json.loads(results.FILE.read_text())).items():
        assert path.read_text() == text, f"{path.name} is not of docs/results.json: run python -m tests.results"


def test_a_changed_result_changes_every_page_that_quotes_it():
    kept = json.loads(results.FILE.read_text())
    kept["quickstart"]["seeds"][0]["knn"]["trained"] += 7.0
    kept["quickstart"]["seconds"] = 9876.0
    changed = {path.name for path, text in results.pages(kept).items() if path.read_text() != text}
    assert changed == {"README.md", "quickstart.py"}
    kept["quickstart"]["log"][-1] = "9876.0 s in all"
    written = {path.name: text for path, text in results.pages(kept).items() if path.read_text() != text}
    assert {*written} == {"README.md", "visualize.md", "quickstart.py"}
    assert all("\n9876.0 s in all\n```" in written[name] for name in ("README.md", "visualize.md"))


def test_seeds_are_shown_as_their_mean_and_spread():
    seeds = [{"linear": {"trained": value, "random_init": 3.0, "pixels": 2.0}} for value in (40.0, 42.0, 47.0)]
    shown = lambda seeds, column: results._over_seeds({"seeds": seeds}, "linear", column)  # noqa: E731
    assert (
        shown(seeds, "trained") == "43.0 ± 3.6"
        and shown(seeds, "random_init") == "3.0 ± 0.0"
        and shown(seeds, "pixels") == "2.0"
    )
    assert shown(seeds[:1], "trained") == "40.0"


def test_the_readme_shows_a_log_in_short():
    progress = [f"step {i}/8 loss 0.1" for i in range(1, 9)]
    log = ["scenes train: 8 images", "starting from step 0 of 8", *progress, "step 8 probes: 1"]
    table = ["probes", "┏━┓", "│1│", "└─┘", "5.0 s in all"]
    assert results._in_short(log + table) == ["starting from step 0 of 8", "step 8/8 loss 0.1", *table[1:]]


def test_a_run_is_read_from_its_report_and_its_log(tmp_path):
    (tmp_path / "report").mkdir()
    probes = {"shape": {"trained": 3.0, "random_init": 2.0, "pixels": 1.0}}
    report = {
        "probes": probes,
        "knn": {"shape": {**probes["shape"], "trained": 2.5}},
        "seconds": 5.0,
        "images_per_s": 7.0,
        "command": "python launch.py",
        "steps": 8,
    }
    (tmp_path / "report" / "report.json").write_text(json.dumps(report))
    progress = [f"step {i}/8 loss 0.1 7 images/s 1 s left" for i in range(1, 9)]
    long = "probes of raw pixels: " + ", ".join(f"linear/task{i} 1.0" for i in range(20))
    (tmp_path / "log").write_text("\n".join(["scenes train: 8 images", *progress, long, "5.0 s in all"]))
    found = results.of_runs([tmp_path, tmp_path], tmp_path / "log", "two CPU cores")
    assert found["seeds"] == [{"linear": probes["shape"], "knn": {**probes["shape"], "trained": 2.5}}] * 2
    assert found["probes"] == probes and found["seconds"] == 5.0 and len(found["commit"]) >= 7
    assert [line[:8] for line in found["log"][1:5]] == ["step 2/8", "step 4/8", "step 6/8", "step 8/8"]
    assert found["log"][5].endswith(", ...") and len(found["log"][5]) < 160 and len(found["log"]) == 7


def test_a_page_without_its_place_is_named():
    with pytest.raises(ValueError, match="0 places look like"):
        results._replaced("a page", "no such line", "a line")
