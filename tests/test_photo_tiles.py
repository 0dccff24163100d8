"""Tiles of photographs: which pixels they are, and that none of the test split is seen in training."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ijepa_jax.data.open import open_source
from tests import photo_tiles

ROOT = Path(__file__).resolve().parent.parent


def gradient(width: int, height: int) -> np.ndarray:
    """An image whose red tells the column, green the row."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 255 // width, rows * 255 // height, 0 * rows], -1).astype(np.uint8)


@pytest.mark.parametrize("width, height", [(128, 64), (64, 128)])
def test_tiles_are_the_photograph_cut_along_its_long_side(width, height):
    cut = photo_tiles.tiles(Image.fromarray(gradient(width, height)), side=8, rows=8)
    assert cut.shape == (8, 16, 8, 8, 3)
    first, last = cut[0, 0].astype(int), cut[0, 15].astype(int)
    along = 0 if width > height else 1  # the channel that tells the long side
    assert last[..., along].min() > 230 and first[..., along].max() < 20
    tall = cut[3, 5].astype(int)
    assert (np.diff(tall[:, 0, 1]) > 0).all() and (np.diff(tall[0, :, 0]) > 0).all()  # neither turned nor mirrored


def test_the_splits_do_not_touch():
    for columns in (3, 12, 16, 21):
        parts = photo_tiles.split(columns)
        assert parts["train"] and parts["test"] and max(parts["train"]) + 1 < min(parts["test"])


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "tests/photo_tiles.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


def test_the_program_writes_a_folder_that_trains(tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for name, size in (("lake", (160, 120)), ("tree", (96, 192))):
        Image.fromarray(gradient(*size)).save(photographs / f"{name}.png")
    done = run(photographs, "--out", tmp_path / "tiles", "--side", 16, "--rows", 6)
    assert done.returncode == 0 and done.stdout.startswith("90 training and 18 test tiles of 2 photographs"), done
    train, test = (open_source(f"folder:{tmp_path / 'tiles'}", split, size=1, seed=0) for split in ("train", "test"))
    assert (len(train), len(test)) == (90, 18) and list(train.class_names["label"]) == list(test.class_names["label"]) == [
        "lake",
        "tree",
    ]
    assert np.bincount(test.labels["label"]).tolist() == [6, 12]
    again = run(photographs, "--out", tmp_path / "tiles")
    assert again.returncode == 2 and "is not empty" in again.stderr
    assert "two or more photographs" in run(tmp_path, "--out", tmp_path / "none").stderr
