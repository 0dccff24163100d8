"""Types of arrays by dtype and shape, `Float[Array, "b n d"]`: jaxtyping's, which tests check while a step is traced."""

from typing import Any

from jax import Array

try:
    from jaxtyping import Bool, Float, Int, Shaped
except ImportError:  # a bare GPU image: there they say nothing but that it is an array

    class Shaped:
        """Any array."""

        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Bool = Float = Int = Shaped

__all__ = ["Array", "Bool", "Float", "Int", "Shaped"]
