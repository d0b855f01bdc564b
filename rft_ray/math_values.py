"""Values of expressions to many digits: enough to prove two of them different, never equal.

Except algebraic numbers: their difference is zero or larger than a bound that follows from how they
are written, so that enough digits decide. The bound is that of Burnikel, Fleischer, Mehlhorn and
Schirra (2000, and with Schmitt 2001): an expression is a quotient U/L of algebraic integers whose
conjugates are at most u and l; in a field of degree D, U is zero or |U| >= u^(1-D).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import gcd, log2
from typing import TYPE_CHECKING, Any

from rft_ray.latex_tree import Apply, Expression, Number, Power, Product, Sum, Symbol
from rft_ray.math_forms import Undecided, Undefined

if TYPE_CHECKING:
    from mpmath.ctx_mp import MPContext

DIGITS = 30
MAX_MAGNITUDE = 1 << 20
MAX_BOUND_BITS = 30_000
MAX_DEGREE = 1 << 12
MAX_FACTORIAL_ARGUMENT = 10**6
CONSTANTS = frozenset(("pi", "e", "i", "degree", "infinity", "emptyset"))
# Where expressions with variables are compared, in order; half of the points are not positive.
POINTS = (
    (Fraction(37, 29), Fraction(83, 71), Fraction(131, 53), Fraction(59, 97), Fraction(211, 67)),
    (Fraction(173, 61), Fraction(41, 103), Fraction(19, 31), Fraction(223, 89), Fraction(7, 11)),
    (Fraction(-47, 37), Fraction(79, 59), Fraction(-29, 83), Fraction(-151, 73), Fraction(97, 41)),
    (Fraction(11, 79), Fraction(-107, 43), Fraction(61, 47), Fraction(13, 37), Fraction(-89, 53)),
    (Fraction(-5, 13), Fraction(-31, 73), Fraction(-191, 83), Fraction(-67, 29), Fraction(-3, 7)),
    (Fraction(401, 7), Fraction(307, 11), Fraction(509, 17), Fraction(211, 5), Fraction(607, 23)),
)
WHOLE_POINTS = ((3, 5, 4, 7, 6), (4, 3, 5, 6, 2), (7, 4, 3, 5, 8))


def variables(*nodes: Expression) -> frozenset[str]:
    """The names of the variables in expressions."""
    found: set[str] = set()
    for node in nodes:
        match node:
            case Symbol(name):
                found |= {name} - CONSTANTS
            case _:
                found |= variables(*children(node))
    return frozenset(found)


def children(node: Expression) -> tuple[Expression, ...]:
    """The expressions directly inside one."""
    match node:
        case Sum(parts) | Product(parts) | Apply(_, parts):
            return parts
        case Power(base, exponent):
            return base, exponent
    return ()


def are_different(left: Expression, right: Expression) -> bool:
    """True where values prove that two expressions differ at a point at which both are real.

    False says nothing. Without variables the point is the only one, and may be complex.
    """
    names = sorted(variables(left, right))
    if any(has_unknown_function(node) for node in (left, right)):
        return False
    if not names:
        return _differ_at(left, right, {}, needs_real=False)
    whole = _whole_variables(left) | _whole_variables(right)
    needs_real = not (_has_i(left) or _has_i(right))
    for points, wholes in zip(POINTS, WHOLE_POINTS * 2, strict=True):
        place = {
            name: Fraction(wholes[i % 5] + i // 5) if name in whole else points[i % 5] + i // 5
            for i, name in enumerate(names)
        }
        if _differ_at(left, right, place, needs_real):
            return True
    return False


def value_at(
    node: Expression, place: dict[str, Fraction], digits: int = DIGITS
) -> Any:
    """The value as an mpmath number. Raises Undecided or Undefined where there is none."""
    return _Evaluator(digits, place).of(node)


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
    working = bits + abs(size.top) + abs(size.bottom) + 64
    value = value_at(node, {}, int(working * 0.30103) + 10)
    return bool(abs(value) < Fraction(1, 2) ** 0 * _two_to(-int(bits)))


def _two_to(exponent: int) -> Any:
    import mpmath

    return mpmath.ldexp(1, exponent)


def has_unknown_function(node: Expression) -> bool:
    """Whether values cannot be had: f(2), a logarithm to an unsaid base."""
    if isinstance(node, Apply) and node.function not in KNOWN_FUNCTIONS:
        return True
    if isinstance(node, Apply) and node.function == "log" and len(node.arguments) == 1:
        return True
    return any(map(has_unknown_function, children(node)))


def _whole_variables(node: Expression, inside: bool = False) -> frozenset[str]:
    """Variables that stand in an exponent or under a factorial: taken as whole numbers."""
    match node:
        case Symbol(name):
            return frozenset({name} - CONSTANTS) if inside else frozenset()
        case Power(base, exponent):
            return _whole_variables(base, inside) | _whole_variables(exponent, True)
        case Apply("factorial" | "binom", arguments):
            return frozenset[str]().union(*(_whole_variables(a, True) for a in arguments))
    return frozenset[str]().union(*(_whole_variables(child, inside) for child in children(node)))


def _has_i(node: Expression) -> bool:
    return node == Symbol("i") or any(map(_has_i, children(node)))


def _differ_at(
    left: Expression, right: Expression, place: dict[str, Fraction], needs_real: bool
) -> bool:
    """Different by far more than rounding, and by as much again with twice the digits."""
    gaps = []
    for digits in (DIGITS, 2 * DIGITS):
        try:
            a, b = value_at(left, place, digits), value_at(right, place, digits)
        except (Undecided, Undefined):
            return False
        if needs_real and (a.imag or b.imag):
            return False
        gap = abs(a - b)
        if gap == 0 or gap < max(abs(a), abs(b)) * Fraction(1, 10 ** (DIGITS // 2)).__float__():
            return False
        gaps.append(gap)
    return bool(abs(gaps[0] - gaps[1]) < gaps[1] * 1e-3)


KNOWN_FUNCTIONS = frozenset(
    [
        *("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "arcsin", "arccos"),
        *("arctan", "ln", "lg", "log", "exp", "abs", "floor", "ceil", "factorial", "binom"),
        *("percent", "base", "max", "min"),
    ]
)


class _Evaluator:
    """Evaluates a tree at a point in an mpmath context of its own precision."""

    def __init__(self, digits: int, place: dict[str, Fraction]) -> None:
        from mpmath import MPContext

        self.mp: MPContext = MPContext()
        self.mp.dps = digits + 10
        self.place = place

    def of(self, node: Expression) -> Any:
        match node:
            case Number(value):
                found = self.rational(value)
            case Symbol(name):
                found = self.symbol(name)
            case Sum(terms):
                found = self.mp.fsum(self.of(term) for term in terms)
            case Product(factors):
                found = self.mp.fprod(self.of(factor) for factor in factors)
            case Power(base, exponent):
                found = self.power(base, exponent)
            case Apply(name, arguments):
                found = self.apply(name, [self.of(argument) for argument in arguments])
            case _:
                raise Undecided(type(node).__name__)
        return self.checked(found)

    def rational(self, value: Fraction) -> Any:
        return self.mp.mpf(value.numerator) / value.denominator

    def checked(self, value: Any) -> Any:
        if not self.mp.isfinite(value):
            raise Undefined("no finite value")
        if value and abs(self.mp.mag(value)) > MAX_MAGNITUDE:
            raise Undecided("a huge value")
        return value

    def symbol(self, name: str) -> Any:
        if name in self.place:
            return self.rational(self.place[name])
        match name:
            case "pi":
                return +self.mp.pi
            case "e":
                return +self.mp.e
            case "i":
                return self.mp.mpc(0, 1)
            case "degree":
                return +self.mp.degree
        raise Undecided(name)

    def power(self, base: Expression, exponent: Expression) -> Any:
        a, b = self.of(base), self.of(exponent)
        if a == 0:
            if self.mp.re(b) <= 0:
                raise Undefined("a power of zero")
            return self.mp.mpf(0)
        if abs(b) * (abs(self.mp.log(abs(a))) + 4) > MAX_MAGNITUDE:
            raise Undecided("a huge power")
        is_root = isinstance(exponent, Number) and exponent.value.denominator % 2 == 1
        if is_root and not a.imag and a.real < 0:  # the real root of a negative number
            sign = -1 if exponent.value.numerator % 2 else 1  # type: ignore[union-attr]
            return sign * self.mp.power(-a, b)
        return self.mp.power(a, b)

    def apply(self, name: str, values: list[Any]) -> Any:
        mp, x = self.mp, values[0]
        match name:
            case "ln" | "lg" | "log":
                base = {"ln": mp.e, "lg": mp.mpf(10)}.get(name) or values[-1]
                if x == 0 or base in (0, 1):
                    raise Undefined("a logarithm of zero")
                return mp.log(x) / mp.log(base)
            case "abs":
                return abs(x)
            case "percent":
                return x / 100
            case "base":
                return x
            case "factorial" | "binom":
                if any(abs(value) > MAX_FACTORIAL_ARGUMENT for value in values):
                    raise Undecided("a huge factorial")
                return mp.factorial(x) if name == "factorial" else mp.binomial(*values)
            case "max" | "min":
                if any(value.imag for value in values):
                    raise Undecided("the order of complex numbers")
                return max(values) if name == "max" else min(values)
            case "floor" | "ceil":
                return self.rounded(name, x)
        return self.elementary(name, x)

    def rounded(self, name: str, value: Any) -> Any:
        if value.imag or abs(value - self.mp.nint(value)) < self.mp.mpf(10) ** -DIGITS:
            raise Undecided("rounding at a whole number")
        return self.mp.floor(value) if name == "floor" else self.mp.ceil(value)

    def elementary(self, name: str, value: Any) -> Any:
        functions = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
        if name not in KNOWN_FUNCTIONS:
            raise Undecided(f"unknown function {name}")
        if name == "exp" and abs(value) > MAX_MAGNITUDE:
            raise Undecided("a huge power")
        try:
            return getattr(self.mp, functions.get(name, name))(value)
        except (ZeroDivisionError, ValueError):
            raise Undefined(f"{name} has no value here") from None


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
        product = 1
        for order in self.roots.values():
            product *= order
        return product

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
            case Apply("abs", (inside,)) if not _has_i(inside):
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
        from rft_ray.math_functions import PI, FormBuilder

        form = FormBuilder().of(angle)
        turns = form.top.get(frozenset({(PI, Fraction(1))}), Fraction(0))
        if not form.is_whole or len(form.top) != 1 or not turns:
            raise Undecided("not a multiple of pi")
        order = 4 * turns.denominator // gcd(2, turns.denominator)
        self.adjoin(Symbol(f"root of unity {order}"), 2 * order)
        return _Size(1.0, 1.0)


