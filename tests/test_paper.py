"""The paper's evaluations as one suite, and the sequence of docs/reproduce.md."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from ijepa_jax import build, cli
from ijepa_jax.data.source import DataError
from ijepa_jax.devices import processes
from ijepa_jax.evaluate import paper, suite
from ijepa_jax.host.console import Display
from ijepa_jax.model.flops import PEAK_TFLOPS
from ijepa_jax.pretrain import command
from ijepa_jax.settings import plain
from ijepa_jax.settings.paper import RUNS
from tests import small
from tests.test_configs import PUBLISHED, load
from tests.test_docs import ROOT, commands

IMAGES = {"in1k": 1_281_167, "in22k": 14_197_122}


def read(*arguments: str):
    return cli.read(["evaluate", "--suite", "paper", "--checkpoint", "DIR", *arguments])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    command.pretrain(small.config(optim__steps=2, optim__warmup=1.0), place)
    return place


@pytest.fixture
def evaluated(monkeypatch):
    """The settings that `suite.evaluate` is called with; in its place they are written as the result, of 50% accuracy.

    CIFAR-100 is not there, and iNaturalist18 has a second task.
    """
    called, code = [], [processes.code_digest()]
    monkeypatch.setattr(processes, "code_digest", lambda: code[0])

    def contents(run, settings):
        if settings.data.name == "tfds:cifar100":
            raise DataError("tfds:cifar100 is not there: give --config.data.name=NAME")
        return {"train": settings.data.name}

    def evaluate(settings, path, *, out, command, display):
        if settings.protocol == "attentive":
            raise MemoryError("no room for attentive")
        called.append(settings)
        baselines = {"random_init": 20.0, "pixels": 30.0} if settings.baselines else {}
        scores = {"accuracy": 50.0, "interval": [49.0, 51.0], "baselines": baselines}
        other = {"accuracy": 40.0, "interval": [39.0, 41.0], "baselines": baselines}
        tasks = {
            "tfds:clevr": {"tasks": {"count": other, "distance": scores}},
            "folder:inat": {"tasks": {"coarse": scores, "label": other}},
        }
        result = {
            **scores, "task": "class", **tasks.get(settings.data.name, {}), "warnings": ["few steps"],
            "contents": contents(None, settings),
            "settings": json.loads(json.dumps(plain.to_plain(settings))), "encoder_digest": digest(path)[0],
            "network": digest(path)[1], "code": code[0], "date": "2026-01-02",
        }  # fmt: skip
        folder = Path(out)
        folder.mkdir(exist_ok=True)
        (folder / f"{suite.file_name(settings, settings.data.name)}.json").write_text(json.dumps(result))
        return result

    monkeypatch.setattr(suite, "contents", contents)
    monkeypatch.setattr(suite, "evaluate", evaluate)
    return called, code


@functools.cache
def digest(path):
    weights, saved = paper.checkpoint.restore_encoder(path)
    backbone = saved.method().backbone()
    return paper.digests.encoder_digest(weights, backbone), str(backbone.network)


def run(given, workdir, **options):
    return paper.evaluate(given.evaluations, str(workdir), only=given.only, display=Display(quiet=True), **options)


def test_the_table_has_ours_beside_the_paper_s_and_what_has_been_evaluated_is_kept(workdir, evaluated, monkeypatch):
    arguments, (evaluated, code) = "--data=tfds:packed/mine,inat18=folder:inat", evaluated
    result = run(read(arguments), workdir, published="in1k_vith14")
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["ImageNet-1K, linear"]["difference"] == -29.3 and rows["ImageNet-1K, linear"]["paper"] == 79.3
    assert rows["Clevr/Count, linear"]["accuracy"] == 40 and rows["Clevr/Dist, linear"]["difference"] == -22.4
    assert rows["iNaturalist18, linear"]["accuracy"] == 40  # of its label, and not the mean with a coarser task
    assert rows["ImageNet-1K, kNN"]["paper"] is None and rows["ImageNet-1K, kNN"]["difference"] is None
    assert rows["CIFAR-100, linear"]["note"] == "not run: tfds:cifar100 is not there: give --data cifar100=NAME"
    assert rows["CIFAR-100, linear"]["accuracy"] is None and "no room" in rows["ImageNet-1K, attentive"]["note"]
    assert rows["ImageNet-1K, kNN"]["baselines"] == {"random_init": 20.0, "pixels": 30.0}
    assert "--data places205=NAME" in rows["Places205, linear"]["note"]
    assert rows["ImageNet-1K, 1% of labels"]["note"] == "1% of the labels, drawn by seed 0; few steps"
    assert {settings.data.name for settings in evaluated} == {"tfds:packed/mine", "folder:inat", "tfds:clevr"}
    page = (workdir / "evaluate" / "paper.md").read_text()
    assert "| ImageNet-1K, linear | 50.0 | 49.0 .. 51.0 | 79.3 | -29.3 | 20.0 | 30.0 | tfds:packed/mine | 2026-01-02 |" in page
    assert "* CIFAR-100, linear: not run" in page
    assert json.loads((workdir / "evaluate" / "paper.json").read_text()) == result

    evaluated.clear()
    again = read(arguments, "--config.data.workers=3", "--mesh", "data=1", "--config.cache=False", "--config.baselines=False")
    assert run(again, workdir, published="in1k_vith14")["rows"] == result["rows"] and not evaluated
    some = run(read(arguments, "--only=knn_in1k,clevr", "--config.knn.k=10"), workdir, published="in1k_vith14")
    assert [settings.protocol for settings in evaluated] == ["knn"]  # others' settings are not its own
    found = {row["name"]: row["accuracy"] for row in some["rows"]}
    assert found == {row["name"]: row["accuracy"] for row in result["rows"]}  # those not asked for stay in the table
    assert [row["asked"] for row in some["rows"]].count(True) == 3
    code[0] = "another version"
    assert "another version of this code" in run(read(arguments), workdir)["rows"][0]["note"]
    monkeypatch.setattr(suite, "contents", lambda run, settings: {"train": "other images"})
    evaluated.clear()
    rehearsed = run(read("--data=tfds:packed/mine", "--only=knn_in1k,clevr", "--scale=tiny"), workdir, scale="tiny")
    assert [settings.data.name for settings in evaluated] == ["tfds:packed/mine", "tfds:clevr"]
    assert "a rehearsal" in (workdir / "evaluate" / "paper-tiny.md").read_text()
    assert {row["note"] for row in rehearsed["rows"] if not row["asked"] and row["data"]} == {"not asked for"}
    assert json.loads((workdir / "evaluate" / "paper.json").read_text())["scale"] is None


def test_baselines_that_are_asked_for_later_are_made(workdir, evaluated, tmp_path):
    called, _ = evaluated
    for arguments, runs in ((["--config.baselines=False"], 1), ([], 2), (["--config.baselines=False"], 2)):
        run(read("--data=tfds:mine", "--only=knn_in1k", *arguments), workdir, out=str(tmp_path))
        assert len(called) == runs


def test_an_evaluation_that_fails_in_one_of_several_processes_ends_all(workdir, evaluated, tmp_path, monkeypatch):
    each, settings = next(one for one in read("--data=tfds:mine").evaluations if one[0].file == "attentive_in1k")
    monkeypatch.setattr(paper.jax, "process_count", lambda: 2)
    with pytest.raises(MemoryError, match="no room for attentive"):
        paper._run(paper._Part(each, settings, True), str(workdir), tmp_path, "", Display(quiet=True))


def test_what_was_asked_for_and_could_not_be_run_fails_the_command(workdir, evaluated, capsys, monkeypatch):
    monkeypatch.setattr(launch, "compute", lambda run, given: launch.done(run(given)))
    arguments = ["launch.py", "evaluate", "--suite=paper", f"--checkpoint={workdir}"]
    assert launch.main([*arguments, "--only=knn_in1k,cifar100"]) == 1
    assert "error: asked for and not evaluated: CIFAR-100, linear" in capsys.readouterr().err
    assert launch.main(arguments) == 0


def test_a_row_without_its_task_says_so(workdir, evaluated):
    rows = run(read("--data=clevr=folder:other", "--only=clevr"), workdir)["rows"]
    row = next(row for row in rows if row["name"] == "Clevr/Count, linear")
    assert row["accuracy"] is None and row["note"] == "folder:other has no task count, but class"


@pytest.mark.parametrize("name", RUNS)
def test_a_published_run_s_encoder_is_known_by_its_shape_and_data(name):
    _, config = load(name)
    assert paper.of_architecture(config) == name
    other = config.copy_and_resolve_references()
    other.method = "mae"
    assert paper.of_architecture(other) is None
    config.data.image_size = (64, 64)
    assert paper.of_architecture(config) is None


def test_huge_encoders_have_the_decay_that_the_paper_gives_them_unless_another_is_asked_for(workdir, evaluated, monkeypatch):
    monkeypatch.setitem(paper.RUNS, "in1k_vith14", ("vit_pico", 4, (32, 32)))
    config = paper.checkpoint.restore_encoder(workdir)[1].config()
    config.model.size = "vit_huge"
    monkeypatch.setattr(paper.checkpoint.Saved, "config", lambda self: config)
    for override, decay in (((), 0.4), (("--config.finetune.weight_decay=0.1",), 0.1)):
        evaluated[0].clear()
        run(read("--data=tfds:mine", *override), workdir, overrides=override)
        lowshot = [each for each in evaluated[0] if each.data.fraction < 1]
        assert [each.finetune.weight_decay for each in lowshot] == [decay]


def test_data_sets_are_named_by_keys():
    names = {each.data: config and config.data.name for each, config in read().evaluations}
    assert names["lowshot"] == "tfds:imagenet2012_subset/1pct" and names["places205"] is None
    names = {each.data: config and config.data.name for each, config in read("--data=folder:a,lowshot=folder:b").evaluations}
    assert names == {
        "imagenet": "folder:a", "lowshot": "folder:b", "cifar100": "tfds:cifar100", "places205": None,
        "inat18": "tfds:i_naturalist2018", "clevr": "tfds:clevr",
    }  # fmt: skip
    tiny = {each.file: config for each, config in read("--scale=tiny", "--config.linear.epochs=9").evaluations}
    assert tiny["linear_in1k"].linear.epochs == 9 and tiny["finetune_in1k"].finetune.epochs == 2
    for wrong, line in (("cifar=folder:b", "has cifar: there is imagenet"), ("a,b", "each once"), ("clevr=", "each once")):
        with pytest.raises(cli.UsageError, match=line):
            read(f"--data={wrong}")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--suite", "paper", "--config", "configs/evaluate/knn.py"], "--suite has configurations of its own"),
        (["--config", "configs/evaluate/knn.py", "--scale=tiny"], "--scale is of a suite"),
        (["--suite", "paper", "--config.knn.kk=1"], "unknown setting --config.knn.kk"),
        (["--suite", "paper", "--config.data.name=tfds:mine"], "data.name is each evaluation's own in a suite"),
        (["--suite", "paper", "--only=linear"], "--only names linear: there is knn_in1k, linear_in1k"),
    ],
)
def test_what_does_not_go_together_is_said(arguments, line):
    with pytest.raises(cli.UsageError, match=line):
        cli.read(["evaluate", "--checkpoint", "DIR", *arguments])


def test_the_costs_that_are_quoted_are_the_arithmetic():
    """Of docs/reproduce.md and of the configurations: model FLOPs at 40% and 60% of the peak, in whole batches."""
    page = (ROOT / "docs" / "reproduce.md").read_text()
    for name in PUBLISHED:
        module, config = load(name)
        flops = sum(build.method(build.completed(config)).flops().values())
        all_of_them = flops * (IMAGES[name.partition("_")[0]] // 2048 * 2048) * config.optim.epochs / 3600e12
        hours = {chip: [all_of_them / PEAK_TFLOPS[chip] / mfu for mfu in (0.4, 0.6)] for chip in PEAK_TFLOPS}
        cells = " | ".join("{:,.0f}, {:,.0f}".format(*hours[chip]) for chip in ("h100", "v5e", "v5p", "v6e"))
        assert f"| `{name}` | {flops / 1e9:,.0f} | {cells} |" in page
        assert "{:.0f} / {:.0f} H200-hours".format(*hours["h200"]) in module.__doc__
        assert f"{hours['v5e'][0] / 256:.1f} hours" in module.__doc__


@pytest.mark.slow
def test_the_sequence_runs_as_the_page_has_it(tmp_path):
    """The rehearsal of docs/reproduce.md in its order, with fewer images and steps; a second time all is kept."""
    text = (ROOT / "docs" / "reproduce.md").read_text().partition("## A rehearsal")[2]
    for folder in ("tests", "configs", "launch.py", "ijepa_jax"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    smaller = {
        "tests/standin.py": ["--images=400"],
        "launch.py pretrain": ["--config.optim.epochs=2", "--config.probe.every=0"],
        "launch.py evaluate": ["--config.data.test_images=40", "--config.baselines=False"],
    }
    lines = commands(text)
    assert [line.split()[:2] for line in lines[1:]] == [
        ["launch.py", name] for name in ("prepare", "plan", "pretrain", "evaluate")
    ]
    for line in [*lines, lines[-1]]:
        words = line.split()
        more = smaller.get(words[0], smaller.get(" ".join(words[:2]), []))
        done = subprocess.run(
            [sys.executable, *words, *more], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{line}: {done.stderr[-3000:]}"
    assert len(re.findall("kept from before", done.stdout)) == 6
    rows = {row["name"]: row for row in json.loads((tmp_path / "runs/rehearsal/evaluate/paper-tiny.json").read_text())["rows"]}
    run_ones = [name for name, row in rows.items() if row["accuracy"] is not None]
    names = [f"ImageNet-1K, {name}" for name in ("kNN", "linear", "1% of labels", "attentive", "fine-tuning")]
    assert run_ones == [*names[:4], "CIFAR-100, linear", names[4]]  # the folders stand in for the data of a transfer
    assert "says little" in rows["ImageNet-1K, linear"]["note"]
