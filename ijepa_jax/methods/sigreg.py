"""SIGReg (Balestriero and LeCun, arXiv 2511.08544): how far embeddings are from a standard normal, in random directions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.model.shapes import Array, Float


class Quadrature(NamedTuple):
    """The integral over [-furthest, furthest], folded by its symmetry: a trapezoid rule at so many knots from 0 on."""

    knots: int = 17
    furthest: float = 3.0

    def check(self, names: str = "knots") -> None:
        """Raises ValueError for an even number of knots, and for fewer than three."""
        if self.knots < 3 or self.knots % 2 == 0:
            raise ValueError(f"{names} {self.knots} must be an odd number, 3 or more")


RELEASED = Quadrature()  # the authors' default
_PART = 256  # directions that are computed at a time


def directions(key: jax.Array, features: int, slices: int) -> Float[Array, "d m"]:
    """Random unit vectors, float32 [D, M], as columns; the same on all devices, as the key is."""
    drawn = jax.random.normal(key, (features, slices))
    return drawn / jnp.linalg.norm(drawn, axis=0, keepdims=True)


def sigreg(
    x_vnd: Float[Array, "*v n d"],
    directions_dm: Float[Array, "d m"],
    quadrature: Quadrature = RELEASED,
    *,
    automatic: bool = False,
) -> Float[Array, "*v"]:
    """The Epps-Pulley statistic of N samples, the mean over directions; leading axes are samples of their own.

    N times the integral of the squared difference of their characteristic function and a standard normal's, under a window
    exp(-t^2 / 2). Of true normals it is about 1.05, whatever N, and not 0. Where `x_vnd` is split over devices N counts all of
    them: only means over rows, one number for each knot and direction, are exchanged.

    Memory is that of one array [N, M], and of some for a part of the directions, whatever the knots: parts and knots are passed
    one after the other, for gradients too; `automatic`, whose derivatives have derivatives, keeps all knots for them.

    Raises ValueError for no directions, and for knots that `Quadrature.check` refuses.
    """
    quadrature.check()
    if not directions_dm.shape[1]:
        raise ValueError("the statistic is a mean over directions: there must be one")
    characteristic = _means if automatic else _characteristic
    step = quadrature.furthest / (quadrature.knots - 1)
    t_k = step * np.arange(1, quadrature.knots)  # at knot 0 both functions are 1
    window_k = np.exp(-(t_k**2) / 2)
    weight_k = window_k * np.where(t_k == t_k[-1], step, 2 * step)
    x_vnd = x_vnd.astype(jnp.float32)

    def along(direction_d: jax.Array) -> jax.Array:
        y_vn = jnp.matmul(x_vnd, direction_d, precision=jax.lax.Precision.HIGHEST)
        cos_kv, sin_kv = characteristic(y_vn, jnp.float32(t_k))
        window_kv, weight_kv = (jnp.float32(of).reshape(-1, *[1] * (cos_kv.ndim - 1)) for of in (window_k, weight_k))
        return (weight_kv * (jnp.square(cos_kv - window_kv) + jnp.square(sin_kv))).sum(axis=0)

    return x_vnd.shape[-2] * jax.lax.map(along, directions_dm.T, batch_size=_PART).mean(axis=0)


def _means(y_vn: jax.Array, t_k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means over samples of cos(t y) and sin(t y), [K, V] each."""

    def at(_, t):
        return None, (jnp.cos(t * y_vn).mean(axis=-1), jnp.sin(t * y_vn).mean(axis=-1))

    return jax.lax.scan(at, None, t_k)[1]


_characteristic = jax.custom_vjp(_means)


def _characteristic_forward(y_vn, t_k):
    return _means(y_vn, t_k), (y_vn, t_k)


def _characteristic_backward(kept, gradients):
    y_vn, t_k = kept

    def add(d_y_vn, knot):
        t, d_cos_v, d_sin_v = knot
        d_cos, d_sin = (t / y_vn.shape[-1] * gradient[..., None] for gradient in (d_cos_v, d_sin_v))
        return d_y_vn + d_sin * jnp.cos(t * y_vn) - d_cos * jnp.sin(t * y_vn), None

    return jax.lax.scan(add, jnp.zeros_like(y_vn), (t_k, *gradients))[0], None


_characteristic.defvjp(_characteristic_forward, _characteristic_backward)
