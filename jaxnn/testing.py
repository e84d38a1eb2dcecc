"""A hand-written gradient in your own tests: if it is wrong, the failure's message is the verifier's report.

    from jaxnn.testing import assert_grad

    def test_my_gradient():
        assert_grad(loss, manual_grad, params, x, y)
"""

from collections.abc import Callable
from typing import Any

from jaxnn.layer import Layer
from jaxnn.verify.verifier import verify_custom_vjp, verify_grad, verify_layer, verify_pair, verify_vjp


def assert_grad(loss: Callable, manual_grad: Callable, params: Any, *args: Any, **options: Any) -> None:
    """WrongGradient, an AssertionError, unless `verify_grad` of the same arguments finds the gradient right."""
    __tracebackhide__ = True  # pytest's traceback ends in the test
    verify_grad(loss, manual_grad, params, *args, **options).raise_if_wrong()


def assert_vjp(f: Callable, f_fwd: Callable, f_bwd: Callable, *args: Any) -> None:
    """The same for `verify_vjp`."""
    __tracebackhide__ = True
    verify_vjp(f, f_fwd, f_bwd, *args).raise_if_wrong()


def assert_custom_vjp(f: Callable, *args: Any) -> None:
    """The same for `verify_custom_vjp`."""
    __tracebackhide__ = True
    verify_custom_vjp(f, *args).raise_if_wrong()


def assert_pair(forward: Callable, backward: Callable, *args: Any) -> None:
    """The same for `verify_pair`."""
    __tracebackhide__ = True
    verify_pair(forward, backward, *args).raise_if_wrong()


def assert_layer(layer: Layer, x: Any, **options: Any) -> None:
    """The same for `verify_layer`."""
    __tracebackhide__ = True
    verify_layer(layer, x, **options).raise_if_wrong()
