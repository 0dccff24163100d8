"""CLEVR's tasks as VTAB has them (Zhai et al. 2019), which are Clevr/Count and Clevr/Dist of the I-JEPA paper.

TFDS's CLEVR has no labels of images, but lists the objects of each.
"""

import itertools

import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

_FEWEST, _MOST = 3, 10
_EDGES = (8.0, 8.5, 9.0, 9.5, 10.0)  # of the distances; a bin holds its upper edge
CLASS_NAMES = {
    "count": [str(count) for count in range(_FEWEST, _MOST + 1)],
    "distance": [
        f"up to {_EDGES[0]:g}",
        *(f"{low:g} to {high:g}" for low, high in itertools.pairwise(_EDGES)),
        f"over {_EDGES[-1]:g}",
    ],
}


def holds_objects(name: str, features) -> bool:
    """Whether a data set of this name and TFDS features is CLEVR with its objects, and not only its images by the same name."""
    objects = features.get_tensor_info().get("objects") if name == "clevr" else None
    return isinstance(objects, dict) and "pixel_coords" in objects


def pixel_coords(record: bytes) -> np.ndarray:
    """Column, row and distance from the camera of each object of a serialised record, float32 [objects, 3]."""
    values = tf_example_pb2.Example.FromString(record).features.feature["objects/pixel_coords"].float_list.value
    return np.array(values, np.float32).reshape(-1, 3)


def labels(coordinates: np.ndarray) -> dict[str, int]:
    """The classes of an image whose objects have these `pixel_coords`, float32 [objects, 3].

    `count`: 3 to 10 objects are classes 0 to 7. `distance`: the nearest object's, in six bins with the edges 8, 8.5, 9, 9.5
    and 10, of which each belongs to the bin below it. Raises ValueError for any other number of objects.
    """
    if not _FEWEST <= len(coordinates) <= _MOST:
        raise ValueError(
            f"{len(coordinates)} objects are listed, CLEVR's images have {_FEWEST} to {_MOST} (its split `test` lists none)"
        )
    distance = np.digitize(coordinates[:, 2].min(), _EDGES, right=True)
    return {"count": len(coordinates) - _FEWEST, "distance": int(distance)}
