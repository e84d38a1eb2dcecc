"""Evidence for the diagnoses' own tests: a forward, a manual gradient and a point, without the verifier around them."""

import jax
import numpy as np

from jaxnn.verify.explain.evidence import Evidence


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def evidence(f, manual, inputs: dict, given: dict) -> Evidence:
    """What the verifier hands to a diagnosis: f(*inputs, *given) is a scalar, manual(...) its claimed gradient."""
    n = len(inputs)
    derivative = jax.grad(f, argnums=tuple(range(n)))

    def again(inputs, given, dy):
        with jax.enable_x64(True), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            mine = tuple(np.asarray(m) for m in manual(*inputs, *given))
            return mine, tuple(np.asarray(t) for t in derivative(*inputs, *given))

    point = tuple(inputs.values()), tuple(given.values()), (np.ones(()),)
    mine, truth = again(*point)
    wrong = tuple(m.shape != t.shape or bool(np.abs(m - t).max() > 1e-9) for m, t in zip(mine, truth, strict=True))
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        jaxpr = jax.make_jaxpr(f)(*point[0], *point[1])
    y = (np.ones(()),)
    return Evidence(*point, y, mine, truth, wrong, tuple(inputs), tuple(given), jaxpr, again)
