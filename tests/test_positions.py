"""Position tables, and how they are resized."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ijepa_jax.methods.optim import moving_average
from ijepa_jax.model.positions import resized, sincos
from ijepa_jax.model.vit import ViT
from ijepa_jax.settings.architectures import INTERPOLATIONS
from ijepa_jax.train.step import init, train_step
from tests import small


def test_positions_encode_the_column_first_then_the_row():
    table = sincos(16, (3, 5)).reshape(3, 5, 16)
    omega = 10000.0 ** (-np.arange(4) / 4)
    for row in range(3):
        for column in range(5):
            halves = [np.concatenate([np.sin(at * omega), np.cos(at * omega)]) for at in (column, row)]
            np.testing.assert_allclose(table[row, column], np.concatenate(halves), atol=1e-7)


def test_a_single_axis_has_all_features():
    omega = 10000.0 ** (-np.arange(5) / 5)
    for position, row in enumerate(sincos(10, (7,))):
        np.testing.assert_allclose(row, np.concatenate([np.sin(position * omega), np.cos(position * omega)]), atol=1e-6)


@pytest.mark.parametrize("width", [24, 40, 42])
def test_three_axes_have_a_third_each_cut_to_the_width(width):
    """V-JEPA's tables as published: step, row, column, each of 2 * ceil(width / 6) features."""
    grid, each = (2, 3, 5), 2 * -(-width // 6)
    omega = 10000.0 ** (-np.arange(each // 2) / (each / 2))
    for place, row in zip(np.ndindex(grid), sincos(width, grid), strict=True):
        whole = np.concatenate([function(at * omega) for at in place for function in (np.sin, np.cos)])
        np.testing.assert_allclose(row, whole[:width], atol=1e-6)


def test_tables_of_three_axes_are_the_recorded_ones():
    path = Path(__file__).resolve().parents[2] / "shared" / "parity" / "vjepa_small.npz"
    if not path.exists():
        pytest.skip("needs ../shared/parity/vjepa_small.npz, which is not part of the project")
    with np.load(path) as recorded:
        for name in ("init/encoder/pos_embed", "init/predictor/predictor_pos_embed"):
            (table,) = recorded[name]
            np.testing.assert_array_equal(sincos(table.shape[1], (4, 8, 8)), table)


@pytest.mark.parametrize(("width", "grid", "least"), [(9, (4,), 2), (18, (4, 4), 4)])
def test_widths_that_axes_do_not_divide_are_named(width, grid, least):
    with pytest.raises(ValueError, match=f"width {width} must be a multiple of {least} for .* of {len(grid)} axes"):
        sincos(width, grid)


@pytest.mark.parametrize(("trained", "new"), [((6,), (9,)), ((3, 4, 5), (3, 8, 10)), ((2, 4, 4), (4, 4, 4))])
def test_tables_of_other_axes_are_resized_axis_by_axis(trained, new):
    """A plane of one constant along all axes but one is resized as a line is, by torch."""
    line = np.random.default_rng(0).normal(size=trained[0]).astype(np.float32)
    table = np.broadcast_to(line.reshape(-1, *[1] * (len(trained) - 1)), trained).reshape(-1, 1)
    wanted = torch.nn.functional.interpolate(torch.tensor(line)[None, None, :, None], size=(new[0], 1), mode="bicubic")
    found = np.asarray(resized(table, trained, new, "bicubic")).reshape(new)
    expected = np.broadcast_to(wanted.numpy().reshape(-1, *[1] * (len(new) - 1)), new)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    with pytest.raises(ValueError, match="axes do not serve one of"):
        resized(table, trained, (2, 2), "bicubic")


@pytest.mark.parametrize("new", [(4, 6), (8, 6), (7, 11), (3, 4), (2, 13), (1, 1), (16, 24)])
@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_tables_are_resized_as_torch_does(name, new):
    table = np.random.default_rng(0).normal(size=(24, 8)).astype(np.float32)
    image = torch.tensor(table).reshape(1, 4, 6, 8).permute(0, 3, 1, 2)
    antialias = name == "bicubic_antialias"
    wanted = torch.nn.functional.interpolate(image, size=new, mode="bicubic", align_corners=False, antialias=antialias)
    found = resized(table, (4, 6), new, name)
    np.testing.assert_allclose(found, wanted.permute(0, 2, 3, 1).reshape(-1, 8), atol=2e-6)


def test_an_unknown_interpolation_is_named():
    with pytest.raises(ValueError, match="interpolation 'linear' must be one of bicubic, bicubic_antialias"):
        resized(sincos(8, (2, 2)), (2, 2), (3, 3), "linear")


def test_a_table_is_a_parameter_that_starts_as_the_computed_one():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 24, 3)), jnp.float32)
    computed, carried = (ViT(4, 16, 1, 2, positions=kind) for kind in ("sincos", "table"))
    params = carried.init(jax.random.key(0), images)["params"]
    assert params["positions"].tolist() == sincos(16, (4, 6)).tolist()
    without = {name: leaf for name, leaf in params.items() if name != "positions"}
    np.testing.assert_array_equal(carried.apply({"params": params}, images), computed.apply({"params": without}, images))
    moved = {**params, "positions": params["positions"] * 2}
    assert np.abs(carried.apply({"params": moved}, images) - computed.apply({"params": without}, images)).max() > 0.01


@pytest.mark.parametrize("size", [(8, 16), (24, 24)])
def test_positions_of_a_trained_grid_are_resized_on_request(size):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, *size, 3)), jnp.float32)
    table = np.random.default_rng(1).normal(size=(24, 16)).astype(np.float32)
    grid = (size[0] // 4, size[1] // 4)
    at_hand = ViT(4, 16, 1, 2, positions="table")
    params = {**at_hand.init(jax.random.key(0), images)["params"], "positions": resized(table, (4, 6), grid, "bicubic")}
    trained = ViT(4, 16, 1, 2, positions="table", trained_grid=(4, 6))
    found = trained.apply({"params": {**params, "positions": table}}, images)
    np.testing.assert_allclose(found, at_hand.apply({"params": params}, images), atol=1e-6)


def test_training_leaves_tables_as_they_are_to_the_bit():
    method = small.method(positions="table")
    optimizer = small.optimizer()
    state = init(method, optimizer, seed=0)
    step = jax.jit(partial(train_step, method=method, optimizer=optimizer, seed=0))
    odd = np.random.default_rng(0).normal(size=state.params["encoder"]["positions"].shape).astype(np.float32)
    for tree in (state.params["encoder"], state.target):
        tree["positions"] = jnp.asarray(odd)
    before = np.asarray(state.params["predictor"]["positions"])
    for index in range(3):
        state, _ = step(state, small.batch(method, start=4 * index))
    for found in (state.params["encoder"]["positions"], state.target["positions"]):
        assert np.asarray(found).tobytes() == odd.tobytes()
    assert np.asarray(state.params["predictor"]["positions"]).tobytes() == before.tobytes()
    averaged = moving_average(jnp.float32(0.9), {"kernel": jnp.ones(2)}, {"kernel": jnp.zeros(2)})
    np.testing.assert_allclose(averaged["kernel"], 0.9)
