"""What is read of jaxprs is the same in every version of JAX, and read in one place."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnn.verify
from jaxnn.verify import jax_internals
from jaxnn.verify.judge.float64_jaxpr import in_float64

W, XS = np.arange(6.0, dtype=np.float32).reshape(2, 3), np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


def of(name, f, *args):
    """The equation of that name in f's jaxpr."""
    return next(eqn for eqn in jax.make_jaxpr(f)(*args).jaxpr.eqns if eqn.primitive.name == name)


def everything(xs, w, c):
    return jax.lax.scan(lambda c, x: ((c[0] + w @ x, c[1] * 2), (c[0], x[0])), c, xs, reverse=True)


SCANS = {  # function, arguments, (consts, carry, xs), length, reverse
    "everything": (everything, (XS, W, (np.zeros(2, np.float32), np.float32(1))), (1, 2, 1), 4, True),
    "no xs": (
        lambda c, w: jax.lax.scan(lambda c, _: (w * c, None), c, None, 5),
        (np.ones(3, np.float32), np.float32(2)),
        (1, 1, 0),
        5,
        False,
    ),
    "a map": (lambda xs: jax.lax.map(jnp.sum, xs), (XS,), (0, 0, 1), 4, False),
    "numbers": (lambda xs: jax.lax.scan(lambda c, x: (c + x, c), xs[0] * 0, xs), (XS[0],), (0, 1, 1), 3, False),
    "no step": (lambda c, xs: jax.lax.scan(lambda c, x: (c + x, x), c, xs), (XS[0], XS[:0]), (0, 1, 1), 0, False),
    "keys": (
        lambda keys, c: jax.lax.scan(lambda c, k: (c + jax.random.uniform(k, (3,)), k), c, keys),
        (jax.random.split(jax.random.key(0), 2), np.ones(3, np.float32)),
        (0, 1, 1),
        2,
        False,
    ),
}


@pytest.mark.parametrize("name", SCANS)
def test_the_parts_of_a_scan(name):
    f, args, sizes, length, reverse = SCANS[name]
    eqn = of("scan", f, *args)
    names = [f"arg {k}" for k in range(len(eqn.invars))]
    consts, carry, xs, body, n, backwards, _ = jax_internals.scan_parts(eqn, names)
    assert ((len(consts), len(carry), len(xs)), n, backwards) == (sizes, length, reverse)
    assert [*consts, *carry, *xs] == names
    assert len(body.jaxpr.outvars) == len(eqn.outvars)


def test_the_parts_of_a_while_loop_and_of_a_cond():
    eqn = of("while", lambda a, b: jax.lax.while_loop(lambda c: c < a, lambda c: c * b + b, a - 9), 3.0, 2.0)
    loop = jax_internals.while_parts(eqn, ["a", "b", "c"])
    assert (loop.of_proceed, loop.of_body, loop.carry) == (["a"], ["b"], ["c"])
    assert [len(j.jaxpr.outvars) for j in (loop.proceed, loop.body)] == [1, 1]
    cond = of("cond", lambda x: jax.lax.cond(x > 0, jnp.sin, jnp.cos, x), 1.0)
    assert [b.jaxpr.eqns[0].primitive.name for b in jax_internals.branches(cond)] == ["cos", "sin"]


@jax.custom_jvp
def doubled(x):
    return 2 * x


doubled.defjvp(lambda xs, dxs: (doubled(*xs), 2 * dxs[0]))


@jax.custom_vjp
def tripled(x):
    return 3 * x


tripled.defvjp(lambda x: (tripled(x), None), lambda _, dy: (3 * dy,))


@pytest.mark.parametrize("f", [doubled, tripled, jax.jit(jnp.sin), jax.checkpoint(lambda x: jnp.sin(x) * 2)])
def test_calls(f):
    [eqn] = jax.make_jaxpr(f)(1.0).jaxpr.eqns
    inside = jax_internals.called(eqn)
    assert eqn.primitive.name in jax_internals.CALLS
    assert inside is not None
    assert inside.jaxpr.eqns
    assert jax_internals.traced_name(eqn) in ("doubled", "tripled", "sin", "<lambda>")
    assert list(jax_internals.sub_jaxprs(eqn)) == [inside.jaxpr]


def test_what_is_no_call():
    for eqn in (of("scan", *SCANS["a map"][:1], XS), of("add", lambda x: x + 1, 1.0)):
        assert jax_internals.called(eqn) is None


def test_where_code_comes_from():
    eqn = of("sin", lambda x: jnp.sin(x), 1.0)
    assert Path(__file__).name in {Path(frame.file_name).name for frame in jax_internals.frames(eqn)}
    [call] = jax.make_jaxpr(jax.jit(everything))(*SCANS["everything"][1]).jaxpr.eqns
    inside = jax_internals.called(call)
    assert inside is not None
    assert Path(jax_internals.function_source(inside).rpartition(":")[0]).name == Path(__file__).name


def test_a_linear_system_in_float64():
    """The truth of a gradient through jnp.linalg.solve, which has its own rule of reverse mode."""

    def f(a, b):
        return jnp.sum(jnp.linalg.solve(a, b) ** 2)

    a, b = np.array([[3, 1], [-1, 2]], np.float32), np.array([1, 0.1], np.float32)
    g = in_float64(f, a, b)
    with jax.enable_x64(True):
        wide = (np.asarray(a, float), np.array([1, 0.1]))
        for found, expected in zip(jax.grad(g, (0, 1))(*wide), jax.grad(f, (0, 1))(*wide), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_nothing_else_looks_into_jax():
    folder = Path(jaxnn.verify.__file__).parent
    peeks = re.compile(r"jax\.(core|extend|interpreters)\b|eqn\.params\[|eqn\.params\.get|debug_info|source_info")
    found = [path.name for path in folder.rglob("*.py") if peeks.search(path.read_text(encoding="utf-8"))]
    assert found == ["jax_internals.py"]
