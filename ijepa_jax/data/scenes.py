"""Generated scenes as a source: rendered when it is opened, with labels and, on request, segments."""

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ijepa_jax.data import render
from ijepa_jax.data.arrays import ArraySource
from ijepa_jax.data.source import DataError

Progress = Callable[[int, int], None]  # (examples done, examples in all)

_TEST_SCENES = 1 << 40  # where the indices of the test split start
_REFERENCE_SCENES = 1 << 41  # scenes of no split, whose distances set the bins
_DISTANCE_BINS = 8
_SCENES_AT_ONCE = 512  # rendered between two reports of progress
_THREADS = 2  # 1.4 times as fast as one; NumPy keeps the interpreter for half of the time, so more are no gain


class ScenesSource(ArraySource):
    """Scenes `index` [N] of the collection `seed`, whose segments can be had too."""

    segment_names = render.SEGMENTS
    class_names: Mapping[str, Sequence[str]] = {
        "count": [str(count) for count in range(1, render.MAX_OBJECTS + 1)],
        "distance": [str(place) for place in range(1, _DISTANCE_BINS + 1)],  # from near to far
        "shape": list(render.SHAPES),
        "colour": list(render.COLOURS),
    }

    def __init__(self, images: np.ndarray, labels: Mapping[str, np.ndarray], title: str, seed: int, index: np.ndarray):
        super().__init__(images, labels, title)
        self._seed = seed
        self._index = index

    def contents(self) -> dict[str, str]:  # their pixels may differ by one in 100,000 between processors
        return {"scenes": f"{len(self)} from {self._index[0]} of seed {self._seed}, {list(self.images.shape[1:3])} pixels"}

    def segments_at(self, rows: np.ndarray) -> np.ndarray:
        """What is seen at each pixel of the examples at rows [n]: uint8 [n, H, W], indices into `segment_names`.

        The scenes are rendered anew, as opening the source has done: keep what is needed more than once.
        """
        index = self._index[rows]
        segments = np.empty((len(index), *self.images.shape[1:3]), np.uint8)
        for start in range(0, len(index), _SCENES_AT_ONCE):
            part = slice(start, start + _SCENES_AT_ONCE)
            segments[part] = render.segments(render.render(self._seed, index[part], size=self.images.shape[1:3]))
        return segments


def open_scenes(split: str, size: int, seed: int, image_size: int | tuple[int, int], progress: Progress | None) -> ScenesSource:
    if size < 1:
        raise DataError(f"scenes: cannot generate {size} scenes: give a size of 1 or more")
    index = np.arange(size, dtype=np.int64) + (_TEST_SCENES if split == "test" else 0)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    images = np.empty((size, height, width, 3), np.uint8)
    labels = []
    parts = [slice(start, min(start + _SCENES_AT_ONCE, size)) for start in range(0, size, _SCENES_AT_ONCE)]
    with ThreadPoolExecutor(_THREADS) as threads:
        scenes = threads.map(lambda part: render.render(seed, index[part], size=(height, width)), parts)
        for part, rendered in zip(parts, scenes, strict=True):
            images[part] = rendered.images
            labels.append(rendered.labels)
            if progress is not None:
                progress(part.stop, size)
    columns = {task: np.concatenate([chunk[task] for chunk in labels]) for task in labels[0]}
    return ScenesSource(images, _scene_classes(columns), f"scenes {split}", seed, index)


def _scene_classes(labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "count": labels["count"].astype(np.int64) - 1,
        "distance": np.searchsorted(_distance_edges(), labels["distance"], side="right").astype(np.int64),
        "shape": labels["shape"].astype(np.int64),
        "colour": labels["colour"].astype(np.int64),
    }


@functools.cache
def _distance_edges() -> np.ndarray:
    """The inner edges of the quantile bins, from 2,048 scenes of their own: the same for every split, seed and size."""
    reference = render.render(0, np.arange(2048, dtype=np.int64) + _REFERENCE_SCENES, size=16)
    return np.quantile(reference.labels["distance"], np.arange(1, _DISTANCE_BINS) / _DISTANCE_BINS)
