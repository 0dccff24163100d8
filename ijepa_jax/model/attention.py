"""Multi-head attention over token sequences, with tail padding given as lengths."""

import contextlib
import functools
import warnings
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp

from ijepa_jax.model.shapes import Array, Float, Int
from ijepa_jax.settings.architectures import ATTENTION


def attend(
    q: Float[Array, "b q d"],
    k: Float[Array, "b s d"],
    v: Float[Array, "b s d"],
    heads: int,
    lengths: Int[Array, " b"] | None = None,
    implementation: str = "auto",
    visible: Float[Array, "#b q s"] | None = None,
    automatic: bool = False,
) -> Float[Array, "b q d"]:
    """Softmax attention with scale `head_dim ** -0.5`.

    Args:
        q: [B, Q, D] queries, head after head.
        k: [B, S, D] keys.
        v: [B, S, D] values.
        heads: number of heads; divides D.
        lengths: [B] int32 number of valid keys in each sequence, the rest being padding at its tail that no query
            attends to; None where every one is valid (the compiled program then carries no mask).
        implementation: "xla" (any device), "cudnn" (NVIDIA GPUs, bfloat16 or float16 only), or "auto" (see `chosen`).
        visible: [B or 1, Q, S] float, 1.0 where a query may attend to a key, else 0.0; None: everywhere.
        automatic: whether its gradients are JAX's, which jax.jvp and jax.hessian need, and not written out.

    Returns:
        [B, Q, D], in the dtype of `q`; logits and softmax are float32.
    """
    if implementation not in ATTENTION:
        raise ValueError(f"attention {implementation!r} must be one of {', '.join(ATTENTION)}")
    width = q.shape[-1] // heads
    implementation = chosen(implementation, q.dtype, width, automatic or visible is not None)
    q_bqhd, k_bshd, v_bshd = (x.reshape(*x.shape[:-1], heads, width) for x in (q, k, v))
    if implementation == "cudnn":
        if visible is not None:
            raise ValueError("attention 'cudnn' leaves out padding at the tail only: predictor.context 'alone' needs 'xla'")
        out = jax.nn.dot_product_attention(q_bqhd, k_bshd, v_bshd, key_value_seq_lengths=lengths, implementation="cudnn")
        return out.reshape(q.shape)
    # Batch-major products: on CPU they run up to 1.4 times faster, forward and backward, than the [B, S, H, D] layout.
    q_bhqd, k_bhsd, v_bhsd = (x.swapaxes(1, 2) for x in (q_bqhd, k_bshd, v_bshd))
    visible = None if visible is None else visible[:, None]
    if lengths is not None:
        valid = (jnp.arange(k.shape[1])[None, None, None] < lengths[:, None, None, None]).astype(jnp.float32)
        visible = valid if visible is None else visible * valid
    attention = _plain if automatic else _softmax_attention
    out = attention(q_bhqd * width**-0.5, k_bhsd, v_bhsd, visible)
    return out.swapaxes(1, 2).reshape(q.shape)


def chosen(implementation: str, dtype: jnp.dtype, head_width: int, more_than_lengths: bool = False) -> str:
    """What computes attention where an implementation is asked for: "xla" or "cudnn".

    "auto" is cuDNN's fused kernel on NVIDIA GPUs that have it, for bfloat16 and heads of a width that it takes; but not for
    more than lengths, which are masks of which key each query sees, and gradients of higher order.
    """
    if implementation != "auto":
        return implementation
    fits = dtype == jnp.bfloat16 and head_width % 8 == 0 and head_width <= 128 and not more_than_lengths
    return "cudnn" if fits and _cudnn_at_hand() else "xla"


_compiled_for: ContextVar[str | None] = ContextVar("compiled_for", default=None)


@contextlib.contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """What is traced within is for devices of a platform ("gpu", "tpu", "cpu") that are not there."""
    token = _compiled_for.set(platform)
    try:
        yield
    finally:
        _compiled_for.reset(token)


def _cudnn_at_hand() -> bool:
    elsewhere = _compiled_for.get()
    return elsewhere == "gpu" if elsewhere else jax.default_backend() == "gpu" and _cudnn_works()


@functools.cache
def _cudnn_works() -> bool:
    """Whether cuDNN's attention runs here, forward and backward, tried once; where it does not a warning tells why."""

    def total(q: jax.Array) -> jax.Array:
        return attend(q, q, q, 1, jnp.full(2, 8), "cudnn").astype(jnp.float32).sum()

    try:
        with jax.ensure_compile_time_eval():  # also where a step is being traced
            jax.block_until_ready(jax.jit(jax.grad(total))(jnp.ones((2, 16, 64), jnp.bfloat16)))
    except Exception as error:  # whatever a driver, a library or an old GPU comes up with
        line = str(error).strip().partition("\n")[0]
        warnings.warn(f"attention is computed by XLA, as cuDNN's does not run here: {line}", stacklevel=2)
        return False
    return True


def _plain(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None) -> jax.Array:
    """softmax(q k') v on [B, H, Q or S, d] over keys that are `visible` (1.0, else 0.0: [B or 1, 1, Q or 1, S])."""
    return _attention_forward(q, k, v, visible)[0]


# Written out, as a step on two CPU cores takes 10% longer with automatic gradients (docs/benchmarks.md).
_softmax_attention = jax.custom_vjp(_plain)


def _attention_forward(q, k, v, visible):
    logits = _product("bhqd,bhkd->bhqk", q, k, jnp.float32)
    if visible is not None:  # before the maximum: beside a logit far above them, those of valid keys would all vanish
        logits = jnp.where(visible > 0, logits, -jnp.inf)
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    weights = (weights / weights.sum(axis=-1, keepdims=True)).astype(q.dtype)
    return _product("bhqk,bhkd->bhqd", weights, v, q.dtype), (q, k, v, weights)


def _attention_backward(residuals, gradient):
    q, k, v, weights = residuals
    d_weights = _product("bhqd,bhkd->bhqk", gradient, v, jnp.float32)
    d_logits = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))
    d_logits = d_logits.astype(q.dtype)
    # XLA's CPU compiler has fast products over the last dimension of a first factor only: these two get transposed copies.
    d_logits_bhkq, weights_bhkq = (stored_on_cpu(x.swapaxes(-1, -2)) for x in (d_logits, weights))
    return (
        _product("bhqk,bhkd->bhqd", d_logits, k, q.dtype),
        _product("bhkq,bhqd->bhkd", d_logits_bhkq, q, q.dtype),
        _product("bhkq,bhqd->bhkd", weights_bhkq, gradient, q.dtype),
        None,
    )


_softmax_attention.defvjp(_attention_forward, _attention_backward)


def _product(subscripts: str, a: jax.Array, b: jax.Array, dtype) -> jax.Array:
    return jnp.einsum(subscripts, a, b, precision=matmul_precision(a.dtype), preferred_element_type=dtype)


def stored_on_cpu(x: jax.Array) -> jax.Array:
    """The array itself; on CPU the compiler then fuses what makes it with nothing that reads it."""
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


def matmul_precision(dtype) -> jax.lax.Precision | None:
    """Float32 means float32: without this, TPUs multiply in bfloat16 and GPUs in TF32 when asked for float32."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
