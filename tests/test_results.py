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
    assert changed == {"README.md", "small_data.md", "quickstart.py"}
    kept["quickstart"]["log"][-1] = "9876.0 s in all"
    written = {path.name: text for path, text in results.pages(kept).items() if path.read_text() != text}
    assert {*written} == {"README.md", "visualize.md", "small_data.md", "quickstart.py"}
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


def a_run(workdir, seed: int, **changes) -> None:
    """The report of a run, and its metrics."""
    (workdir / "report").mkdir(parents=True)
    probes = {"shape": {"trained": 3.0 + seed, "random_init": 2.0, "pixels": 1.0}}
    knn = {"shape": {**probes["shape"], "trained": 2.5}}
    config = {"seed": seed, "optim": {"batch_size": 70, **changes}}
    report = {
        "probes": probes,
        "knn": knn,
        "config": config,
        "seconds": 5.0,
        "images_per_s": 7.0,
        "steps": 60,
        "name": "I-JEPA",
    }
    (workdir / "report" / "report.json").write_text(json.dumps({**report, "command": "python launch.py"}))
    baselines = {"baseline/random_init/knn/label": 20.0, "baseline/pixels/knn/label": 30.0}
    lines = [{"step": 0, **baselines}, *({"step": step, "probe/knn/label": 40.0 + step} for step in (0, 30, 60))]
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_a_run_is_read_from_its_reports_and_its_log(tmp_path):
    for seed in (0, 1):
        a_run(tmp_path / str(seed), seed)
    progress = [f"step {i}/8 loss 0.1 7 images/s 1 s left" for i in range(1, 9)]
    long = "probes of raw pixels: " + ", ".join(f"linear/task{i} 1.0" for i in range(20))
    (tmp_path / "log").write_text("\n".join(["scenes train: 8 images", *progress, long, "5.0 s in all"]))
    found = results.of_runs([tmp_path / "0", tmp_path / "1"], tmp_path / "log", "two CPU cores")
    assert [seed["linear"]["trained"] for seed in found["seeds"]] == [3.0, 4.0]
    assert found["seeds"][1]["knn"] == {"trained": 2.5, "random_init": 2.0, "pixels": 1.0}
    assert found["seconds"] == 5.0 and len(found["commit"]) >= 7
    assert [line[:8] for line in found["log"][1:5]] == ["step 2/8", "step 4/8", "step 6/8", "step 8/8"]
    assert found["log"][5].endswith(", ...") and len(found["log"][5]) < 160 and len(found["log"]) == 7


def test_runs_that_differ_in_more_or_less_than_their_seed_are_refused(tmp_path):
    a_run(tmp_path / "0", 0)
    a_run(tmp_path / "other", 1, peak_lr=1e-3)
    for others in (["0"], ["other"]):
        with pytest.raises(ValueError, match="must be runs that differ in their seed, and in nothing else"):
            results.of_runs([tmp_path / "0", *(tmp_path / other for other in others)], None, "two CPU cores")


def test_learning_is_drawn_over_minutes(tmp_path, monkeypatch):
    a_run(tmp_path / "0", 0)
    drawn = []
    monkeypatch.setattr(results.curves, "draw_probes", lambda path, lines, name, along: drawn.append((lines, along)))
    results.draw_learning(tmp_path / "0", tmp_path / "a.png")
    [(lines, along)] = drawn  # 60 steps of 70 images at 7 images a second
    assert [line["step"] for line in lines] == [0, 0, 5, 10] and along == "minutes of training"


def test_a_page_without_its_place_is_named():
    with pytest.raises(ValueError, match="0 places look like"):
        results._replaced("a page", "no such line", "a line")
