"""Tiles of photographs, labelled by the photograph they were cut from: a small data set of natural images that anyone can make.

    apt-get download lomiri-wallpapers-16.04 mate-backgrounds      # freely licensed photographs, packed by Debian
    for package in *.deb; do dpkg-deb -x $package wallpapers; done
    python tests/photo_tiles.py wallpapers/usr/share/backgrounds wallpapers/usr/share/backgrounds/mate/nature --out tiles

writes OUT/train/PHOTOGRAPH/ROW_COLUMN.png and OUT/test/..., which `--config.data.name=folder:OUT` reads. The last sixth of the
columns is the test split, and the column before it is left out: no test tile touches a training tile.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def tiles(photograph: Image.Image, side: int, rows: int) -> np.ndarray:
    """A photograph, its short side resized to `rows` tiles, as uint8 [rows, columns, side, side, 3] with the long side along
    the columns: an upright one is cut in the same places, and its tiles stay upright."""
    width, height = photograph.size
    along = max(width, height) * rows // min(width, height)
    size = (along * side, rows * side) if width >= height else (rows * side, along * side)
    pixels = np.asarray(photograph.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    cut = pixels.reshape(size[1] // side, side, size[0] // side, side, 3).swapaxes(1, 2)
    return cut if width >= height else cut.swapaxes(0, 1)


def split(columns: int) -> dict[str, range]:
    """Columns of the training and of the test split."""
    test = max(1, columns // 6)
    return {"train": range(columns - test - 1), "test": range(columns - test, columns)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", help="of photographs; their sub-folders are not read")
    parser.add_argument("--out", type=Path, required=True, help="an empty or new folder")
    parser.add_argument("--side", type=int, default=64, help="of a tile, in pixels")
    parser.add_argument("--rows", type=int, default=12, help="tiles along a photograph's short side")
    given = parser.parse_args()
    photographs = sorted(path for folder in given.folders for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if len(photographs) < 2 or len({path.stem for path in photographs}) < len(photographs):
        parser.error(
            f"two or more photographs of different names are needed: {len(photographs)} in {len(given.folders)} folders"
        )
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(f"{given.out} is not empty")
    counts = dict.fromkeys(("train", "test"), 0)
    for path in photographs:
        with Image.open(path) as photograph:
            cut = tiles(photograph, given.side, given.rows)
        for name, columns in split(cut.shape[1]).items():
            folder = given.out / name / path.stem
            folder.mkdir(parents=True)
            for row, column in np.ndindex(len(cut), len(columns)):
                Image.fromarray(cut[row, columns[column]]).save(folder / f"{row:02d}_{columns[column]:02d}.png")
            counts[name] += len(cut) * len(columns)
    print(f"{counts['train']} training and {counts['test']} test tiles of {len(photographs)} photographs in {given.out}")


if __name__ == "__main__":
    main()
