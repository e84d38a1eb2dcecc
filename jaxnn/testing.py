"""A hand-written gradient in your own tests: if it is wrong, the failure's message is the verifier's report.

    from jaxnn.testing import assert_grad

    def test_my_gradient():
        assert_grad(loss, manual_grad, params, x, y)
"""

from collections.abc import Callable
from typing import Any

from jaxnn.layer import Layer
from jaxnn.verify.verifier import verify_grad, verify_layer, verify_vjp


def assert_grad(loss: Callable, manual_grad: Callable, params: Any, *args: Any, **options: Any) -> None:
    """WrongGradient, an AssertionError, unless `verify_grad` of the same arguments finds the gradient right."""
    __tracebackhide__ = True  # pytest's traceback ends in the test
    verify_grad(loss, manual_grad, params, *args, **options).raise_if_wrong()


def assert_vjp(*functions_and_args: Any) -> None:
    """The same for `verify_vjp`: (f, f_fwd, f_bwd, *args), a custom_vjp function, or a forward and backward pair."""
    __tracebackhide__ = True
    verify_vjp(*functions_and_args).raise_if_wrong()


def assert_layer(layer: Layer, x: Any, **options: Any) -> None:
    """The same for `verify_layer`."""
    __tracebackhide__ = True
    verify_layer(layer, x, **options).raise_if_wrong()
