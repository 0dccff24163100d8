"""README and docs: every command is right and, unless it needs hardware or data that are not here, run; links lead on.

What docs/architecture.md says of rooms and files is what there is.
"""

import ast
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import launch

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.py")) if path.name != "__init__.py"]
STANDS_FOR = {  # what pages write where a reader has to choose
    "PROTOCOL": "knn", "CONFIGURATION": "in1k_vith14", "SLICE": "v5e:4x4", "MESH": "data=16", "--workers W": "--workers 2",
    "$i": "1",
}  # fmt: skip


def commands(text: str) -> list[str]:
    """What a page tells to type, `python launch.py ...` and `python tests/...`, in blocks and within lines."""
    text = text.replace("\\\n", " ")
    found = re.findall(r"(?:^|\s|`|/)python ((?:launch\.py|tests/\w+\.py)[^`\n]*)", text)
    return [re.split(r"\s+#\s|\"|'$|[,;:.]?$", line)[0].strip() for line in found]


def launches(pages: list[Path]) -> list[str]:
    lines = [line for page in pages for line in commands(page.read_text())]
    return list(dict.fromkeys(line.removeprefix("launch.py").strip() for line in lines if line.startswith("launch.py")))


def chosen(line: str) -> str:
    for name, value in STANDS_FOR.items():
        line = line.replace(name, value)
    return line


# How the commands of the pages are run here: with what is added to make them small. `None`: not run, with the reason.
SMALL = (
    "--config.model.depth=1 --config.model.width=32 --config.model.heads=2 --config.predictor.width=16 "
    "--config.optim.epochs=0 --config.optim.steps=4 --config.optim.warmup=1 --config.optim.batch_size=8 "
    "--config.data.size=128 --config.data.test_size=64 --config.checkpoint.every=4 "
    "--config.probe.train_images=64 --config.probe.test_images=32 --config.probe.every=0 "
)
TINY_IMAGES = (
    "--config.data.image_size=(32,32) --config.model.patch=4 --config.masks.context_patches=16 --config.model.dtype=float32 "
)
IMAGENET = "needs ImageNet and a cluster"
RUN = {
    "": SMALL,
    "pretrain --config configs/tiny.py --workdir runs/tiny": "",
    "pretrain --config configs/tiny.py --mesh data=4,fsdp=2 --workdir runs/mesh": SMALL,  # on eight simulated devices
    "pretrain --config configs/folder.py --config.data.name=folder:PATH --workdir runs/mine": SMALL + TINY_IMAGES,
    (
        "pretrain --config configs/folder_small.py --config.data.name=folder:PATH --config.data.image_size=96,96 "
        "--workdir runs/small"
    ): SMALL,
    "visualize --checkpoint runs/small": "--bank 16 --images 2",
    "decode --checkpoint runs/quickstart --workdir runs/decode": (
        "--config.decoder.width=16 --config.decoder.depth=1 --config.decoder.heads=1 --config.decoder.sample_steps=2 "
        "--config.optim.steps=2 --config.optim.warmup=1 --config.optim.batch_size=8"
    ),
    "evaluate --config configs/evaluate/knn.py --checkpoint runs/quickstart": (
        "--config.data.train_images=64 --config.data.test_images=32 --config.data.size=128 --config.data.test_size=64"
    ),
    "features --checkpoint runs/quickstart --out features.npz": "--data folder:PATH",
    "features --checkpoint runs/quickstart --data folder:PATH --out features.npz": "",
    "visualize --checkpoint runs/quickstart": "--bank 64 --images 2 --data folder:PATH",
    "export --checkpoint runs/quickstart --format huggingface --out DIR": "",
    "import --from WEIGHTS --out runs/theirs": "",
    "visualize --checkpoint runs/theirs --data folder:PATH --out pictures": "--images 2",
    "prepare --from folder:PATH --out packed/mine": "",
    "pretrain --config configs/folder.py --config.data.name=tfds:packed/mine --workdir runs/mine": (
        SMALL + TINY_IMAGES + "--workdir runs/packed"
    ),
    "plan --config configs/in1k_vith14.py --topology cpu:8 --mesh data=2,fsdp=4": (
        SMALL.replace("batch_size=8", "batch_size=16") + TINY_IMAGES
    ),
}
NOT_RUN = {  # patterns of commands that are only checked, and why
    r"configs/(in1k|in22k)": IMAGENET,
    r"configs/(mae_scenes|lejepa_fashion)": "takes minutes; tests/test_configs.py takes a step of it",
    r"method=lejepa": "tests/test_lejepa.py trains by it",
    r"method=salt": "tests/test_salt.py runs it, and the run of pixels before",
    r"_in1k\.py": "needs ImageNet",
    r"configs/fashion_mnist|runs/fashion_mnist": "takes half an hour; tests train on its first images",
    r"folder_small\.py .*folder:PATH --workdir runs/small$|runs/seed_\d": "as another of its configuration that is run",
    r"--suite paper": "tests/test_paper.py runs the rehearsal of docs/reproduce.md",
    r"folder:tiles": "needs photographs; tests/test_photo_tiles.py makes tiles, and another of its configuration is run",
    r"configs/cifar10": "needs the reader's own file; another test trains by it",
    r"folder:imagenet": "needs ImageNet",
    r"benchmark": "times a large model on an accelerator; another test runs the command with a small one",
    r"\.pth\.tar": "needs the authors' file; another test imports one of its structure",
    r"--topology (v5e|v5p|v6e|SLICE)": "needs libtpu; another test, where that is, compiles for it",
    r"--topology h100": "needs jax's CUDA plugin; another test, where that is, compiles for it",
    r"^(pretrain|prepare|evaluate|plan|benchmark|visualize)?$": "a command's name, not a command line",
    r"--out exported": "as another that is run",
    r"quickstart\.py --config\.optim\.steps=1600": "takes minutes; a variant of the quickstart, which is run",
    r"--workers W": "the speed of one that is run",
    r"(clips|signals)": "needs the reader's own arrays; tests/test_modalities.py trains on such",
    r"(variance|pixels|tokens)": "tests/test_variants.py runs them, with the files of the page",
}


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    """A folder as after cloning, with the files that pages tell to write."""
    place = tmp_path_factory.mktemp("cloned")
    for name in ("launch.py", "configs", "tests", "runs"):
        (place / name).symlink_to(ROOT / name)
    for page in PAGES:
        for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page.read_text(), re.DOTALL):
            (place / name).write_text(text)
    return place


@pytest.mark.parametrize("line", launches(PAGES + CONFIGS))
def test_every_command_is_right(line, cloned, monkeypatch):
    monkeypatch.chdir(cloned)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = launch.main(["launch.py", *shlex.split(chosen(line)), "--dry-run"])
    assert code == 0, errors.getvalue()


def test_every_command_of_the_pages_is_run_or_said_why_not():
    unknown = [line for line in launches(PAGES) if line not in RUN and not any(re.search(p, line) for p in NOT_RUN)]
    assert not unknown
    assert not RUN.keys() - {*launches(PAGES)}  # nothing is listed that no page tells


@pytest.fixture
def place(tmp_path):
    """A folder as after cloning, with images in the folder PATH and weights of another library in WEIGHTS."""
    place = tmp_path
    for name in ("launch.py", "configs", "tests"):
        (place / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)
    for i in range(40):
        folder = place / "PATH" / ("cats", "dogs")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (80, 72, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    (place / "WEIGHTS").symlink_to(place / "DIR")  # what `export` writes
    return place


@pytest.mark.slow
def test_every_command_runs(place, monkeypatch):
    """In the order of the table: later ones need what earlier ones wrote. At the end the Python block of the README."""
    for line, smaller in RUN.items():
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8" if "--mesh data=4" in line else "1"}
        command = [sys.executable, "launch.py", *shlex.split(f"{line} {smaller}")]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr[-3000:]}"
    monkeypatch.chdir(place)
    for name in ("a.jpg", "b.png"):
        Image.fromarray(np.zeros((80, 90, 3), np.uint8)).save(place / name)
    [block] = python_blocks("README.md")
    exec(block, {})


def test_training_by_hand_runs_as_the_page_has_it():
    trained, derived = (block for block in python_blocks("docs/variants.md") if re.search(r"train_step|jax\.jvp", block))
    names = {}
    exec(trained, names)
    assert int(names["state"].step) == 1 and np.isfinite(jax.device_get(names["metrics"]["loss"]))
    exec(derived, names)
    assert np.isfinite(names["slope"])


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)


@pytest.mark.parametrize(
    "tool", sorted({line.split()[0] for page in PAGES for line in commands(page.read_text()) if line.startswith("tests/")})
)
def test_every_tool_that_a_page_names_is_there_and_tells_its_flags(tool):
    done = subprocess.run([sys.executable, tool, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [target for target in targets if not target.startswith("http") and not (page.parent / target).exists()]
    assert not missing


def test_headings_that_links_name_are_there():
    for page in PAGES:
        for target, heading in re.findall(r"\]\(([^)#\s]*\.md)?#([^)\s]+)\)", page.read_text()):
            text = (page.parent / target if target else page).read_text()
            there = {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)}
            assert heading in there, f"{page.name}: {target}#{heading}"


def test_the_readme_is_short_and_leads_to_every_page_and_room():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.split()) <= 1200
    assert not [page.name for page in PAGES[1:] if f"docs/{page.name}" not in readme]
    assert not [room for room in rooms() if f"`{room}`" not in readme]


def modules() -> list[Path]:
    return [path for path in sorted((ROOT / "ijepa_jax").rglob("*.py")) if path.name != "__init__.py"]


def rooms() -> dict[str, set[str]]:
    """What lies in the package's folder, by its name in the pages, and the rooms that it imports from."""
    found = {}
    for path in modules():
        name = path.relative_to(ROOT / "ijepa_jax").parts[0]
        imports = found.setdefault(name if name.endswith(".py") else f"{name}/", set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "ijepa_jax":
                imports |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ijepa_jax."):
                imports.add(node.module.split(".")[1])
        imports -= {name.removesuffix(".py")}
    return found


def test_the_architecture_page_lists_every_file_of_the_package_and_no_other():
    page = (ROOT / "docs" / "architecture.md").read_text()
    tree = re.search(r"## Files\n\n```\n(.*?)```", page, re.S)[1]
    folders, listed = [], []
    for indent, name in re.findall(r"^( *)(\S+)", tree, re.M):
        folders = folders[: len(indent) // 2] + [name]
        listed.append("".join(folders))
    assert not [name for name in listed if not (ROOT / name).exists()]
    assert sorted(name for name in listed if name.startswith("ijepa_jax/") and name.endswith(".py")) == sorted(
        str(path.relative_to(ROOT)) for path in modules()
    )
    tests = {path.name for path in (ROOT / "tests").glob("*.py") if not path.name.startswith("test_")}
    programs = tests - {"__init__.py", "conftest.py"}
    assert {name.removeprefix("tests/") for name in listed if re.fullmatch(r"tests/\w+\.py", name)} == programs


def test_the_architecture_page_tells_which_room_imports_which():
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page[page.index("| room |") : page.index("## Where do I put")]
    rows = re.findall(r"^\| `([\w/.]+)` \| .* \|(.*)\|$", table, re.M)
    told = {room: {*re.findall(r"`(\w+)`", imports)} for room, imports in rows}
    assert told == rooms()
    before: set[str] = set()
    for room, imports in told.items():  # arrows run one way
        assert imports <= before, room
        before.add(room.rstrip("/").removesuffix(".py"))
