"""The diffusion decoder: its network, its objective, its sampler."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ijepa_jax.decode import pictures
from ijepa_jax.decode.denoiser import Denoiser
from ijepa_jax.decode.rcdm import Rcdm, scaled, schedule
from ijepa_jax.methods.masks import MaskSampler
from ijepa_jax.train.step import init, train_step
from tests import small


class Told(Rcdm):
    """A decoder whose batches bring their representations along."""

    features = 5

    def conditions(self, target, batch):
        return batch["condition"]

    def init_target(self, params, key):
        return {"denoiser": jax.tree.map(jnp.copy, params["denoiser"])}


def method(**changes) -> Told:
    masks = MaskSampler((4, 4), context_patches=4)
    teacher = dataclasses.replace(small.method(image=(24, 24)), image_size=(16, 16), masks=masks)
    return dataclasses.replace(Told(Denoiser(width=32, depth=2, heads=2), teacher), **changes)


def batch(size: int = 4, kinds: int = 2, start: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(start)
    masks = method().prepare()(np.arange(size))
    conditions = rng.normal(size=(size, kinds, masks["target"].shape[1], 5)).astype(np.float32)
    return {"image": rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8), "condition": conditions, **masks}


class Oracle:
    """A denoiser that is told the pixels' value by the first feature of the condition."""

    def init(self, *arguments):
        del arguments
        return {"params": {"kernel": jnp.ones(1)}}

    def apply(self, variables, noisy, index, lengths, times, condition, grid):
        del variables, index, lengths, times, grid
        return jnp.broadcast_to(condition[:, None, :1], noisy.shape)


def test_the_schedule_keeps_the_variance_and_runs_from_image_to_noise():
    signal, noise = schedule(jnp.linspace(0, 1, 101))
    np.testing.assert_allclose(signal**2 + noise**2, 1, atol=1e-6)
    assert signal[0] == 1 and noise[0] == 0 and noise[-1] == 1 and abs(signal[-1]) < 1e-6
    assert (np.diff(signal) < 0).all()


def test_images_are_scaled_to_the_whole_range():
    np.testing.assert_allclose(scaled(np.array([0, 51, 255], np.uint8)), [-1, -0.6, 1], atol=1e-6)


def white(conditions: np.ndarray) -> dict[str, np.ndarray]:
    """White images of which the conditions [B, R, M, 5] tell what they like."""
    images = np.full((len(conditions), 16, 16, 3), 255, np.uint8)
    return {"image": images, "condition": conditions.astype(np.float32), **method().prepare()(np.arange(len(conditions)))}


def test_an_error_counts_by_its_noise_and_a_perfect_guess_costs_nothing():
    of = method(denoiser=Oracle())
    loss, metrics = of.loss({"denoiser": {}}, None, white(np.ones((2, 1, 4, 5))), jax.random.key(0))
    assert loss == 0 and metrics["squared_error"] == 0
    given = white(np.zeros((2, 1, 4, 5)))  # guesses 0 where all is 1
    loss, metrics = of.loss({"denoiser": {}}, None, given, jax.random.key(0))
    offset = jax.random.uniform(jax.random.split(jax.random.key(0), 3)[1])
    signal, noise = schedule((np.arange(8) + offset) / 8)
    weights = given["target_length"].ravel() / given["target_length"].sum()  # a block counts by its valid patches
    np.testing.assert_allclose(loss, (weights * (1 + np.minimum((signal / noise) ** 2, 5))).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["squared_error"], 1, rtol=1e-6)


def test_one_of_a_blocks_representations_is_drawn():
    """Each block's pixels are told by one of its two conditions: an oracle is right as often as that one is drawn."""
    conditions = np.zeros((100, 2, 4, 5))
    conditions[:, 1] = 1
    _, metrics = method(denoiser=Oracle()).loss({"denoiser": {}}, None, white(conditions), jax.random.key(3))
    assert 0.4 < float(metrics["squared_error"]) < 0.6


def test_patches_that_are_not_square_come_back_to_where_they_were():
    like = method()
    teacher = dataclasses.replace(like.teacher, network=like.teacher.network.clone(patch=(2, 8)), masks=None)
    of = dataclasses.replace(like, teacher=teacher)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    target, lengths = np.array([[[0, 5, 15]], [[1, 14, 0]]]), np.array([[3], [2]])
    index, count, pixels = jax.device_get(of.blocks({"image": images, "target": target, "target_length": lengths}))
    assert pixels.shape == (2, 3, of.values) and of.grid == (8, 2)
    np.testing.assert_allclose(pixels[0, 1], images[0, 4:6, 8:16].ravel() / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(pictures.pasted(images, pixels, index, count, of.patch), images)
    changed = (pictures.pasted(images, -pixels, index, count, of.patch) != images).any(axis=-1)
    shown = [[row // 2 * 2 + column // 8 for column in range(16)] for row in range(16)]
    np.testing.assert_array_equal(changed, [np.isin(shown, found) for found in ([0, 5, 15], [1, 14])])


def test_what_pads_a_block_changes_neither_loss_nor_the_other_patches():
    of, given = method(), batch()
    params = jax.tree.map(lambda leaf: 5 * leaf, jax.jit(of.init)(jax.random.key(0)))  # patches that see each other
    padding = np.arange(given["target"].shape[-1]) >= given["target_length"][..., None]
    other = {**given, "target": np.where(padding, 3, given["target"])}
    (index, lengths, clean), (_, _, changed) = of.blocks(given), of.blocks(other)
    padding = padding.reshape(index.shape)
    assert np.abs(changed - clean)[padding].max() > 0.5 and (changed == clean)[~padding].all()
    loss = jax.jit(of.loss)
    one, two = (loss(params, None, which, jax.random.key(1))[0] for which in (given, other))
    np.testing.assert_allclose(one, two, rtol=1e-6)
    guess = jax.jit(lambda x: of.denoiser.apply({"params": params["denoiser"]}, x, index, lengths, *told, (4, 4)))
    told = jnp.full(len(index), 0.5), jnp.ones((len(index), 5))
    one, two = guess(clean), guess(changed)
    assert np.abs(one - two)[padding].max() > 0.1
    np.testing.assert_allclose(one[~padding], two[~padding], atol=1e-5)


def places(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of three patches, of which two are valid."""
    return np.tile(np.array([[0, 1, 4]]), (count, 1)), np.full(count, 2)


def test_the_sampler_ends_at_what_the_denoiser_believes():
    values = np.array([[0.5, 9, 9, 9, 9], [-1, 9, 9, 9, 9]], np.float32)
    drawn = method(denoiser=Oracle()).sample({}, values, *places(2), jax.random.key(0), steps=7)
    np.testing.assert_allclose(drawn, np.broadcast_to(values[:, None, :1], (2, 3, 48)), atol=1e-6)


def test_the_sampler_follows_the_probability_flow_of_a_gaussian():
    """For normal pixels of deviation s the best guess is s^2 a z / (s^2 a^2 + b^2), and samples must have deviation s."""
    spread = 0.3

    class Gaussian:
        def apply(self, variables, noisy, index, lengths, times, condition, grid):
            signal, noise = schedule(times[:, None, None])
            return spread**2 * signal * noisy / (spread**2 * signal**2 + noise**2)

    of = method(denoiser=Gaussian())
    drawn = of.sample({}, np.zeros((256, 5), np.float32), *places(256), jax.random.key(1), steps=400)
    assert float(drawn.std()) == pytest.approx(spread, rel=0.01)
    assert abs(float(drawn.mean())) < 0.01


def test_samples_differ_by_their_noise_alone():
    of = method()
    params, condition = of.init(jax.random.key(0))["denoiser"], np.ones((2, 5), np.float32)
    one, again, other = (of.sample(params, condition, *places(2), jax.random.key(seed), steps=3) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other) and not np.allclose(one[0], one[1])


def test_what_the_denoiser_guesses_depends_on_all_that_it_is_given():
    of, rng = Denoiser(width=32, depth=2, heads=2), np.random.default_rng(0)
    index, lengths = places(2)
    noisy, times, condition = rng.normal(size=(2, 3, 48)), np.array([0.2, 0.7]), rng.normal(size=(2, 5))
    params = of.init(jax.random.key(0), noisy, index, lengths, times, condition, (4, 4))
    guess = of.apply(params, noisy, index, lengths, times, condition, (4, 4))
    assert guess.shape == noisy.shape and guess.dtype == jnp.float32
    for changed in (
        (noisy + 1, index, times, condition), (noisy, index + 1, times, condition),
        (noisy, index, times + 0.1, condition), (noisy, index, times, condition + 1),
    ):  # fmt: skip
        pixels, at, when, known = changed
        other = of.apply(params, pixels, at, lengths, when, known, (4, 4))
        assert float(jnp.abs(other - guess)[:, :2].max()) > 1e-7
    first = (x[:1] for x in (noisy, index, lengths, times, condition))
    np.testing.assert_allclose(of.apply(params, *first, (4, 4)), guess[:1], atol=1e-6)  # blocks do not see each other


def test_the_step_trains_it_and_its_average_follows():
    of, optimizer = method(), small.optimizer(weight_decay=0.0, final_weight_decay=0.0)
    state = init(of, optimizer, 0)
    step = jax.jit(partial(train_step, method=of, optimizer=optimizer, seed=0))
    losses = []
    for _ in range(60):
        before = state
        state, metrics = step(state, batch())
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    momentum = float(metrics["momentum"])
    expected = jax.tree.map(lambda t, p: momentum * t + (1 - momentum) * p, before.target, state.params)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), state.target, expected)


def test_accumulation_weighs_parts_by_their_patches():
    """Rows 0 and 2, one part of two, are guessed right; of rows 1 and 3, the other, all is wrong by 1."""
    of, optimizer = method(denoiser=Oracle()), small.optimizer()
    given = white(np.broadcast_to(np.array([1, 0, 1, 0])[:, None, None, None], (4, 1, 4, 5)))
    given["target_length"] = np.array([[1] * 4, [2] * 4, [1] * 4, [2] * 4], np.int32)
    assert float(of.weight(given)) == 24
    step = jax.jit(partial(train_step, method=of, optimizer=optimizer, seed=0, accumulation=2))
    _, metrics = step(init(of, optimizer, 0), given)
    assert float(metrics["squared_error"]) == pytest.approx(16 / 24)
