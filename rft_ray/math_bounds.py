"""Is a number made of roots zero? Decided by enough digits, because such numbers keep a distance.

The bound is that of Burnikel, Fleischer, Mehlhorn and Schirra (2000, and with Schmitt 2001): an
expression is a quotient U/L of algebraic integers whose conjugates are at most u and l in size. In
a field of degree D the product of the conjugates of U is a whole number, so U is zero or
|U| >= u^(1-D). D is the product of the orders of all roots that occur.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import gcd, log2, prod

from rft_ray.latex_tree import Apply, Expression, Number, Power, Product, Sum, Symbol
from rft_ray.math_functions import PI, FormBuilder
from rft_ray.math_limits import Undecided
from rft_ray.math_values import has_i, value_at

MAX_BOUND_BITS = 30_000
MAX_DEGREE = 1 << 12
DIGITS_PER_BIT = 0.30103


def is_algebraic_zero(node: Expression) -> bool | None:
    """Whether an expression of roots and rationals is zero, by its separation bound.

    None where it is not algebraic, or would need too many digits.
    """
    bound = _Bound()
    try:
        size = bound.of(node)
    except Undecided:
        return None
    bits = (bound.degree - 1) * max(size.top, 0.0) + max(size.bottom, 0.0) + 4
    if bits > MAX_BOUND_BITS:
        return None
    # twice, for what is lost where a denominator is itself close to its own bound
    working = 2 * bits + abs(size.top) + abs(size.bottom) + 64
    value = value_at(node, {}, int(working * DIGITS_PER_BIT) + 10)
    return bool(abs(value) < value.context.ldexp(1, -int(bits)))


@dataclass(frozen=True, slots=True)
class _Size:
    """log2 of the bounds u and l on the conjugates of a numerator and a denominator."""

    top: float
    bottom: float


class _Bound:
    """Bounds of an expression without variables, and the degree of a field that holds it."""

    def __init__(self) -> None:
        self.roots: dict[Expression, int] = {}

    @property
    def degree(self) -> int:
        return prod(self.roots.values())

    def adjoin(self, root: Expression, order: int) -> None:
        self.roots[root] = order
        if self.degree > MAX_DEGREE:
            raise Undecided("a field of large degree")

    def of(self, node: Expression) -> _Size:
        match node:
            case Number(value):
                return _Size(log2(abs(value.numerator) or 1), log2(value.denominator))
            case Symbol("i"):
                self.adjoin(node, 2)
                return _Size(0.0, 0.0)
            case Sum(terms):
                return self.sum([self.of(term) for term in terms])
            case Product(factors):
                sizes = [self.of(factor) for factor in factors]
                return _Size(sum(s.top for s in sizes), sum(s.bottom for s in sizes))
            case Power(base, Number(exponent)):
                return self.power(node, self.of(base), exponent)
            case Apply("sin" | "cos", (angle,)):
                return self.angle(angle)
            case Apply("abs", (inside,)) if not has_i(inside):
                return self.of(inside)
        raise Undecided("not algebraic")

    def sum(self, sizes: list[_Size]) -> _Size:
        total = sizes[0]
        for size in sizes[1:]:
            left, right = total.top + size.bottom, total.bottom + size.top
            top = max(left, right) + log2(1 + 2.0 ** -min(abs(left - right), 1000.0))
            total = _Size(top, total.bottom + size.bottom)
        return total

    def power(self, node: Expression, base: _Size, exponent: Fraction) -> _Size:
        if abs(exponent.numerator) > 1_000 or exponent.denominator > 64:
            raise Undecided("a large power")
        order = exponent.denominator
        if order > 1:
            self.adjoin(Power(node.base, Number(Fraction(1, order))), order)  # type: ignore[union-attr]
            base = _Size((base.top + (order - 1) * base.bottom) / order, base.bottom)
        if exponent < 0:
            base = _Size(base.bottom, base.top)
        times = abs(exponent.numerator)
        return _Size(base.top * times, base.bottom * times)

    def angle(self, angle: Expression) -> _Size:
        """sin or cos of a rational multiple of pi: half a sum of two roots of unity."""
        form = FormBuilder().of(angle)
        turns = form.top.get(frozenset({(PI, Fraction(1))}), Fraction(0))
        if not form.is_whole or len(form.top) != 1 or not turns:
            raise Undecided("not a multiple of pi")
        order = 4 * turns.denominator // gcd(2, turns.denominator)
        self.adjoin(Symbol(f"root of unity {order}"), 2 * order)
        return _Size(1.0, 1.0)
