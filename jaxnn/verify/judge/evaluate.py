"""The forward, the manual gradient and autodiff of a subject in float64 and in the user's precision.

Three ways to float64, tried in this order:
    retrace   the user's functions are traced under x64 with float64 arguments
    lift      their own jaxpr is evaluated in float64 arithmetic: where they draw random numbers (x64 would draw
              others), cast to a lower precision themselves, or cannot be traced under x64
    plain     NumPy code is called with float64 arrays
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.jax_internals import traced_name
from jaxnn.verify.judge.float64_jaxpr import equations, has_low_precision, in_float64, uses
from jaxnn.verify.judge.rule import representable
from jaxnn.verify.judge.structure import match
from jaxnn.verify.judge.subject import CannotVerify, Subject, called, describe_arguments
from jaxnn.verify.judge.witnesses import Differences, autodiff, quickly_compiled

_NOT_TRACEABLE = (
    jax.errors.TracerArrayConversionError,
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
)


class Gradients(NamedTuple):
    """Everything at a point, as NumPy arrays: y, and the leaves of both gradients."""

    y: tuple[np.ndarray, ...]
    manual: tuple[np.ndarray | None, ...]
    autodiff: tuple[np.ndarray, ...] | None  # None: NumPy code, or a loop that autodiff cannot reverse


class Evaluator:
    """Evaluates a subject at any point; every function is compiled once for each set of shapes."""

    def __init__(self, subject: Subject, careful: bool = False):
        self.subject = subject
        self.careful = careful  # the manual gradient step by step; the rest as in quickly_compiled
        self.x64_session = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
        self.overwrites = False  # NumPy code that changes its arguments in place
        self.own_dtypes = tuple(jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in subject.inputs)
        self.jaxpr = self._trace(subject.forward, "the forward", subject.inputs, subject.given)
        self.y = self._y()
        self.dy = (np.ones(()),) if subject.scalar else cotangent(0, self.y)
        own_dy = tuple(leaf.astype(y.dtype) for leaf, y in zip(self.dy, self.y, strict=True))
        self.backward_jaxpr = self._trace(self._leaves, "the manual gradient", subject.inputs, subject.given, own_dy)
        # JAX sees NumPy's float64 as float32: the truth is taken at that point.
        self.inputs = tuple(map(self._seen, subject.inputs))
        self.given = tuple(map(self._seen, subject.given))
        self.lifted, self._trace_x64 = self._must_lift()
        self.primitives = uses(self.jaxpr) if self.jaxpr is not None else set()
        self.differentiable = self.jaxpr is not None and self._is_differentiable()
        self.phi = Differences(self._phi, self.jaxpr is not None, careful)
        self._both = quickly_compiled(self._evaluate, careful)
        self._own = quickly_compiled(self._evaluate_own, careful)
        self._stripped = quickly_compiled(self._autodiff_stripped, careful)
        self._many = quickly_compiled(self._evaluate_many, careful)

    @property
    def traceable(self) -> bool:
        """Whether the manual gradient is JAX code; otherwise it is called with arrays."""
        return self.backward_jaxpr is not None

    def float64(self, inputs: tuple, given: tuple, dy: tuple) -> Gradients:
        """Everything at a point, in float64."""
        with jax.enable_x64(True):
            if self.jaxpr is None:
                y = tuple(np.asarray(leaf, np.float64) for leaf in self.subject.forward(_copies(inputs), given))
                return Gradients(y, self._plain_manual(inputs, given, dy), None)
            y, manual, truth = self._both(inputs, given, dy)
            if not self.traceable:
                manual = self._plain_manual(inputs, given, dy)
            elif self.careful:
                manual = self._manual(*jax.tree.map(jnp.asarray, (inputs, given, dy)))
            return Gradients(_arrays(y), _arrays(manual), _arrays(truth) if self.differentiable else None)

    def own(self, dy: tuple) -> tuple[Gradients, tuple]:
        """Everything at the user's point in the user's precision, and the manual leaves with their dtypes."""
        subject = self.subject
        dy = tuple(leaf.astype(y.dtype) for leaf, y in zip(dy, self.y, strict=True))
        if self.jaxpr is None:
            raw = self._plain_leaves(subject.inputs, subject.given, dy)
            return Gradients((), _arrays(raw), None), raw
        y, manual, truth = self._own(subject.inputs, subject.given, dy)
        if not self.traceable:
            manual = self._plain_leaves(subject.inputs, subject.given, dy)
        elif self.careful:
            manual = self._leaves(*jax.tree.map(jnp.asarray, (subject.inputs, subject.given, dy)))
        return Gradients(_arrays(y), _arrays(manual), _arrays(truth) if self.differentiable else None), manual

    def stripped(self, inputs: tuple, given: tuple, dy: tuple) -> tuple[np.ndarray, ...]:
        """Autodiff in float64 without the rules of custom_jvp and custom_vjp."""
        with jax.enable_x64(True):
            return _arrays(self._stripped(inputs, given, dy))

    def batched(self, points: list[tuple], given: tuple, dy: tuple) -> tuple[list, list]:
        """The manual gradient at several inputs by vmap and by scan: a list of leaf tuples each."""
        stacked = tuple(np.stack(leaves) for leaves in zip(*points, strict=True))
        with jax.enable_x64(True):
            if self.careful:
                args = jax.tree.map(jnp.asarray, (stacked, given, dy))
                mapped = jax.vmap(self._manual, (0, None, None))(*args)
                scanned = jax.lax.map(lambda inputs: self._manual(inputs, *args[1:]), args[0])
            else:
                mapped, scanned = self._many(stacked, given, dy)
            mapped, scanned = _arrays(mapped), _arrays(scanned)
        n = len(points)
        return [_at(mapped, i) for i in range(n)], [_at(scanned, i) for i in range(n)]

    def accepts(self, inputs: tuple, given: tuple, dy: tuple) -> bool:
        """Whether the manual gradient can be traced for arguments of other shapes; assumed of NumPy code."""
        if not self.traceable:
            return True
        dy_structs = self._structs(dy, [y.dtype for y in self.y])
        try:
            leaves = jax.eval_shape(
                self._leaves, self._structs(inputs, self.own_dtypes), self._given(given), dy_structs
            )
        except Exception:  # whatever the user's function raises for shapes it was not made for
            return False
        return all(leaf is None or leaf.shape == np.shape(x) for leaf, x in zip(leaves, inputs, strict=True))

    def shapes_of_y(self, inputs: tuple, given: tuple) -> tuple | None:
        """y's shapes for arguments of other shapes; None if the forward refuses them."""
        closed = self.jaxpr_at(inputs, given)
        return None if closed is None else tuple(closed.out_avals)

    def impure(self) -> str:
        """"forward" or "backward" if it gives two answers for the same arguments, "" if neither does."""
        subject = self.subject
        dy = tuple(leaf.astype(y.dtype) for leaf, y in zip(self.dy, self.y, strict=True))
        plain = (_copies(subject.inputs), subject.given)
        for name, f, jaxpr, args in (
            ("forward", subject.forward, self.jaxpr, plain),
            ("backward", self._leaves, self.backward_jaxpr, (*plain, dy)),
        ):
            if jaxpr is not None:
                structs = (self._structs(args[0], self.own_dtypes), *args[1:])
                again = jax.make_jaxpr(functools.partial(f))  # another object: JAX caches traces by function
                if _same_program(jaxpr, again(*structs)):
                    continue
            call = f if name == "forward" or jaxpr is not None else self._plain_leaves
            if not _equal(call(*args), call(*args)):
                return name
        return ""

    def primal(self, inputs: tuple, given: tuple) -> tuple[np.ndarray, ...] | None:
        """y as the forward of the pair returns it, in float64."""
        f = self.subject.primal
        if f is None or self.jaxpr is None:
            return None
        with jax.enable_x64(True):
            lifted = functools.partial(self._lift, f, False) if self.lifted else f
            return _arrays(quickly_compiled(lifted)(inputs, given))

    def plain_structure(self):
        """The structure of what NumPy code returns."""
        dy = tuple(leaf.astype(y.dtype) for leaf, y in zip(self.dy, self.y, strict=True))
        found = []

        def whole(inputs, given, dy):
            found.append(match(self.subject, self.subject.backward(inputs, given, dy)))
            return found[-1].leaves

        self._plain_leaves(self.subject.inputs, self.subject.given, dy, whole)
        return found[-1]

    def custom_rules(self) -> list[str]:
        """The names of the functions with custom rules in the forward."""
        if self.jaxpr is None:
            return []
        eqns = (eqn for eqn in equations(self.jaxpr) if eqn.primitive.name.startswith("custom_"))
        names = {traced_name(eqn) for eqn in eqns}
        return sorted(name for name in names if name.isidentifier())

    def operations(self, inputs: tuple, given: tuple) -> set[str] | None:
        """The names of the forward's operations for arguments of other shapes; None if it refuses them."""
        closed = self.jaxpr_at(inputs, given)
        return None if closed is None else uses(closed)

    def jaxpr_at(self, inputs: tuple, given: tuple):
        """The forward's jaxpr in the user's precision, for arguments of other shapes; None if it refuses them."""
        try:
            return jax.make_jaxpr(self.subject.forward)(self._structs(inputs, self.own_dtypes), self._given(given))
        except Exception:  # whatever the user's function raises for shapes it was not made for
            return None

    def _y(self) -> tuple:
        if self.jaxpr is not None:
            return tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in self.jaxpr.out_avals)
        subject = self.subject
        return tuple(map(np.asarray, subject.forward(_copies(subject.inputs), subject.given)))

    def _seen(self, leaf):
        """A float array in float64, rounded to the precision that the user's code sees it in."""
        if self.jaxpr is None or not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return wide(leaf)
        return wide(np.asarray(leaf).astype(jax.dtypes.canonicalize_dtype(leaf.dtype)))

    def _what(self) -> str:
        return describe_arguments(self.subject)

    def _trace(self, f: Callable, what: str, *args):
        """f's jaxpr in the user's precision; None if it is NumPy code, which is then called to check that it runs."""
        structs = (self._structs(args[0], self.own_dtypes), *args[1:])
        try:
            return jax.make_jaxpr(f)(*structs)
        except (CannotVerify, jax.errors.UnexpectedTracerError):
            raise
        except Exception as error:
            plain = self._plain_leaves if f == self._leaves else f
            try:
                plain(_copies(args[0]), *args[1:])
            except Exception as again:
                first = isinstance(error, _NOT_TRACEABLE)
                culprit = again if first else error

                def fail(*_):
                    raise culprit

                called(fail, what, self._what())
            return None

    def _is_differentiable(self) -> bool:
        """Whether autodiff can reverse the forward; it cannot reverse a while loop."""
        if "while" not in self.primitives:
            return True
        try:
            jax.eval_shape(self._autodiff_own, self._structs(self.subject.inputs, self.own_dtypes), self.subject.given)
        except ValueError:
            return False
        return True

    def _autodiff_own(self, inputs, given):
        dy = tuple(jnp.ones(y.shape, y.dtype) for y in self.y)
        return autodiff(lambda inputs: self.subject.forward(inputs, given), inputs, dy)

    def _must_lift(self) -> tuple[bool, bool]:
        """(whether to lift, whether the trace for it is made under x64 or in the user's precision).

        Random numbers are drawn in the user's precision; otherwise constants are better kept in float64.
        """
        if self.jaxpr is None:
            return False, False
        used = uses(self.jaxpr) | (uses(self.backward_jaxpr) if self.backward_jaxpr is not None else set())
        if any(name.startswith(("random_", "threefry", "rng_")) for name in used) and not self.x64_session:
            return True, False
        try:
            with jax.enable_x64(True):
                closed = [jax.make_jaxpr(self.subject.forward)(self.inputs, self.given)]
                if self.backward_jaxpr is not None:
                    closed.append(jax.make_jaxpr(self._leaves)(self.inputs, self.given, self.dy))
        except Exception:  # dtypes hard-coded by the user, say in the carry of a scan
            return True, False
        return any(has_low_precision(jaxpr) for jaxpr in closed), True

    # ------------------------------------------------------------ the functions, traced under x64

    def forward(self, inputs, given, strip: bool = False):
        """y in float64, whichever way is taken."""
        if not (self.lifted or strip):
            return self.subject.forward(inputs, given)
        return self._lift(self.subject.forward, strip, inputs, given)

    def _manual(self, inputs, given, dy):
        if not self.traceable:
            return ()
        if not self.lifted:
            return self._leaves(inputs, given, dy)
        return self._lift(self._leaves, False, inputs, given, dy)

    def _lift(self, f, strip, *args):
        """f in float64 arithmetic."""
        with jax.enable_x64(self._trace_x64 or self.x64_session):
            if self._trace_x64:
                structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args)
            else:
                structs = [self._structs(args[0], self.own_dtypes), self._given(args[1])]
                structs += [self._structs(dy, [y.dtype for y in self.y]) for dy in args[2:]]
            lifted = in_float64(f, *structs, strip=strip)
        return lifted(*args)

    def _leaves(self, inputs, given, dy):
        """The manual gradient's leaves, None for one that is missing."""
        return match(self.subject, self.subject.backward(inputs, given, dy)).leaves

    def _evaluate(self, inputs, given, dy):
        y = self.forward(inputs, given)
        truth = autodiff(lambda inputs: self.forward(inputs, given), inputs, dy) if self.differentiable else ()
        return y, () if self.careful else self._manual(inputs, given, dy), truth

    def _evaluate_own(self, inputs, given, dy):
        y = self.subject.forward(inputs, given)
        truth = ()
        if self.differentiable:
            truth = autodiff(lambda inputs: self.subject.forward(inputs, given), inputs, dy)
        return y, self._leaves(inputs, given, dy) if self.traceable and not self.careful else (), truth

    def _autodiff_stripped(self, inputs, given, dy):
        return autodiff(lambda inputs: self.forward(inputs, given, strip=True), inputs, dy)

    def _evaluate_many(self, stacked, given, dy):
        def manual(inputs):
            return self._manual(inputs, given, dy)

        return jax.vmap(manual)(stacked), jax.lax.map(manual, stacked)

    def _phi(self, leaves, rest):
        given, dy = rest
        y = self.forward(leaves, given) if self.jaxpr is not None else self.subject.forward(_copies(leaves), given)
        return sum((y * c).sum() for y, c in zip(y, dy, strict=True))

    # ------------------------------------------------------------ NumPy code

    def _plain_leaves(self, inputs, given, dy, leaves_of=None):
        """The manual gradient called with NumPy arrays, or with JAX's if it needs their methods (x.at)."""
        leaves_of = leaves_of or self._leaves
        arguments = _copies(inputs), _copies(given)
        try:
            leaves = leaves_of(*arguments, dy)
        except (AttributeError, TypeError):
            arrays = (tuple(map(jnp.asarray, inputs)), tuple(map(_jax_array, given)), tuple(map(jnp.asarray, dy)))
            return leaves_of(*arrays)
        self.overwrites |= not (_equal(arguments[0], _copies(inputs)) and _equal(arguments[1], _copies(given)))
        return leaves

    def _plain_manual(self, inputs, given, dy):
        return _arrays(self._plain_leaves(inputs, given, dy))

    # ------------------------------------------------------------ dtypes

    def _structs(self, leaves, dtypes):
        return tuple(jax.ShapeDtypeStruct(jnp.shape(a), d) for a, d in zip(leaves, dtypes, strict=True))

    def _given(self, given):
        """The given leaves as shapes, with the user's own dtypes."""
        dtypes = (jax.dtypes.canonicalize_dtype(leaf.dtype, True) for leaf in self.subject.given)
        return tuple(jax.ShapeDtypeStruct(jnp.shape(a), d) for a, d in zip(given, dtypes, strict=True))


def wide(leaf: Any) -> Any:
    """A float array in float64, anything else unchanged."""
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating):
        return np.asarray(leaf).astype(np.float64)
    return leaf


def cotangent(seed: int | list[int], y: tuple) -> tuple[np.ndarray, ...]:
    """Random numbers in y's shapes that every precision can represent."""
    rng = np.random.default_rng(seed)
    return tuple(representable(rng.normal(size=leaf.shape)) for leaf in y)


def _same_program(a, b) -> bool:
    """Whether two traces are the same; addresses of functions in the text do not count."""
    texts = [re.sub(r"0x[0-9a-f]+", "", str(jaxpr)) for jaxpr in (a, b)]
    return texts[0] == texts[1] and _equal(a.consts, b.consts)


def _equal(a, b) -> bool:
    try:
        return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))
    except TypeError:  # keys, None
        return True


def _copies(leaves) -> tuple:
    """NumPy copies; keys are left as they are."""
    return tuple(leaf if _is_key(leaf) else np.array(leaf) for leaf in leaves)


def _is_key(leaf) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _jax_array(leaf):
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)


def _arrays(leaves) -> tuple:
    return tuple(None if leaf is None else np.asarray(leaf).astype(np.float64) for leaf in leaves)


def _at(leaves, i):
    return tuple(None if leaf is None else leaf[i] for leaf in leaves)
