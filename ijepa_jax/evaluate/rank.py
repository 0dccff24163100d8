"""How much of its feature space an encoder uses: RankMe and the spread of features, signs of collapse that need no labels."""

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
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0.0, None))
    share = singular / max(singular.sum(), np.finfo(np.float64).tiny) + eps
    return float(np.exp(-np.sum(share * np.log(share))))


def feature_std(features) -> float:
    """The standard deviation over images of each feature (float [N, D]), averaged over features: 0 for a collapsed encoder.

    Raises:
      ValueError: features that are not two-dimensional, or not finite.
    """
    return float(checked_features(features, "spread").std(axis=0, dtype=np.float64).mean())
