"""The shapes that signatures tell are those that arrays have, from images to the loss and to features."""

import functools
import inspect

import jax
import jax.numpy as jnp
import pytest
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

from ijepa_jax.methods import ijepa
from ijepa_jax.model import attention, encoder, predictor, vit
from tests import small


@pytest.fixture
def checked(monkeypatch) -> list[str]:
    """Has every function of the networks and of I-JEPA whose signature tells shapes hold to them; gives their names."""
    names = []
    for module in (attention, encoder, predictor, vit, ijepa):
        for owner in (
            module,
            *(of for of in vars(module).values() if inspect.isclass(of) and of.__module__ == module.__name__),
        ):
            for name, function in list(vars(owner).items()):
                if inspect.isfunction(function) and "jaxtyping." in str(inspect.signature(function)):
                    monkeypatch.setattr(owner, name, functools.wraps(function)(jaxtyped(typechecker=beartype)(function)))
                    names.append(f"{owner.__name__}.{name}")
    return names


@pytest.mark.parametrize("options", [{}, {"scan": True}, {"positions": "table"}])
@pytest.mark.parametrize("masks", [{}, {"mode": "pad", "context_patches": 20}, {"num_context_blocks": 2}])
def test_arrays_have_the_shapes_that_signatures_tell(checked, options, masks):
    assert len(checked) >= 15 and {"ViT.__call__", "Predictor.__call__", "IJepa.predict", "Encoder.represent"} <= {*checked}
    method = small.method(masks=masks, **options)
    params = jax.eval_shape(method.init, jax.random.key(0))
    batch = {name: jnp.asarray(array) for name, array in small.batch(method).items()}
    jax.eval_shape(method.loss, params, method.target(params), batch, jax.random.key(0))
    represent = functools.partial(method.backbone().represent, kinds=encoder.KINDS[:-1])  # there is no class token
    jax.eval_shape(represent, params["encoder"], batch["image"])


def test_other_shapes_are_refused_by_the_check(checked):
    with pytest.raises(TypeCheckError):
        vit.take_tokens(jnp.zeros((2, 5, 3)), jnp.zeros((3, 1), int))
