"""Data sets by the names that configurations use."""

import functools

from ijepa_jax.data.arrays import open_arrays, open_idx
from ijepa_jax.data.folders import open_folder
from ijepa_jax.data.prepared import open_tfds
from ijepa_jax.data.scenes import Progress, open_scenes
from ijepa_jax.data.source import DataError, Source, storage_errors
from ijepa_jax.settings.axes import modality

_SPLITS = ("train", "test")
_PLACES = {  # what follows the kind of a data set in its name
    "scenes": (),
    "folder": ("PATH",),
    "arrays": ("FILE.npz",),
    "idx": ("DIR",),
    "tfds": ("NAME[/CONFIG][:SPLIT]", "PATH[:SPLIT]"),
}


def open_source(
    name: str,
    split: str,
    *,
    size: int,
    seed: int,
    directory: str | None = None,
    image_size: int | tuple[int, ...] = 64,
    progress: Progress | None = None,
) -> Source:
    """Opens the split `train` or `test` of a data set.

    - `scenes`: `size` scenes (a `ScenesSource`), a function of `seed`, of `image_size` pixels, rendered here (`progress` is
      called as that goes on). Tasks count, distance (8 quantile bins, the same for all splits, seeds and sizes), shape, colour.
    - `folder:PATH`: JPEG, PNG and WebP files at any depth, in the order of their paths. Where PATH holds `train` (`training`)
      and `val` (`valid`, `validation`, `dev`) or else `test` (`testing`), in any case, these are the splits; otherwise a hash
      of its path below PATH puts every tenth file into the test split. The first sub-folder on a file's way is its label
      (task `label`, classes in sorted order).
    - `arrays:FILE.npz`: `images` (uint8 [N, H, W] or [N, H, W, C]) and optionally `labels`, of which a hash of the
      index puts every tenth into the test split; or `train_images`, `test_images` and optionally `train_labels`, `test_labels`.
      Likewise `videos` (uint8 [N, T, H, W] or [N, T, H, W, C]) and `signals` (float32 [N, L] or [N, L, C]), which are opened
      where `image_size` has three values, or one in a tuple. All else is of images.
    - `idx:DIR`: MNIST-format files `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` and so on, gzipped or not.
    - `tfds:NAME[/CONFIG][/VERSION][:SPLIT]`: a data set that TFDS has prepared as ArrayRecord files in `directory` (by default
      ~/tensorflow_datasets). SPLIT replaces `train` and may be a part of it (`train[:1%]`); the test split is `validation` or
      else `test`, or the last tenth of `train` where that is the only split and no SPLIT is given.
    - `tfds:PATH[:SPLIT]`: likewise, of the folder that holds the data set or its versions, as `launch.py prepare` writes it.

    `size`, `seed` and the sides of `image_size` are for scenes only. Paths may be local, gs:// or s3:// (tfds: not s3://).
    Raises `DataError`, and of its kind `NoSplit` where the data hold nothing for this split.
    """
    if split not in _SPLITS:
        raise DataError(f"no split {split!r}: the splits are 'train' and 'test'")
    check_name(name, image_size)
    kind, _, place = name.partition(":")
    if kind == "scenes":
        return open_scenes(split, size, seed, image_size, progress)
    openers = {
        "folder": open_folder, "idx": open_idx, "arrays": functools.partial(open_arrays, modality=_modality(image_size)),
        "tfds": functools.partial(open_tfds, directory=directory or "~/tensorflow_datasets"),
    }  # fmt: skip
    with storage_errors(f"{name} {directory or ''}"):
        return openers[kind](place, split)


def check_name(name: str, image_size: int | tuple[int, ...]) -> None:
    """Raises `DataError` for a name of no kind that there is, or of one without examples of such sizes; opens nothing."""
    kind, _, place = name.partition(":")
    if kind not in _PLACES or bool(place) != bool(_PLACES[kind]):
        known = ", ".join(f"{known}{place and ':'}{place}" for known, places in _PLACES.items() for place in places or [""])
        raise DataError(f"no data named {name!r}: use one of {known}")
    if (shown := _modality(image_size)) != "image" and kind != "arrays":
        sizes = f"data.image_size {image_size} is of {shown}s, which come from arrays:FILE.npz"
        raise DataError(f"{name} has images, of (height, width), and {sizes}")


def _modality(image_size: int | tuple[int, ...]) -> str:
    return "image" if isinstance(image_size, int) else modality(image_size)
