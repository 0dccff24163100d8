"""Reports: the JSON as given, the same story as Markdown and HTML, and warnings where a run went wrong."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from ijepa_jax.interop import card
from ijepa_jax.visualize import report
from tests.test_page import Reader


def example():
    strengths = {"trained": 1e-5, "random_init": 0.1, "pixels": 10.0}
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
            "count": {"trained": 40.26, "random_init": 30.0, "pixels": 35.0, "interval": [38.04, 42.5], "l2": strengths},
            "shape": {"trained": np.float64(50.0), "random_init": 40.0, "pixels": 45.5},
        },
        "knn": {"count": {"trained": 38.0, "random_init": float("nan"), "pixels": 33.0}},
        "rankme": {"trained": 41.5, "random_init": 12.25},
        "feature_std": {"trained": 0.51, "random_init": 0.22},
        "pictures": ["curves.png", "masks.png"],
    }


def written(folder, given: dict) -> str:
    """The page in Markdown of a report whose pictures are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in given.get("pictures", []):
        (folder / name).write_bytes(b"a picture")
    report.write_report(folder, given)
    return (folder / "report.md").read_text()


def test_json_comes_back_as_it_went(tmp_path):
    written(tmp_path / "new" / "report", example())
    text = (tmp_path / "new" / "report" / "report.json").read_text()
    expected = example()
    expected["config"]["masks"]["scale"] = [0.1, 0.2]
    expected["knn"]["count"]["random_init"] = None
    assert json.loads(text) == expected
    assert "NaN" not in text and text.startswith('{\n  "')


def test_page_has_every_probe_and_picture(tmp_path):
    page = written(tmp_path, example())
    for expected in (
        "python launch.py",
        "| count | 40.3 | 38.0 .. 42.5 | 30.0 | 35.0 |",
        "Strengths of regularisation that were chosen: count 1e-05 / 0.1 / 10.",
        "| shape | 50.0 | – | 40.0 | 45.5 |",
        "| mean | 45.1 | – | 35.0 | 40.2 |",
        "| count | 38.0 | – | – | 33.0 |",
        "| RankMe (effective rank) | 41.500 | 12.250 |",
        "(curves.png)",
        "(masks.png)",
        "| `model.width` | `96` |",
        "| `model.width` | `96` | `None` |",
        "| `jax` | `0.10.2` |",
        "ab" * 32,
    ):
        assert expected in page
    assert "nan" not in page.lower()


def test_parts_that_are_missing_are_left_out(tmp_path):
    page = written(tmp_path, {"probes": {"count": {"trained": 1.0, "random_init": 2.0}}})
    assert "| count | 1.0 | – | 2.0 | – |" in page
    assert "Settings" not in page and "None" not in page and "mean" not in page


def test_the_story_comes_first_and_the_page_in_html_is_the_same(tmp_path):
    given = {**example(), "best_step": 2000, "input_wait_share": 0.021, "probe_share": 0.035}
    page = written(tmp_path, {**given, "last_metrics": {"target_std": 0.46, "loss": 0.09}})
    first = page.split("\n\n")[1]
    for expected in (
        "**45.1 %**",
        "means of 2 tasks",
        "**38.0 %** correctly (33.0 % by raw pixels)",
        "35.0 % by random weights",
        "40.2 % by raw pixels",
        "3,000 steps",
        "334 images",
    ):
        assert expected in first
    assert "Warning" not in page
    for expected in ("step 2,000", "| 2.1 % |", "| 3.5 % |", "target_std: spread of target tokens | 0.4600"):
        assert expected in page
    html = Reader((tmp_path / "report.html").read_text())
    assert {"45.1", "step 2,000", "model.width", "0.10.2"} <= set(html.text["td"]) and len(html.text["details"]) == 2
    assert [attributes["src"][:11] for tag, attributes in html.elements if tag == "img"] == ["data:image/"] * 2


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (
            {"probes": {"a": {"trained": 30.0, "random_init": 30.0, "pixels": 1.0}}},
            "no better than an encoder with random weights",
        ),
        (
            {"probes": {"linear": {"trained": 3.0, "random_init": 2.0, "pixels": 4.0}, "knn": {}}},
            "By linear probes the pretrained encoder is no better than raw pixels: 3.0 %",
        ),
        (
            {"knn": {"count": {"trained": 31.0, "random_init": 30.0, "pixels": 33.0}}},
            "By kNN the pretrained encoder is no better than raw pixels: 31.0 % against 33.0 %",
        ),
        (
            {"probes": {"a_": {"trained": 3.0, "random_init": 2.0}, "b": {"trained": 1.0, "random_init": 1.5}}},
            "no better than the random encoder at b (1.0 % against 1.5 %)",
        ),
        ({"warnings": ["The method itself warns."]}, "The method itself warns."),
        ({"rankme": {"trained": 1.2, "random_init": 1.3}}, "RankMe, the effective rank of the features, is 1.20"),
        ({"rankme": {"trained": 5.0, "random_init": 12.0}}, "RankMe is 5, far below the random encoder's 12"),
        ({"feature_std": {"trained": 0.01, "random_init": 0.2}}, "The spread of features is 0.01, far below"),
        ({"last_metrics": {"target_std": 0.001, "prediction_std": 0.3}}, "At the last step `target_std` is 0.001"),
    ],
)
def test_what_looks_wrong_is_said(tmp_path, change, warning):
    lines = [line for line in written(tmp_path, {**example(), **change}).splitlines() if "Warning" in line]
    assert len(lines) == 1 and lines[0].startswith("> **Warning:** ") and warning in lines[0]


def test_text_of_data_and_commands_stays_text(tmp_path):
    nasty = "<script>alert(1)</script> a|b `c` </details>"
    given = {**example(), "command": f"{nasty}\n```\n<b>", "data": nasty, "config": {"data": {"name": nasty}}}
    given["probes"] = {nasty: {"trained": 40.0, "random_init": 30.0}, "b": {"trained": 20.0, "random_init": 10.0}}
    given["environment"] = {nasty: nasty}
    written(tmp_path, given)
    html = Reader((tmp_path / "report.html").read_text())
    assert not {"script", "b", "a"} & {tag for tag, _ in html.elements}
    assert html.text["td"].count(nasty) == 6 and nasty in html.text["pre"][0] and nasty in html.text["title"][0]


def test_a_missing_picture_leaves_no_report_that_says_finished(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"names the picture 'curves\.png'"):
        report.write_report(tmp_path, example())
    assert not (tmp_path / "report.json").exists()


def test_terminal_table_has_the_same_rows():
    out = io.StringIO()
    Console(file=out, width=100).print(report.probe_table(example()))
    for cell in ("count", "40.3", "shape", "50.0", "mean", "45.1", "38.0 .. 42.5"):
        assert cell in out.getvalue()
    assert report.probe_rows(example())[0] == ["count", "40.3", "38.0 .. 42.5", "30.0", "35.0"]


BROKEN = {
    "cut short": lambda text: text[: len(text) // 2],
    "binary": lambda text: b"\x00\xff" + text,
    "empty": lambda text: b"",
    "a list": lambda text: b"[]",
    "deep": lambda text: b"[" * 100_000,
    **{
        f"without {key}": lambda text, key=key: json.dumps({k: v for k, v in json.loads(text).items() if k != key}).encode()
        for key in ("probes", "steps", "params_digest")
    },
    **{
        f"probes {odd}": lambda text, odd=odd: json.dumps({**json.loads(text), "probes": odd}).encode()
        for odd in ("none", ["count"], {"count": 1.0}, {"count": {"trained": "high"}}, {"linear": {"trained": [1]}, "knn": {}})
    },
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_report_is_said_and_left_out_of_model_cards(tmp_path, name):
    written(tmp_path / "report", example())
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "knn.md").write_text("a table")
    (tmp_path / "evaluate" / "torn.md").write_bytes(b"\xff\x00")
    (tmp_path / "evaluate" / "folder.md").mkdir()
    lines = []
    whole = report.read_report(tmp_path, lines.append)
    assert whole["knn"]["count"]["random_init"] is None and not lines
    shown = "\n".join(card._results(str(tmp_path)))
    assert (
        "| shape | 50.0 | – | 40.0 | 45.5 |" in shown and "a table" in shown and "torn" not in shown and "folder" not in shown
    )
    file = tmp_path / "report" / "report.json"
    file.write_bytes(BROKEN[name](file.read_bytes()))
    assert report.read_report(tmp_path, lines.append) is None
    assert lines == [f"{file} is broken: it is no report of a finished run"]
    assert [line for line in card._results(str(tmp_path)) if line] == ["## Evaluation of the encoder: knn", "a table"]


def test_an_older_report_is_read_with_the_names_of_today(tmp_path):
    """Its column of the trained encoder was called ijepa, and it did not tell its method's name."""
    written(tmp_path / "report", example())
    file = tmp_path / "report" / "report.json"
    file.write_text(file.read_text().replace('"trained"', '"ijepa"'))
    found = report.read_report(tmp_path)
    assert found["probes"]["count"]["trained"] == 40.26 and found["rankme"]["trained"] == 41.5
    assert found["probes"]["count"]["l2"]["trained"] == 1e-5 and report.name_of(found) == "I-JEPA"
    assert "| probe | I-JEPA | 95% interval |" in report.markdown(found)


def test_a_report_names_its_method_and_shows_what_that_alone_has(tmp_path):
    section = {"title": "Blocks drawn anew", "text": "In grey levels.", "columns": ["drawn from", "error"]}
    added = {"name": "Mine", "captions": {"masks.png": ["My masks", "As I see *them*."]}}
    page = written(tmp_path, {**example(), **added, "sections": [{**section, "rows": {"blocks": 3.14, "c": None}}]})
    assert page.startswith("# Mine pretraining report") and "| probe | Mine | 95% interval |" in page
    assert "## My masks\n\nAs I see *them*.\n\n![My masks](masks.png)" in page
    assert "## Blocks drawn anew\n\nIn grey levels.\n\n| drawn from | error |" in page and "| blocks | 3.1 |" in page


def test_no_report_is_nothing_to_speak_of(tmp_path):
    assert report.read_report(tmp_path, pytest.fail) is None


def test_a_value_that_no_number_stands_for_is_a_dash_in_model_cards(tmp_path):
    written(tmp_path / "report", {**example(), "probes": {"count": {"trained": float("nan"), "random_init": 2.0}}})
    assert "| count | – | – | 2.0 | – |" in card._results(str(tmp_path))


def test_the_words_are_those_of_what_was_trained_on(tmp_path):
    given = {**example(), "last_metrics": {"target_image_std": 0.001}, "bad_images": 2}
    told = written(tmp_path / "a", given)
    assert written(tmp_path / "b", {**given, "modality": "image"}) == told and "raw pixels at 32x32" in told
    video, signal = (written(tmp_path / kind, {**given, "modality": kind}) for kind in ("video", "signal"))
    assert "videos per second" in video and "What the context encoder sees of a video" in video and "film strips" in video
    for line in ("Of held-out signals", "unreadable signals", "by raw values", "| random init | values |", "shown as lines"):
        assert line in signal
    assert "`target_image_std` is 0.001: whole signals hardly differ" in signal
    for text in (video, signal.replace("target_image_std", "")):
        assert "an image" not in text and "images" not in text and "32x32" not in text
    assert "pixels" not in signal
    table = Console(width=120, file=io.StringIO())
    table.print(report.probe_table({**given, "modality": "signal"}))
    assert "values" in table.file.getvalue() and "pixels" not in table.file.getvalue()
