"""How much of its feature space an encoder uses: RankMe, LiDAR and the spread of features, signs of collapse without labels.

Also how alike the features of two layers or encoders are: CKA.
"""

from collections.abc import Sequence

import numpy as np

from ijepa_jax.evaluate.knn import checked_features


def rankme(features, *, eps: float = 1e-7) -> float:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885): the effective rank of a feature matrix, 1 .. min(N, D).

    The exponential of the entropy of the singular values s of the features (float [N, D], not centred), taken as
    probabilities `p = s / sum(s) + eps`. D equally strong directions give D; features all in one direction, or all zero, 1.

    Raises:
      ValueError: features that are not two-dimensional, or not finite.
    """
    features = checked_features(features, "RankMe's").astype(np.float64)
    features /= max(np.abs(features).max(), np.finfo(np.float64).tiny)  # their scale does not matter: keep squares in range
    # Eigenvalues of the smaller Gram matrix are the squared singular values. In float64 they lose what is below 1e-8 of the
    # largest, a tenth of eps, and take a small part of the time of a singular value decomposition.
    gram = features.T @ features if features.shape[1] <= len(features) else features @ features.T
    return _effective_rank(np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0.0, None)), eps)


def lidar(features, *, delta: float = 1e-4, eps: float = 1e-7) -> float:
    """LiDAR (Thilak et al. 2023, arXiv 2312.04000): RankMe of what tells images apart, in units of what augmentations change.

    Features are float [n, q, D]: q augmented views of each of n images, each image a surrogate class. With Sb the mean over
    images of the scatter of their mean features around the grand mean, and Sw the mean over all views of their scatter around
    their image's mean, plus `delta * I`, it is the exponential of the entropy of the D eigenvalues l of
    `Sw^-1/2 Sb Sw^-1/2`, taken as probabilities `p = l / sum(l) + eps`: 1 .. min(n - 1, D), up to eps.
    Directions in which only views vary keep eigenvalues of about 1 / (q - 1), so compare equal n, q and D. `delta` is in units
    of the features' mean variance, not, as in the paper, in their squared units: so their scale does not matter.

    Computed in float64. Needs memory for one float64 copy of features and D x D floats, or less where n * q < D.

    Raises:
      ValueError: features that are not three-dimensional, or not finite; fewer than 2 images or views; `delta` not above 0.
    """
    features = _checked_views(features)
    if not delta > 0:
        raise ValueError(f"LiDAR's delta must be above 0, or the scatter of views cannot be inverted; got {delta}")
    images, views, dimensions = features.shape
    features = features.astype(np.float64).reshape(-1, dimensions)
    features -= features.mean(axis=0)
    features /= max(np.sqrt(np.square(features).mean()), np.finfo(np.float64).tiny)
    if len(features) < dimensions:  # outside their span Sb is 0: change to coordinates of an orthonormal basis of it
        features = np.linalg.qr(features.T, mode="r").T
    features = features.reshape(images, views, -1)
    means = features.mean(axis=1)
    features -= means[:, None]
    around = features.reshape(images * views, -1)
    scatter, directions = np.linalg.eigh(around.T @ around / len(around))
    whitened = means @ (directions / np.sqrt(np.clip(scatter, 0.0, None) + delta))
    between = whitened.T @ whitened if whitened.shape[1] <= images else whitened @ whitened.T
    eigenvalues = np.zeros(dimensions)
    eigenvalues[: len(between)] = np.clip(np.linalg.eigvalsh(between / images), 0.0, None)
    return _effective_rank(eigenvalues, eps)


def cka(a, b) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414) of features float [N, Da] and [N, Db]: 0 .. 1.

    How alike the same N images are related to each other in two layers or encoders; rotations and scales of features do not
    change it. 1 for equal features, 0 where one does not vary. Independent features of D dimensions have about
    `D / (N + D)`, so use many more images than dimensions. Computed in float64, in the smaller of feature and Gram space.

    Raises:
      ValueError: features that are not two-dimensional, not finite, or of different numbers of images.
    """
    return float(cka_table([a, b])[0, 1])


def cka_table(layers: Sequence) -> np.ndarray:
    """As `cka`, between each two of L layers' features (each float [N, D], D may differ): float64 [L, L], symmetrical.

    Needs memory for a float64 copy [N, min(N, D)] of each layer.

    Raises:
      ValueError: no layers, or what `cka` raises.
    """
    if not len(layers):
        raise ValueError("CKA needs the features of at least one layer")
    layers = [_unit_gram(layer, f"layer {index}'s") for index, layer in enumerate(layers)]
    counts = [len(layer) for layer in layers]
    if len(set(counts)) > 1:
        raise ValueError(f"CKA needs features of the same images in all layers; got {counts} images")
    table = np.zeros((len(layers), len(layers)))
    for i, first in enumerate(layers):
        table[i, i] = first.any()
        for j in range(i):
            table[i, j] = table[j, i] = np.sum((first.T @ layers[j]) ** 2)
    return table


def feature_std(features) -> float:
    """The standard deviation over images of each feature (float [N, D]), averaged over features: 0 for a collapsed encoder.

    Raises:
      ValueError: features that are not two-dimensional, or not finite.
    """
    return float(checked_features(features, "spread").std(axis=0, dtype=np.float64).mean())


def _checked_views(features) -> np.ndarray:
    """Returns `features` as float32 [images, views, D]; ValueError where LiDAR cannot be computed of them."""
    features = np.asarray(features)
    if features.ndim != 3 or min(features.shape[:2]) < 2 or not features.shape[2]:
        raise ValueError(
            "LiDAR's features must have shape [images, views, dimensions], at least 2 images and 2 views of each; "
            f"got {list(features.shape)}"
        )
    return checked_features(features.reshape(len(features), -1), "LiDAR's").reshape(features.shape)


def _effective_rank(weights: np.ndarray, eps: float) -> float:
    """The exponential of the entropy of non-negative weights [K], as probabilities `weights / sum + eps`."""
    share = weights / max(weights.sum(), np.finfo(np.float64).tiny) + eps
    return float(np.exp(-np.sum(share * np.log(share))))


def _unit_gram(features, name: str) -> np.ndarray:
    """Features centred and scaled until their Gram matrix has norm 1, as float64 [N, min(N, D)]; zeros if they do not vary."""
    features = checked_features(features, name).astype(np.float64)
    features -= features.mean(axis=0)
    features /= max(np.abs(features).max(), np.finfo(np.float64).tiny)  # keeps fourth powers in range
    if len(features) < features.shape[1]:  # a narrower factor of the same Gram matrix
        features = np.linalg.qr(features.T, mode="r").T
    return features / max(np.sqrt(np.linalg.norm(features.T @ features)), np.finfo(np.float64).tiny)
