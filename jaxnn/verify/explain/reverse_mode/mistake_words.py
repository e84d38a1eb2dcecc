"""How a mistake in a backward pass is described, and how to mend it, with the user's line that it is about."""

import math

import numpy as np

from jaxnn.verify.explain.reverse_mode.primitive_rules import Node
from jaxnn.verify.explain.reverse_mode.value_names import OPERATION, Names, size_name


class Words(Names):
    """The texts for a mistake at a node's operand k."""

    def missing(self) -> str:
        v = self.origin(self.node.ins[self.k])
        path = self.path()
        beside = self.branch() if path.startswith("the contribution") else ""
        text = f"{path} is missing in the backward pass{self.where}{beside}: "
        number = len(self.graph.uses.get(v, ()))
        if number > 1:
            return text + f"the gradient of {self.value(v)} is the sum over all of its uses, add it"
        return text + "the gradient is stopped there, add it"

    def flows(self) -> str:
        operation = OPERATION.get(self.node.name, self.node.name)
        return (
            f"the gradient must not flow through {operation} in {self.line()}; here it passes as if through the "
            f"identity"
        )

    # ------------------------------------------------------------ elementwise

    def derivative_missing(self) -> str:
        if self.node.name == "neg":
            return f"the minus sign is missing {self.passes()}: multiply by -1"
        of = self.operation()
        return f"the derivative of {of} ({self.formula()}) is missing {self.passes()}: multiply by it"

    def derivative_slip(self, said: str) -> str:
        formula = "1 where z > 0, else 0" if self.node.name == "max" else self.formula()
        return f"the derivative of {self.operation()} is wrong {self.passes()}: {said} is used in place of {formula}"

    def constant_lost(self, c: float) -> str:
        return f"the constant {c:.6g} (an epsilon) is left out of the derivative of {self.operation()} {self.passes()}"

    def at_output(self) -> str:
        z = self.value(self.node.ins[0])
        return (
            f"the derivative of {self.operation()} ({self.formula()}) is taken at its output a instead of its input z "
            f"{self.passes()}: evaluate it at {z}, the pre-activation"
        )

    def derivative_twice(self) -> str:
        return (
            f"the derivative of {self.operation()} ({self.formula()}) is applied twice {self.passes()}: apply it once"
        )

    def derivative_at(self, u: int) -> str:
        return (
            f"the derivative of {self.operation()} is taken at {self.timed(u)} instead of "
            f"{self.timed(self.node.ins[0])} {self.passes()}"
        )

    def derivative_of_output(self, u: int) -> str:
        return (
            f"the derivative of {self.operation()} is formed from {self.timed(u)} instead of its own output "
            f"{self.timed(self.node.outs[0])} {self.passes()}"
        )

    def other_derivative(self, words: str) -> str:
        of = "relu (1 where z > 0, else 0)" if self.node.name == "max" else f"{self.operation()} ({self.formula()})"
        return f"the derivative {words} is used {self.passes()} where the derivative of {of} belongs"

    def is_mask(self, v: int) -> bool:
        x = self.graph.values[v]
        if np.size(x) < 2 or not np.all(np.isfinite(x)):
            return False
        levels = np.unique(x)
        return len(levels) == 2 and levels[0] == 0

    def factor(self, v: int) -> str:
        """A factor, named."""
        x = self.graph.values[v]
        if np.size(x) and v not in self.graph.active and np.all(x == np.ravel(x)[0]):
            return f"the factor {float(np.ravel(x)[0]):.6g}"
        name, _ = self.statistic(v)
        if self.is_mask(v):
            return f"the mask {self.value(v)}"
        return f"the factor {self.value(v).removeprefix('the ')}" + (f" (of the {name})" if name else "")

    def factor_missing(self, j: int) -> str:
        return f"{self.factor(self.node.ins[j])} is missing {self.passes()}: multiply the gradient by it"

    def factor_twice(self, j: int) -> str:
        return f"{self.factor(self.node.ins[j])} is applied twice {self.passes()}: apply it once"

    def upside_down(self, j: int) -> str:
        did, must = ("divided", "multiply") if self.node.name == "mul" else ("multiplied", "divide")
        factor = self.factor(self.node.ins[j])
        return f"the gradient is {did} by {factor.removeprefix('the factor ')} {self.passes()}: {must} by it"

    def own_factor(self, k: int) -> str:
        a, b = self.value(self.node.ins[k]), self.value(self.node.ins[1 - k])
        return f"product rule: the gradient of {a} is multiplied by {a} itself {self.passes()}: multiply by {b}"

    def division_missing(self) -> str:
        v = self.node.ins[1]
        x = self.graph.values[v]
        name, _ = self.statistic(v)
        if v not in self.graph.active and np.size(x) and np.all(x == np.ravel(x)[0]):
            number = float(np.ravel(x)[0])
            return (
                f"the division by {number:.6g}{size_name(self.graph, number)} is missing {self.passes()}: divide the "
                f"gradient by it too"
            )
        named = f"the {name} {self.value(v)}" if name else self.value(v)
        return f"the division by {named} is missing {self.passes()}: divide the gradient by it too"

    def division_twice(self) -> str:
        return f"the gradient is divided twice by {self.divisor()} {self.passes()}: divide once"

    def divisor(self) -> str:
        name, _ = self.statistic(self.node.ins[1])
        return f"the {name} {self.value(self.node.ins[1])}" if name else self.value(self.node.ins[1])

    def quotient(self, said: str) -> str:
        return (
            f"quotient rule: the derivative of a/b in b, -a/b^2, {said} {self.passes()} (b is {self.divisor()})"
        )

    def timed(self, v: int) -> str:
        """A value with the step that it comes from, in a loop."""
        graph = self.graph
        producer = graph.producer.get(v)
        here = graph.turn[self.node]
        if producer is None or here.length == 1 or graph.turn[producer].length == 1:
            return self.value(v)
        step = "step" if here.in_time else "layer"
        before = here.t - graph.turn[producer].t
        which = {0: f"the same {step}", 1: f"the {step} before", -1: f"the {step} after"}
        return f"{self.value(v)} of {which.get(before, f'another {step}')}"

    def other_operand(self, j: int, u: int) -> str:
        k = 1 - j
        return (
            f"the gradient of {self.value(self.node.ins[k])} through {self.here} is formed with {self.timed(u)} "
            f"instead of {self.timed(self.node.ins[j])}{self.where}"
        )

    def product_missing(self, j: int) -> str:
        to, w = self.value(self.node.ins[1 - j]), self.value(self.node.ins[j])
        return (
            f"the product with {w} is missing in the gradient of {to} through {self.here}{self.where}: dy is passed on "
            f"unchanged, multiply it by {w} transposed"
        )

    def condition_negated(self) -> str:
        return (
            f"{self.mask()} is inverted{self.where} in {self.line()}: each case gets the gradient where the other one "
            f"was chosen"
        )

    def operands_swapped(self) -> str:
        a, b = (self.value(v) for v in self.node.ins[:2])
        return f"the gradients of {a} and {b} through {self.here} are swapped{self.where}"

    def parts_swapped(self, i: int, j: int) -> str:
        return (
            f"the gradients of the parts {i} and {j} of {self.line()} are in the wrong order{self.where}: swap "
            f"them"
        )

    def too_early(self, w: int, between: list[Node]) -> str:
        lost = [Words(self.graph, node, 0)._what() for node in between]
        return (
            f"the gradient of {self.value(self.origin(self.node.ins[self.k]))} through {self.here} is formed with the "
            f"gradient of {self.value(w)} instead of that of {self.value(self.node.outs[0])}{self.where}: "
            f"{' and '.join(text for text in lost if text)} is missing there"
        )

    def _what(self) -> str:
        """What an elementwise operation does to the gradient."""
        node = self.node
        if node.name in ("add", "sub", "add_any", "carry", "copy", "convert_element_type"):
            return ""
        if node.name in ("mul", "div"):
            other = [v for v in node.ins if v not in self.graph.active] or [node.ins[1]]
            factor = self.factor(other[0]).removeprefix("the factor ")
            return f"the division by {factor}" if node.name == "div" else factor
        if node.name in ("max", "min", "select_n"):
            return f"{self.mask()}"
        return f"the derivative of {self.operation()} ({self.formula()})"

    # ------------------------------------------------------------ masks

    def mask(self) -> str:
        node = self.node
        if node.name in ("max", "min") and self.constant(node) is not None:
            return "relu (1 where z > 0, else 0)" if self.constant(node) == 0 else f"the {node.name}imum"
        if node.name == "select_n":
            return f"the mask of the where ({self.value(node.ins[0])})"
        return f"the mask of {self.operation()}"

    def mask_missing(self) -> str:
        of = "the derivative (mask) of " if self.node.name in ("max", "min") else ""
        return (
            f"{of}{self.mask()} is missing {self.passes()}: the gradient passes everywhere, multiply it by the mask"
        )

    def mask_inverted(self) -> str:
        return f"{self.mask()} is inverted {self.passes()}: the gradient passes exactly where it must not"

    def mask_of(self, u: int) -> str:
        return (
            f"the mask in the backward pass of {self.line()} is taken from {self.value(u)}{self.where}: use the "
            f"forward's"
        )

    def mask_of_gradient(self) -> str:
        return f"relu's mask is taken from the sign of the gradient {self.passes()}: use the sign of its input z"

    def clip_missing(self) -> str:
        return f"the mask of clip is missing {self.passes()}: no gradient passes where the value is clipped"

    # ------------------------------------------------------------ sums and broadcasts

    def sum_of(self, did: str, axes: tuple[int, ...], must: str) -> str:
        """The transpose of a broadcast."""
        v = self.node.ins[0]
        what = f"the gradient of {self.value(v)}"
        sizes = ", ".join(f"{axis} (length {self.node.params['shape'][axis]})" for axis in axes)
        return f"{what}, which is broadcast in {self.line()}, is {did} axis {sizes}{self.where}: {must}"

    def only(self, which: str, axes: tuple[int, ...]) -> str:
        v = self.node.ins[0]
        n = math.prod(self.node.params["shape"][axis] for axis in axes)
        return (
            f"only the {which} of the {n} entries along axis {', '.join(map(str, axes))} reaches the gradient of "
            f"{self.value(v)}, which is broadcast in {self.line()}{self.where}: sum over the axis (+= instead of =)"
        )

    def only_summand(self, which: str, *axes: int) -> str:
        return (
            f"only the {which} entry along axis {', '.join(map(str, axes))} gets the gradient of "
            f"{self.here}{self.where}: every summand should get it"
        )

    def spread_over(self, wrong: int, right: int) -> str:
        return (
            f"the gradient of {self.here} is broadcast along axis {wrong} instead of {right}{self.where}: the wrong "
            f"axis"
        )

    def product_of_one(self, which: str, axis: int, j: int) -> str:
        n = self.graph.values[self.node.ins[j]].shape[axis]
        return (
            f"only the {which} of {n} terms of the sum reaches the gradient of {self.value(self.node.ins[1 - j])} "
            f"through {self.here}{self.where}: add them all up (+= instead of =)"
        )

    def max_to_all(self, how: str) -> str:
        return (
            f"every entry gets the gradient of {self.here}{how}{self.where}: it belongs only to the largest entry "
            f"(argmax mask)"
        )

    def max_to(self, which: str) -> str:
        belongs = "to all of them" if self.node.name.endswith("sum") else "to the largest entry (argmax)"
        return f"the {which} entry gets the gradient of {self.here}{self.where}: it belongs {belongs}"

    def max_axis(self) -> str:
        return f"the mask of {self.here} (argmax) is taken along the wrong axis{self.where}"

    def ties(self) -> str:
        return f"all equal entries of a window get the whole gradient of {self.here}: only one should"

    # ------------------------------------------------------------ matrix products, convolution

    def operand_transposed(self, j: int) -> str:
        v, to = self.node.ins[j], self.node.ins[1 - j]
        return (
            f"{self.value(v)} is transposed the wrong way in the gradient of {self.value(to)} through "
            f"{self.operation()} in {self.line()}{self.where}: for y = x @ w it is dx = dy @ w.T and dw = x.T @ dy"
        )

    def operand_order(self, j: int, a: int, b: int) -> str:
        v, to = self.node.ins[j], self.node.ins[1 - j]
        return (
            f"{self.value(v)} has its axes {a} and {b} exchanged (not transposed back) before it is reshaped, "
            f"in the gradient of {self.value(to)} through {self.here}{self.where}"
        )

    def gradient_transposed(self) -> str:
        to = self.value(self.node.ins[self.k])
        return f"the incoming gradient is transposed in the gradient of {to} through {self.here}{self.where}"

    def result_transposed(self) -> str:
        to = self.value(self.node.ins[self.k])
        return f"the gradient of {to} through {self.here} is transposed{self.where}: transpose it back"

    def kernel_flip(self) -> str:
        if self.k == 0:
            return (
                f"the kernel is not flipped in the gradient of the input of the convolution {self.line()}{self.where}: "
                f"dx is the convolution of dy with the kernel flipped in its spatial axes"
            )
        return (
            f"the gradient of the kernel of the convolution {self.line()} comes out flipped{self.where}: don't flip it"
        )

    def kernel_transposed(self, channels: bool, flipped: bool = False) -> str:
        swapped = "the kernel's input and output channels are not swapped (transposed)"
        what = swapped if channels else "the kernel is transposed"
        also = " and the kernel is not flipped" if flipped else ""
        return f"{what}{also} in the gradient of the input of the convolution {self.line()}{self.where}"

    def conv(self, said: str) -> str:
        return f"{said} ({self.line()}){self.where}"

    # ------------------------------------------------------------ moving entries around

    def other_rows(self, column: int, given: str) -> str:
        which = f"{given} is used where the rows (indices) of the forward belong"
        return f"the gradient of the lookup {self.line()} goes to other rows: {which}{self.where}; use the same ids"

    def overwritten(self, which: str) -> str:
        return (
            f"duplicate ids in the lookup {self.line()}: their gradients overwrite each other, only the {which} one "
            f"is kept{self.where}. Add them up (scatter-add: .at[ids].add, not .set)"
        )

    def averaged_duplicates(self) -> str:
        return (
            f"the gradients of duplicate ids in the lookup {self.line()} are averaged{self.where}: add them up "
            f"(scatter-add)"
        )

    def shifted_ids(self, axis: int) -> str:
        return (
            f"the gradient of the lookup {self.line()} lands off by one along axis {axis}{self.where}: use the same "
            f"ids"
        )

    def not_moved(self) -> str:
        return f"the gradient is not put back in order {self.passes()}: entry i of the output came from entry ids[i]"

    def applied_again(self) -> str:
        return (
            f"the permutation of {self.here} is applied again instead of its inverse{self.where}: use argsort of the "
            f"permutation"
        )

    def not_cleared(self) -> str:
        return (
            f"the entries that are overwritten in {self.line()} still pass their gradient on{self.where}: set it to 0 "
            f"there"
        )

    def time_reversed(self) -> str:
        return (
            f"the gradient of {self.value(self.node.ins[0])} comes out with its time steps reversed in {self.line()}: "
            f"flip it"
        )

    def slice_shifted(self, axis: int) -> str:
        return f"the gradient of {self.here} is off by one along axis {axis}{self.where}"

    def slice_at_start(self, axis: int) -> str:
        return (
            f"the gradient of the slice in {self.line()} is put at the start of axis {axis}{self.where}: put it where "
            f"the slice was taken, zeros elsewhere"
        )

    def padding_kept(self) -> str:
        return f"the padding of {self.line()} is cut off at the end only{self.where}: cut it off on both sides"

    def reshaped_instead(self) -> str:
        return (
            f"the gradient is reshaped instead of transposed back {self.passes()}: undo the transposition, then the "
            f"reshape"
        )

    def order_of_reshape(self) -> str:
        return (
            f"the gradient is reshaped with its axes in another order {self.passes()}: undo the forward's reshape "
            f"exactly"
        )

    def not_reversed(self) -> str:
        return f"the reversal is not undone {self.passes()}: flip the gradient too"

    def cumsum_unreversed(self) -> str:
        return (
            f"the gradient of the cumulative sum in {self.line()} is summed from the same end{self.where}: cumsum in "
            f"reverse"
        )

    def cumsum_lost(self) -> str:
        return (
            f"the gradient of the cumulative sum in {self.line()} is not summed{self.where}: it is the cumsum in "
            f"reverse"
        )

    def cumsum_exclusive(self) -> str:
        return f"the gradient of the cumulative sum in {self.line()} leaves out each entry's own gradient{self.where}"

    def part_of_another(self, other: int) -> str:
        return f"part {self.k} of {self.here} gets the gradient of part {other}{self.where}"
