"""as_custom_vjp: under every transformation, and the examples of docs/bridges.md in other people's libraries."""

import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import Ctx, as_custom_vjp, layers
from jaxnn.layers import dense_backward, dense_forward
from jaxnn.verify.judge.compare import largest_error
from jaxnn.verify.judge.rule import numbers

DOCS = (Path(__file__).parents[1] / "docs" / "bridges.md").read_text(encoding="utf-8")
EXAMPLES = dict(zip(("jax", "flax", "equinox"), re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL), strict=True))
PARAMS = {"w": numbers(1, 3, 3).astype(np.float32), "b": numbers(2, 3).astype(np.float32)}
X, DY = numbers(3, 4, 3).astype(np.float32), numbers(4, 4, 3).astype(np.float32)


def thrice(params, cache, dy):
    """Another backward than autodiff's, to see whose is run."""
    return jax.tree.map(lambda g: 3 * g, dense_backward(params, cache, dy))


DENSE = as_custom_vjp(dense_forward, thrice)


def test_a_bare_pair_under_grad_vmap_and_jit():
    def loss(params, x, dy):
        return jnp.vdot(DENSE(params, x), dy)

    @jax.jit
    def run(params, x, dy):
        each = jax.vmap(jax.grad(loss, (0, 1)), (None, 0, 0))(params, x[:, None], dy[:, None])
        cache = dense_forward(params, x)[1]
        return jax.grad(loss, (0, 1))(params, x, dy), each, thrice(params, cache, dy)

    batch, (dparams, dx), ours = run(PARAMS, X, DY)
    assert largest_error(batch, ours) < 1e-6
    assert largest_error((jax.tree.map(lambda g: g.sum(0), dparams), dx[:, 0]), ours) < 1e-6


def test_under_scan_and_as_hessian_vector_products():
    def loss(params, f):
        h, _ = jax.lax.scan(lambda h, x: (jnp.tanh(f(params, h + x[None])), None), jnp.asarray(X[:1]), X)
        return jnp.sum(jnp.square(h))

    right = as_custom_vjp(dense_forward, dense_backward)

    def plain(params, x):
        return dense_forward(params, x)[0]

    def products(f):
        return jax.jvp(jax.grad(lambda params: loss(params, f)), (PARAMS,), (jax.tree.map(jnp.ones_like, PARAMS),))

    ours, theirs = jax.jit(lambda: (products(right), products(plain)))()
    assert largest_error(ours, theirs) < 1e-5


def test_the_state_of_a_layer_goes_along_and_gets_no_gradient():
    layer = layers.batch_norm()
    f = as_custom_vjp(layer)
    params = {"scale": jnp.ones(3), "shift": jnp.zeros(3)}
    state = layers.batch_norm().init(jax.random.key(0), (1, 3))[2]

    def loss(params, state):
        y, after = f(params, state, X, Ctx(train=True))
        return jnp.vdot(y, DY) + after.mean.sum(), after

    (_, after), (dparams, dstate) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, state)
    np.testing.assert_allclose(after.mean, X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(dparams["shift"], DY.sum(0), rtol=1e-5)
    for leaf in jax.tree.leaves(dstate):
        np.testing.assert_array_equal(leaf, jnp.zeros_like(leaf))


def test_forward_mode_is_an_error_that_says_so():
    f = as_custom_vjp(layers.activation("tanh"))

    def value(x):
        return f({}, (), x, Ctx())[0]

    for forward_mode in (lambda: jax.jvp(value, (X,), (X,)), lambda: jax.jacfwd(value)(X)):
        with pytest.raises(TypeError, match=r"as_custom_vjp: forward-mode .* use jax\.vjp, jax\.grad or jax\.jacrev"):
            forward_mode()
    with pytest.raises(TypeError, match="forward-mode"):  # JAX's own words: our function has run before
        jax.jvp(jax.jit(value), (X,), (X,))
    with pytest.raises(ValueError, match=r"^activation|^tanh"):
        value(jnp.arange(3))


@pytest.mark.parametrize(
    "library", ["jax", pytest.param("flax", marks=pytest.mark.peers), pytest.param("equinox", marks=pytest.mark.peers)]
)
def test_the_examples_run_and_print_what_they_say(library, capsys):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader has it
        exec(compile(EXAMPLES[library], "bridges.md", "exec"), {"__name__": "bridges"})
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*\)  # (.*)", EXAMPLES[library], re.MULTILINE)
