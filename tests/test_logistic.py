import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ijepa_jax.evaluate import logistic


def noisy_classes(count, dims=24, classes=4, seed=0):
    """Features of very unlike spread, correlated, one of them constant, one tiny; labels that depend on them with noise."""
    fixed = np.random.default_rng(0)
    mix, truth = fixed.normal(size=(dims, dims)) * np.logspace(0, -2, dims)[:, None], fixed.normal(size=(dims, classes))
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(count, dims))
    labels = np.argmax(latent @ truth + 2 * rng.gumbel(size=(count, classes)), axis=1)
    features = 3 + latent @ mix
    features[:, 5] = 7.0
    features[:, 6] *= 1e-8
    return features.astype(np.float32), labels


@pytest.mark.parametrize("count,dims", [(2000, 24), (60, 200)])
def test_probabilities_are_scikit_learns(count, dims):
    (train, labels), (test, _) = noisy_classes(count, dims), noisy_classes(300, dims, seed=1)
    strengths = [1.0, 0.1, 1e-2, 1e-3]
    ours = jax.nn.softmax(logistic.logits(logistic.fit(train, labels, classes=4, l2=strengths), test))
    scale = np.where(np.arange(dims) == 5, 1, train.std(axis=0, dtype=np.float64))
    standard = [(features - train.mean(axis=0, dtype=np.float64)) / scale for features in (train, test)]
    for l2, probabilities in zip(strengths, ours, strict=True):
        theirs = LogisticRegression(C=1 / (l2 * count), tol=1e-8, max_iter=10_000).fit(standard[0], labels)
        # Both stop at a gradient that is small, not zero.
        np.testing.assert_allclose(probabilities, theirs.predict_proba(standard[1]), atol=1e-3)


def test_separable_classes_are_separated():
    labels = np.arange(300) % 3
    features = np.eye(3)[labels] + np.random.default_rng(0).normal(size=(300, 3)) * 0.05
    assert logistic.probe(features[:200], labels[:200], features[200:], labels[200:], classes=3) == 100.0


def test_strength_is_chosen_on_training_images_and_repeats():
    (train, labels), (test, test_labels) = noisy_classes(1500), noisy_classes(500, seed=1)
    first = logistic.probe(train, labels, test, test_labels, classes=4)
    assert first == logistic.probe(logistic.prepare(train), labels, test, test_labels, classes=4, l2=logistic.L2[::-1])
    alone = [logistic.probe(train, labels, test, test_labels, classes=4, l2=[l2]) for l2 in logistic.L2]
    assert min(abs(first - value) for value in alone) <= 0.4  # two of 500 images: another start, the same optimum
    assert first >= max(alone) - 3.0


def test_accuracy_hardly_moves_where_features_hardly_do():
    (train, labels), test = noisy_classes(500, 100), noisy_classes(2000, 100, seed=1)
    rng = np.random.default_rng(7)
    moved = [train + 0.05 * train.std(axis=0) * rng.normal(size=train.shape) for _ in range(6)]
    found = [logistic.probe(features, labels, *test, classes=4) for features in moved]
    assert np.ptp(found) < 5 and np.mean(found) > 58  # 47 to 62 where the share of right ones chooses the strength


def test_many_noise_features_call_for_strong_regularisation():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    features = np.concatenate([labels[:, None] + rng.normal(size=(600, 1)) * 0.5, rng.normal(size=(600, 150))], axis=1)
    split = features[:200], labels[:200], features[200:], labels[200:]
    assert logistic.probe(*split, classes=2) > logistic.probe(*split, classes=2, l2=[1e-5])


def test_collapsed_encoder_scores_chance_without_nan():
    labels = np.arange(400) % 4
    for features in (np.zeros((400, 8)), np.full((400, 8), 3.7)):
        assert logistic.probe(features[:200], labels[:200], features[200:], labels[200:], classes=4) == 25.0
        assert np.isfinite(logistic.fit(features, labels, classes=4).weight).all()


def test_equal_shapes_compile_once():
    train, labels = noisy_classes(200)
    logistic._select_and_fit.clear_cache()
    for turn in range(3):
        logistic.probe(train + turn, labels, train, labels, classes=4)
    assert logistic._select_and_fit._cache_size() == 1


def test_bad_input_is_named():
    train, labels = noisy_classes(100)
    with pytest.raises(ValueError, match=r"training labels run from 0 to 3, outside 0 \.\. 2"):
        logistic.probe(train, labels, train, labels, classes=3)
    with pytest.raises(ValueError, match="test labels run from"):
        logistic.probe(train, labels, train, labels - 1, classes=4)
    with pytest.raises(ValueError, match="all 2: a classifier needs at least two classes"):
        logistic.fit(train, np.full(100, 2), classes=4)
    with pytest.raises(ValueError, match="100 of 100 images hold NaN"):
        logistic.fit(train * np.nan, labels, classes=4)
    with pytest.raises(ValueError, match="must be integers"):
        logistic.fit(train, labels.astype(float), classes=4)
    with pytest.raises(ValueError, match="l2 must be positive"):
        logistic.fit(train, labels, classes=4, l2=[0.0])
    with pytest.raises(ValueError, match="test features have 3 dimensions, training features 24"):
        logistic.probe(train, labels, train[:, :3], labels, classes=4)


def test_room_for_more_classes_changes_nothing():
    """A task of three classes in a program of eight: the same predictions, so that tasks can share a program."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 12))
    labels = rng.integers(0, 3, 400)
    features = (centres[labels] + 1.5 * rng.normal(size=(400, 12))).astype(np.float32)
    alone = logistic.classify(features[:300], labels[:300], features[300:], classes=3).classes
    roomy = logistic.classify(features[:300], labels[:300], features[300:], classes=3, room=8).classes
    assert (alone == roomy).mean() >= 0.99 and roomy.max() < 3 and (roomy == labels[300:]).mean() > 0.6
