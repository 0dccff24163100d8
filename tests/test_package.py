"""What importing costs, and that the pieces compose by hand."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import ijepa_jax

HEAVY = ("grain", "tensorflow_datasets", "orbax", "ml_collections", "absl", "matplotlib", "rich", "tensorboardX", "PIL")


def test_the_core_imports_neither_data_nor_config_nor_checkpoint_libraries():
    # flax itself imports some of these where they are installed, so blocking them is the test
    script = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {tuple(name for name in HEAVY if name not in ("absl", "orbax", "rich"))}:
            raise ImportError("blocked " + name)
sys.meta_path.insert(0, Block())
import ijepa_jax
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    package = Path(ijepa_jax.__file__).parent
    core = [package / place for place in CORE] + [*package.glob("model/*.py"), *package.glob("methods/*.py")]
    sources = "\n".join(path.read_text() for path in core if path.name != "config.py")  # which makes ConfigDicts
    for name in HEAVY:
        assert f"import {name}" not in sources and f"from {name}" not in sources


CORE = ("__init__.py", "train/step.py", "devices/sharding.py", "data/counter.py", "measure/benchmark.py")


def test_ten_lines_make_a_step():
    sampler = ijepa_jax.masks.MaskSampler(grid=(6, 6), context_patches=8)
    encoder = ijepa_jax.ViT(patch=4, width=16, depth=1, heads=2)
    method = ijepa_jax.methods.IJepa(encoder, ijepa_jax.Predictor(width=8, depth=1, heads=2), sampler, image_size=(24, 24))
    optimizer = ijepa_jax.optim.make_optimizer(
        total_steps=10, warmup_steps=1, start_lr=0, peak_lr=1e-3, final_lr=0, weight_decay=0.04, final_weight_decay=0.4,
        momentum=0.99, final_momentum=1.0,
    )  # fmt: skip
    state = ijepa_jax.init(method, optimizer, seed=0)
    step = jax.jit(partial(ijepa_jax.train_step, method=method, optimizer=optimizer, seed=0), donate_argnums=0)
    state, metrics = step(state, {"image": np.zeros((2, 24, 24, 3), np.uint8), **sampler(np.arange(2))})
    assert int(state.step) == 1 and np.isfinite(metrics["loss"])


_WHEELS = (  # of a run, beside what JAX's own packages, OpenCV and matplotlib bring
    "array_record", "attrs", "dm_tree", "docstring_parser", "googleapis_common_protos", "grain", "immutabledict",
    "importlib_resources", "ml_collections", "portpicker", "promise", "simple_parsing", "simplejpeg", "tensorboardX",
    "tensorflow_datasets", "tensorflow_metadata", "termcolor", "toml",
)  # fmt: skip


@pytest.mark.slow
def test_a_whole_run_needs_a_few_wheels_beside_what_an_image_for_jax_has(tmp_path):
    """On a machine without internet these have to be carried there, so that none may be added unnoticed."""
    root, python = Path(__file__).parents[1], tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    for packages in (
        ("jax", "flax", "optax", "einops", "numpy", "matplotlib", "opencv-python-headless", "protobuf", "cloudpickle"),
        ("--no-deps", *_WHEELS),
    ):
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    command = [python, root / "launch.py", "pretrain", "--config", root / "configs/tiny.py", "--workdir", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/report/report.json").read_text())["steps"] == 40
