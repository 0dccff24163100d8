"""The notebooks: kept with outputs that show nothing of the machine they were made on, and running from start to end."""

import json
import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
A_MACHINES_PATH = re.compile(r"(?<![\w.])/(tmp|home|root|work|mnt|var|opt|usr|Users)/\w")
LARGEST = 600_000  # bytes of a notebook, pictures included

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NAMES == ["01_quickstart", "02_use_an_encoder", "03_write_a_variant"]


@each_notebook
def test_outputs_are_kept_and_of_one_run(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    pictures = [kind for output in outputs for kind in output.get("data", ()) if kind.startswith("image/")]
    assert len(pictures) >= 2
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert path.stat().st_size < LARGEST


@each_notebook
def test_nothing_tells_of_the_machine(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["metadata"].keys() <= {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert "execution" not in cell["metadata"]  # when each cell was run
        for output in cell.get("outputs", ()):  # all but the pictures
            output["data"] = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    assert not A_MACHINES_PATH.search(json.dumps(notebook))


# Each notebook's training is cut to a few steps: what is written there takes minutes, and its outputs are kept with it.
SHORTER = (
    (r"(optim\.steps, config\.optim\.warmup) = .*", r"\1 = 6, 2.0"),
    (r"STEPS, BATCH = .*", "STEPS, BATCH = 20, 32"),
    (r"warmup_steps=\d+", "warmup_steps=2"),
    (r"probe\.every = config\.checkpoint\.every = .*", "probe.every = config.checkpoint.every = 3"),
    (r"probe\.every, config\.probe\.train_images, config\.probe\.test_images = .*",
     "probe.every, config.probe.train_images, config.probe.test_images = 3, 500, 500"),
    (r"data\.size, config\.data\.test_size = .*", "data.size, config.data.test_size = 500, 500"),
    (r"probe\.train_images, config\.probe\.test_images = 2000, 1000",
     "probe.train_images, config.probe.test_images = 500, 500"),
)  # fmt: skip


@pytest.mark.slow
@each_notebook
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for pattern, smaller in SHORTER:
            cell.source = re.sub(pattern, smaller, cell.source)
    assert sum("= 6, 2.0" in cell.source or "= 20, 32" in cell.source for cell in notebook.cells) >= 1
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not list(tmp_path.iterdir())  # what they write goes to temporary folders of their own
