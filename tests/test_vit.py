"""The encoder: sizes, positions, selection of patches, layers, scan, remat, dtype."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ijepa_jax.model import layers
from ijepa_jax.model.attention import attend
from ijepa_jax.model.positions import sincos
from ijepa_jax.model.vit import ViT, drop_path, normalise, parameter_count, patchify, take_tokens
from ijepa_jax.settings.architectures import SIZES
from ijepa_jax.settings.axes import each_axis, patch_grid

# METHOD: published parameter counts of the encoders, positions not counted
COUNTS = {
    ("vit_tiny", 16): 5_486_400, ("vit_small", 16): 21_589_632, ("vit_base", 16): 85_646_592,
    ("vit_large", 16): 303_098_880, ("vit_huge", 14): 630_434_560, ("vit_giant", 16): 1_011_092_608,
}  # fmt: skip


def small(**changes) -> ViT:
    return ViT(**{"patch": 4, "width": 16, "depth": 3, "heads": 2, **changes})


def images(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), shape)


def apply(vit: ViT, x: jax.Array, *arguments, seed: int = 0, **keywords):
    params = vit.init(jax.random.key(seed), x)["params"]
    return vit.apply({"params": params}, x, *arguments, **keywords)


@pytest.mark.parametrize("name, patch", COUNTS)
@pytest.mark.parametrize("scan", [False, True])
def test_every_published_size_has_its_parameter_count(name, patch, scan):
    size = SIZES[name]
    vit = ViT(patch, size.width, size.depth, size.heads, size.mlp_ratio, scan=scan)
    shapes = jax.eval_shape(vit.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert parameter_count(shapes["params"]) == COUNTS[name, patch]


@pytest.mark.parametrize("height, width", [(16, 16), (8, 24), (20, 12)])
def test_any_size_that_divides_works(height, width):
    vit = small()
    params = vit.init(jax.random.key(0), images(1, 16, 16, 3))["params"]
    assert vit.apply({"params": params}, images(2, height, width, 3)).shape == (2, height * width // 16, 16)


@pytest.mark.parametrize(
    ("sizes", "patch"), [((12,), 3), ((8, 12), 4), ((8, 12), (2, 6)), ((4, 6, 8), 2), ((4, 6, 8), (2, 3, 4))]
)
def test_patches_are_cut_as_a_convolution_cuts_them(sizes, patch):
    """A convolution with stride = kernel is the linear map of each patch's values, in raster order."""
    rng, axes = np.random.default_rng(0), len(sizes)
    sides = each_axis(patch, axes)
    x = rng.normal(size=(2, *sizes, 3)).astype(np.float32)
    kernel = rng.normal(size=(math.prod(sides) * 3, 5)).astype(np.float32)
    order = ("NWC", "WIO", "NWC"), ("NHWC", "HWIO", "NHWC"), ("NDHWC", "DHWIO", "NDHWC")
    kernels = kernel.reshape(*sides, 3, 5)
    wanted = jax.lax.conv_general_dilated(x, kernels, sides, "VALID", dimension_numbers=order[axes - 1])
    np.testing.assert_allclose(patchify(x, patch) @ kernel, wanted.reshape(2, -1, 5), atol=2e-5)


@pytest.mark.parametrize(("sizes", "patch"), [((16,), 4), ((6, 8, 12), (3, 4, 4))])
def test_signals_and_videos_are_encoded(sizes, patch):
    """Of two tokens kept, each is what it is among its own: positions are those of the whole grid."""
    vit = small(patch=patch)
    x = images(2, *sizes, 3)
    params = vit.init(jax.random.key(0), x)["params"]
    grid = patch_grid(sizes, patch)
    assert vit.apply({"params": params}, x).shape == (2, math.prod(grid), 16)
    keep = jnp.array([[0, 3], [1, 2]])
    kept = vit.apply({"params": params}, x, keep)
    embedded = patchify(x, patch) @ params["patch_embed"]["kernel"] + sincos(16, grid)[None]
    flat = small(patch=1)  # tokens as a signal of two values, with positions of their own
    tokens = take_tokens(embedded, keep) - sincos(16, (2,))[None]
    alone = {**params, "patch_embed": {"kernel": jnp.eye(16), "bias": params["patch_embed"]["bias"]}}
    np.testing.assert_allclose(flat.apply({"params": alone}, tokens), kept, atol=1e-5)


def test_one_patch_size_for_all_axes_is_one_for_each():
    x = images(1, 8, 12, 3)
    params = small().init(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(small(patch=(4, 4)).apply({"params": params}, x), small().apply({"params": params}, x))


def test_wrong_widths_are_named():
    with pytest.raises(ValueError, match="width 18 must be a multiple of 4"):
        apply(small(width=18), images(1, 8, 8, 3))
    with pytest.raises(ValueError, match="width 16 does not divide into 3 heads"):
        apply(small(heads=3), images(1, 8, 8, 3))


def test_selected_patches_see_only_each_other():
    vit, x = small(), images(2, 16, 16, 3)
    keep = jnp.array([[0, 3, 10], [2, 5, 15]])
    chosen = apply(vit, x, keep)
    assert chosen.shape == (2, 3, 16)
    outside = np.ones((2, 16), bool)
    np.put_along_axis(outside, np.asarray(keep), False, 1)
    pixels = np.repeat(np.repeat(outside.reshape(2, 4, 4), 4, 1), 4, 2)[..., None]
    np.testing.assert_array_equal(apply(vit, jnp.where(pixels, 7.0, x), keep), chosen)


def test_keeping_all_patches_changes_nothing():
    vit, x = small(), images(2, 16, 16, 3)
    every = jnp.broadcast_to(jnp.arange(16), (2, 16))
    np.testing.assert_allclose(apply(vit, x, every), apply(vit, x), atol=1e-6)


def test_padding_changes_nothing():
    vit, x = small(), images(2, 16, 16, 3)
    keep = jnp.array([[0, 3, 10, 12, 12], [2, 5, 15, 15, 15]])
    padded = apply(vit, x, keep, jnp.array([4, 3]))
    np.testing.assert_allclose(padded[0, :4], apply(vit, x, keep[:, :4])[0], atol=2e-6)
    np.testing.assert_allclose(padded[1, :3], apply(vit, x, keep[:, :3])[1], atol=2e-6)


def test_layers_are_every_blocks_output_then_the_normed_one():
    vit, x = small(), images(2, 16, 16, 3)
    outputs = apply(vit, x, layers=True)
    assert len(outputs) == 4
    np.testing.assert_array_equal(outputs[-1], apply(vit, x))
    scale = jax.nn.standardize(outputs[2], epsilon=1e-6, algorithm="stable")
    np.testing.assert_allclose(outputs[3], scale, atol=1e-5)


@pytest.mark.parametrize(("remat", "again"), [("none", 0), ("dots", 2), ("full", 5)])
def test_remat_computes_again_what_its_name_says(remat, again):
    """Of a block's six products: attention's two, or all but the last, whose output nothing needs."""

    def products(vit):
        gradient = jax.grad(lambda params: vit.apply({"params": params}, x).sum())
        return str(jax.make_jaxpr(gradient)(params)).count("dot_general[")

    x = images(2, 16, 16, 3)
    params = small().init(jax.random.key(0), x)["params"]
    assert products(small(remat=remat)) - products(small()) == again * small().depth


@pytest.mark.parametrize("changes", [{"scan": True}, {"remat": "full"}, {"scan": True, "remat": "dots"}], ids=str)
def test_scan_and_remat_change_no_number(changes):
    plain, other, x = small(), small(**changes), images(2, 16, 16, 3)
    params = plain.init(jax.random.key(0), x)["params"]
    if other.scan:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params["blocks"][str(i)] for i in range(3)))
        assert jax.tree.structure(stacked) == jax.tree.structure(
            other.init(jax.random.key(0), x)["params"]["blocks"]["scanned"]
        )
        converted = {**params, "blocks": {"scanned": stacked}}
    else:
        converted = params

    def loss(vit, params):
        return jnp.square(vit.apply({"params": params}, x) - 1).mean()

    expected, gradient = jax.value_and_grad(lambda p: loss(plain, p))(params)
    value, other_gradient = jax.value_and_grad(lambda p: loss(other, p))(converted)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(other_gradient["patch_embed"]["kernel"], gradient["patch_embed"]["kernel"], atol=1e-6)
    np.testing.assert_allclose(apply(plain, x, layers=True)[1], plain.apply({"params": params}, x, layers=True)[1], atol=1e-6)
    for ours, theirs in zip(
        other.apply({"params": converted}, x, layers=True), plain.apply({"params": params}, x, layers=True), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_bfloat16_computes_with_float32_parameters():
    vit, x = small(dtype=jnp.bfloat16), images(2, 16, 16, 3)
    params = vit.init(jax.random.key(0), x)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out = vit.apply({"params": params}, x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype("float32"), small().apply({"params": params}, x), atol=0.1)


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    dropped = drop_path(jnp.ones((4000, 2, 3)), jnp.float32(0.25), jax.random.key(0))
    per_example = np.asarray(dropped).reshape(4000, -1)
    assert (per_example == per_example[:, :1]).all()
    np.testing.assert_allclose(np.unique(per_example), [0, 4 / 3], rtol=1e-6)
    assert abs(per_example.mean() - 1) < 0.04
    vit, x = small(drop_path=0.9), images(2, 16, 16, 3)
    train = apply(vit, x, train=True, rngs={"drop_path": jax.random.key(3)})
    assert np.abs(train - apply(vit, x)).max() > 1e-3
    np.testing.assert_array_equal(apply(vit, x), apply(small(), x))


def test_uint8_is_normalised_and_float_taken_as_it_is():
    pixels = np.array([[[[0, 128, 255]]]], np.uint8)
    normed = normalise(pixels, (0.5, 0.5, 0.25), (0.5, 0.25, 0.5))
    np.testing.assert_allclose(normed, [[[[-1.0, (128 / 255 - 0.5) / 0.25, 1.5]]]], atol=1e-6)
    np.testing.assert_array_equal(normalise(normed, (9,) * 3, (9,) * 3), normed)


def test_initialisation_is_normal_with_deviation_002_uncut():
    params = ViT(8, 256, 1, 4).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    kernel = np.asarray(params["blocks"]["0"]["fc1"]["kernel"])
    assert abs(kernel.std() - 0.02) < 2e-4 and np.abs(kernel).max() > 0.07  # a cut at two deviations ends at 0.04
    assert not np.asarray(params["blocks"]["0"]["fc1"]["bias"]).any()
    assert (np.asarray(params["norm"]["scale"]) == 1).all()


class TestWrittenOutGradients:
    """Against JAX's own differentiation of the plain formula."""

    def test_gelu(self):
        x = jnp.linspace(-6, 6, 1001)
        plain = lambda x: jax.nn.gelu(x, approximate=False)  # noqa: E731
        np.testing.assert_allclose(layers.gelu(x), plain(x), atol=1e-6)  # 1 + erf cancels far on the left, as in the reference
        np.testing.assert_allclose(jax.vmap(jax.grad(layers.gelu))(x), jax.vmap(jax.grad(plain))(x), atol=2e-6)

    def test_gelu_in_bfloat16_is_the_exact_one_rounded(self):
        x = jnp.linspace(-4, 4, 501).astype(jnp.bfloat16)
        exact = jax.nn.gelu(x.astype("float32"), approximate=False)
        np.testing.assert_allclose(layers.gelu(x).astype("float32"), exact, rtol=2**-8, atol=1e-6)

    def test_gelu_keeps_its_input_only(self):
        _, backward = jax.vjp(layers.gelu, jnp.ones(8, jnp.bfloat16))
        assert [(kept.dtype, kept.shape) for kept in jax.tree.leaves(backward)] == [(jnp.bfloat16, (8,))]

    def test_layer_norm(self):
        x, scale, bias, weight = (
            jax.random.normal(key, shape)
            for key, shape in zip(jax.random.split(jax.random.key(0), 4), [(5, 7, 12), (12,), (12,), (5, 7, 12)], strict=True)
        )

        def plain(x, scale, bias):
            return jax.nn.standardize(x, epsilon=1e-6, algorithm="stable") * scale[None, None] + bias[None, None]

        layer = layers.LayerNorm(1e-6, jnp.float32)
        ours = lambda x, scale, bias: layer.apply({"params": {"scale": scale, "bias": bias}}, x)  # noqa: E731
        np.testing.assert_allclose(ours(x, scale, bias), plain(x, scale, bias), atol=2e-6)
        both = [jax.grad(lambda *a, f=f: (f(*a) * weight).sum(), argnums=(0, 1, 2))(x, scale, bias) for f in (ours, plain)]
        for mine, expected in zip(*both, strict=True):
            np.testing.assert_allclose(mine, expected, atol=1e-5)

    def test_layer_norm_as_gpus_have_it(self):
        """The written out gradients in fewer passes, of bfloat16 rows with a mean of many standard deviations among them."""
        x = jax.random.normal(jax.random.key(0), (6, 5, 64)) * 0.5 + jnp.arange(6.0)[:, None, None] ** 2
        x, scale, bias = x.astype(jnp.bfloat16), jnp.linspace(0.5, 2, 64), jnp.ones(64)
        gradient = jax.random.normal(jax.random.key(1), x.shape).astype(jnp.bfloat16)
        residuals = layers._layer_norm_forward(1e-6, x, scale, bias)[1]
        few = jax.jit(partial(layers._gradients_in_six_passes, 1e-6))(residuals, gradient)
        expected = layers._gradients_as_fused(residuals, gradient)
        for mine, other, tolerance in zip(few, expected, (1e-2, 1e-3, 1e-6), strict=True):
            np.testing.assert_allclose(np.float32(mine), np.float32(other), rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("lengths", [None, [9, 4, 1]])
    def test_attention(self, lengths):
        qkv, weight = (jax.random.normal(jax.random.key(i), (3, 9, width)) for i, width in ((0, 48), (1, 16)))
        lengths = None if lengths is None else jnp.array(lengths)

        def plain(qkv):
            q, k, v = jnp.moveaxis(qkv.reshape(3, 9, 3, 2, 8), 2, 0)
            return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths).reshape(3, 9, 16)

        def ours(qkv):
            return attend(*jnp.split(qkv, 3, axis=-1), 2, lengths)

        np.testing.assert_allclose(ours(qkv), plain(qkv), atol=2e-6)
        mine, expected = (jax.grad(lambda x, f=f: (f(x) * weight).sum())(qkv) for f in (ours, plain))
        np.testing.assert_allclose(mine, expected, atol=5e-6)


def test_padding_has_no_say_however_large_its_logits_are():
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 5, 16)) for i in range(3))
    lengths = jnp.array([3, 4])
    far = jnp.where(jnp.arange(5)[None, :, None] < lengths[:, None, None], k, 1e4 * jnp.sign(q[:, :1]))
    visible = (jnp.arange(5)[None, None] < lengths[:, None, None]).astype(jnp.float32)
    for options in ({"lengths": lengths}, {"visible": jnp.broadcast_to(visible, (2, 5, 5))}):
        plain, odd = (jax.vjp(lambda q, k, v: attend(q, k, v, 2, **options), q, keys, v) for keys in (k, far))  # noqa: B023
        np.testing.assert_allclose(odd[0], plain[0], atol=1e-6)
        for mine, expected in zip(odd[1](v), plain[1](v), strict=True):
            np.testing.assert_allclose(mine, expected, atol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_drop_path_drops_whole_examples_and_scales_the_others(rate):
    x = jnp.ones((1000, 2, 3))
    for given in (rate, jnp.float32(rate)):
        kept = np.asarray(drop_path(x, given, jax.random.key(0)))
        alive = kept[:, 0, 0] > 0
        np.testing.assert_allclose(kept, np.where(alive, 1 / (1 - rate), 0)[:, None, None] * np.ones((1, 2, 3)), rtol=1e-6)
        assert abs(alive.mean() - (1 - rate)) < 0.05


@pytest.mark.parametrize("changes", [{}, {"scan": True}, {"remat": "full"}], ids=str)
def test_wanted_tokens_are_those_of_the_full_output(changes):
    vit, x = small(**changes), images(2, 16, 16, 3)
    params = vit.init(jax.random.key(0), x)["params"]
    wanted = jnp.array([[3, 0, 3, 15], [1, 2, 9, 9]])
    whole = vit.apply({"params": params}, x)
    np.testing.assert_allclose(vit.apply({"params": params}, x, wanted=wanted), take_tokens(whole, wanted), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_float8_rounds_the_factors_of_the_blocks_products_only(dtype):
    x = images(2, 16, 16, 3)
    plain, rounded = small(dtype=dtype), small(dtype=dtype, float8=True)
    params = jax.tree.map(lambda leaf: 5 * leaf, plain.init(jax.random.key(0), x)["params"])
    exact, other = (np.asarray(jax.jit(vit.apply)({"params": params}, x), np.float32) for vit in (plain, rounded))
    assert 0.01 < np.abs(exact - other).mean() / np.abs(exact).mean() < 0.2  # three bits of mantissa: 6% a factor
    jaxpr = str(jax.make_jaxpr(lambda p: rounded.apply({"params": p}, x))(params))
    assert jaxpr.count("f8_e4m3fn[") >= 8 * rounded.depth  # two factors of four products, in every block
    zero = jax.tree.map(jnp.zeros_like, params)
    assert np.isfinite(np.asarray(rounded.apply({"params": zero}, x), np.float32)).all()
