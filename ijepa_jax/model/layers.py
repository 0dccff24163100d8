"""Layers of the transformer. Gradients are written out where that pays, unless they are `automatic`, as jax.jvp needs them.

With automatic gradients of norms a step on two CPU cores takes 7% longer (ViT-pico on scenes) and 12% (on Fashion-MNIST).
Linear layers need theirs where weights are split over devices (see `Dense`), and are 4 to 5% faster for it; GELU was not.
"""

import operator
from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ijepa_jax.model.attention import matmul_precision


def along_last(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Weights [D] as [1, ..., 1, D], of the rank of an array [..., D] that they are for."""
    return jax.lax.broadcast_to_rank(weights, x.ndim)


INITIAL_STD = 0.02  # of linear layers' weights


class Dense(nn.Module):
    """A linear layer with the method's initialisation: weights normal with standard deviation 0.02, zero biases.

    Its gradient is written out for what sharded training needs and the compiler does not do by itself: the weights' gradient is
    summed over examples, and so over devices, in float32 whatever the dtype, and weights that are split over devices are put
    together where they are used, in the dtype of the computation, instead of activations being split like them.
    """

    features: int
    dtype: jnp.dtype
    float8: bool = False  # whether both factors are rounded to eight bits, which some GPUs multiply twice as fast; no gradients
    parts: int = 1  # how many equal parts the output comes in, each a product of its own
    automatic: bool = False  # whether its gradients are JAX's

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array | tuple[jax.Array, ...]:
        kernel = self.param("kernel", nn.initializers.normal(INITIAL_STD), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype)
        if self.float8:
            largest = jnp.abs(kernel).max() / _FLOAT8_MAX
            x = _as_float8(x, jnp.float32(_ACTIVATION_SCALE))
            kernel = _as_float8(kernel.astype(self.dtype), jnp.exp2(jnp.ceil(jnp.log2(largest + 1e-30))))
        outputs = (_linear_plain if self.automatic else _linear)(self.parts, x, kernel, bias)
        return outputs[0] if self.parts == 1 else outputs


_FLOAT8_MAX = float(jnp.finfo(jnp.float8_e4m3fn).max)  # 448
# Of activations, 0.0002 to 56 are told apart. A scale that followed the batch would make targets depend on other images.
_ACTIVATION_SCALE = 2.0**-3


def _as_float8(x: jax.Array, scale: jax.Array) -> jax.Array:
    """An array rounded to float8_e4m3fn under a power of two, as the compiler expects factors that it is to multiply so."""
    rounded = jnp.clip(x.astype(jnp.float32) / scale, -_FLOAT8_MAX, _FLOAT8_MAX).astype(jnp.float8_e4m3fn)
    return rounded.astype(x.dtype) * scale.astype(x.dtype)


def _linear_plain(parts: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
    return _linear_forward(parts, x, kernel, bias)[0]


_linear = jax.custom_vjp(_linear_plain, nondiff_argnums=(0,))


def _linear_forward(parts, x, kernel, bias):
    last = (x.ndim - 1,)
    pairs = zip(_kernels(parts, kernel, x), jnp.split(_whole(bias, x.dtype), parts), strict=True)
    outputs = [_contract(x, last, k, (0,), x.dtype) + along_last(b, x) for k, b in pairs]
    return tuple(outputs), (x, kernel)


def _linear_backward(parts, residuals, gradients):
    x, kernel = residuals
    rows, last = tuple(range(x.ndim - 1)), (x.ndim - 1,)
    pairs = zip(gradients, _kernels(parts, kernel, x), strict=True)
    d_x = reduce(operator.add, [_contract(gradient, last, k, (1,), x.dtype) for gradient, k in pairs])
    # one product for the weights' gradient: of several, what is split over devices would have to be exchanged
    gradient = jnp.concatenate(gradients, axis=-1)
    # XLA's CPU compiler copies the first one, transposed: the narrower is to be that (of bfloat16 it knows one order only)
    if x.shape[-1] <= gradient.shape[-1] or x.dtype != kernel.dtype:
        d_kernel = _contract(x, rows, gradient, rows, kernel.dtype)
    else:
        d_kernel = _contract(gradient, rows, x, rows, kernel.dtype).T
    return d_x, d_kernel, _sum_rows(gradient, rows, kernel.dtype)


def _kernels(parts: int, kernel: jax.Array, x: jax.Array) -> list[jax.Array]:
    return jnp.split(_whole(kernel, x.dtype), parts, axis=1)


def _sum_rows(x: jax.Array, rows: tuple[int, ...], dtype) -> jax.Array:
    """The sum over all axes but the last, in `dtype`."""
    if x.dtype != dtype:
        return x.sum(axis=rows, dtype=dtype)
    return _contract(jnp.ones(x.shape[:-1], dtype), rows, x, rows, dtype)  # on CPU a product is faster than a sum


_linear.defvjp(_linear_forward, _linear_backward)


def _contract(a: jax.Array, a_axes: tuple[int, ...], b: jax.Array, b_axes: tuple[int, ...], dtype) -> jax.Array:
    """The matrix product of two arrays of one dtype over pairs of axes, its sums accumulated and returned in `dtype`."""
    dimensions = ((a_axes, b_axes), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, matmul_precision(a.dtype), preferred_element_type=dtype)


def _whole(weights: jax.Array, dtype) -> jax.Array:
    """Weights in the dtype of a computation, all of them on every device of the mesh that they live on."""
    mesh = jax.typeof(weights).sharding.mesh
    weights = weights.astype(dtype)
    if mesh.empty or not mesh.are_all_axes_auto:  # no mesh, or one whose axes the caller handles
        return weights
    return jax.lax.with_sharding_constraint(weights, NamedSharding(mesh, PartitionSpec()))


class LayerNorm(nn.Module):
    """Layer norm over the last axis with scale and bias; statistics are float32 whatever the dtype."""

    epsilon: float
    dtype: jnp.dtype
    automatic: bool = False  # whether its gradients are JAX's

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        norm = _layer_norm_plain if self.automatic else _layer_norm
        return norm(self.epsilon, x.astype(self.dtype), scale, bias)


def _layer_norm_plain(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return _layer_norm_forward(epsilon, x, scale, bias)[0]


_layer_norm = jax.custom_vjp(_layer_norm_plain, nondiff_argnums=(0,))


def _layer_norm_forward(epsilon, x, scale, bias):
    mean, inverse = _moments(epsilon, x)
    normed = (x.astype(jnp.float32) - mean) * inverse
    return (normed * along_last(scale, x) + along_last(bias, x)).astype(x.dtype), (x, mean, inverse, scale)


def _moments(epsilon: float, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each row's mean, and one over its standard deviation, in float32."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    return mean, jax.lax.rsqrt(jnp.square(wide - mean).mean(axis=-1, keepdims=True) + epsilon)


def _layer_norm_backward(epsilon, residuals, gradient):
    if residuals[0].dtype != jnp.bfloat16:
        return _gradients_as_fused(residuals, gradient)
    for_gpus = partial(_gradients_in_six_passes, epsilon)
    return jax.lax.platform_dependent(residuals, gradient, cuda=for_gpus, default=_gradients_as_fused)


def _gradients_as_fused(residuals, gradient):
    """Gradients of the input, the scale and the bias, as the compiler fuses what they have in common."""
    x, mean, inverse, scale = residuals
    gradient = gradient.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * inverse
    scaled = gradient * along_last(scale, x)
    d_x = scaled - scaled.mean(axis=-1, keepdims=True) - normed * (scaled * normed).mean(axis=-1, keepdims=True)
    rows = tuple(range(x.ndim - 1))
    return (inverse * d_x).astype(x.dtype), (gradient * normed).sum(axis=rows), gradient.sum(axis=rows)


def _gradients_in_six_passes(epsilon, residuals, gradient):
    """Likewise, with nothing in common but what is read, as an array in float32 would be written and read for that.

    Three passes are for the gradient of the input, one for statistics, which are taken anew since to keep them costs the
    forward pass two, and two for the gradients of scale and bias.
    """
    x, scale = residuals[0], residuals[-1]
    d_x, *_ = _gradients_as_fused((x, *_moments(epsilon, x), scale), gradient)
    x, gradient = jax.lax.optimization_barrier((x, gradient))
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(wide).mean(axis=-1, keepdims=True) - jnp.square(mean)
    mean, inverse = jax.lax.optimization_barrier((mean, jax.lax.rsqrt(jnp.maximum(variance, 0) + epsilon)))
    return d_x, *_gradients_as_fused((x, mean, inverse, scale), gradient)[1:]


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@partial(jax.checkpoint, prevent_cse=False)  # scanned blocks would keep three float32 arrays of it instead of its input
def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU; jax.nn.gelu's erfc costs twice as much on CPU."""
    wide = x.astype(jnp.float32)  # 1 + erf cancels on the left, which bfloat16 cannot afford
    return (wide * 0.5 * (1 + jax.lax.erf(wide * 2**-0.5))).astype(x.dtype)
