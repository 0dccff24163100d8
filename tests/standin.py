"""A stand-in for ImageNet's folders: small JPEGs of mixed sizes, of as many classes as are asked for, to rehearse with.

    python tests/standin.py --out imagenet --images 2000 --classes 20

writes OUT/train/n00000001/*.JPEG and OUT/val/..., a fifth as many images, each a generated scene whose class is the shape and
colour of its largest object.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ijepa_jax.data.render import COLOURS, SHAPES, render


def write(folder: Path, images: int, classes: int, first: int) -> int:
    """Writes as many images of each class as make up `images`, of scenes from index `first` on; returns the next index."""
    rng, left = np.random.default_rng(first), dict.fromkeys(range(classes), images // classes)
    while left:
        height, width = (int(side) for side in rng.integers(96, 320, 2))
        scenes = render(seed=0, index=np.arange(first, first + 16), size=(height, width))
        for i, label in enumerate(scenes.shapes[:, 0] * len(COLOURS) + scenes.colours[:, 0]):
            if int(label) in left:
                place = folder / f"n{label + 1:08d}"
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(scenes.images[i]).save(place / f"{place.name}_{first + i}.JPEG", quality=90)
                left[int(label)] -= 1
                left = {kind: count for kind, count in left.items() if count}
        first += 16
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="an empty or new folder")
    parser.add_argument("--images", type=int, default=2000, help="for training")
    parser.add_argument("--classes", type=int, default=20, help=f"at most {len(SHAPES) * len(COLOURS)}")
    given = parser.parse_args()
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(f"{given.out} is not empty")
    if not 2 <= given.classes <= min(len(SHAPES) * len(COLOURS), given.images // 5):
        parser.error(f"{given.classes} classes: give 2 to {len(SHAPES) * len(COLOURS)}, and five images of each")
    write(given.out / "val", given.images // 5, given.classes, write(given.out / "train", given.images, given.classes, 0))
    print(f"{given.images // given.classes * given.classes} training images of {given.classes} classes in {given.out}")


if __name__ == "__main__":
    main()
