"""Values of expressions to many digits: enough to prove two of them different, never equal."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rft_ray.latex_tree import Apply, Expression, Number, Power, Product, Sum, Symbol
from rft_ray.math_limits import Undecided, Undefined

if TYPE_CHECKING:
    from mpmath.ctx_mp import MPContext

DIGITS = 30
SAME_TO = 1e-15
MAX_MAGNITUDE = 1 << 20
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


def are_different(left: Expression, right: Expression) -> bool | None:
    """True where values prove that two expressions differ at a point at which both are real.

    False where they agree at all points to many digits, which proves nothing; None where no point
    tells. Without variables the point is the only one, and may be complex.
    """
    names = sorted(variables(left, right))
    if any(has_unknown_function(node) for node in (left, right)):
        return None
    if not names:
        return _differ_at(left, right, {}, needs_real=False)
    whole = _whole_variables(left) | _whole_variables(right)
    needs_real = not (has_i(left) or has_i(right))
    told = []
    for points, wholes in zip(POINTS, WHOLE_POINTS * 2, strict=True):
        place = {
            name: Fraction(wholes[i % 5] + i // 5) if name in whole else points[i % 5] + i // 5
            for i, name in enumerate(names)
        }
        told.append(_differ_at(left, right, place, needs_real))
        if told[-1]:
            return True
    return False if False in told else None


def value_at(node: Expression, place: dict[str, Fraction], digits: int = DIGITS) -> Any:
    """The value as an mpmath number. Raises Undecided or Undefined where there is none."""
    return _Evaluator(digits, place).of(node)


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


def has_i(node: Expression) -> bool:
    return node == Symbol("i") or any(map(has_i, children(node)))


def _differ_at(
    left: Expression, right: Expression, place: dict[str, Fraction], needs_real: bool
) -> bool | None:
    """Whether two values differ by far more than rounding, and as much with twice the digits."""
    gaps = []
    for digits in (DIGITS, 2 * DIGITS):
        try:
            a, b = value_at(left, place, digits), value_at(right, place, digits)
        except (Undecided, Undefined):
            return None
        if needs_real and (a.imag or b.imag):
            return None
        gap = abs(a - b)
        if gap <= max(abs(a), abs(b)) * SAME_TO:
            return False
        gaps.append(gap)
    return bool(abs(gaps[0] - gaps[1]) < gaps[1] * 1e-3) or None


KNOWN_FUNCTIONS = frozenset(
    [
        *("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "arcsin", "arccos"),
        *("arctan", "ln", "lg", "log", "exp", "abs", "floor", "ceil", "factorial", "binom"),
        *("percent", "base", "max", "min"),
    ]
)


@lru_cache(maxsize=8)
def _context(digits: int) -> MPContext:
    """Arithmetic of so many digits; to make one takes longer than most values do."""
    from mpmath import MPContext

    context = MPContext()
    context.dps = digits
    return context


class _Evaluator:
    """Evaluates a tree at a point in an mpmath context of its own precision."""

    def __init__(self, digits: int, place: dict[str, Fraction]) -> None:
        self.mp = _context(digits + 10)
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
                if any(v.real < 0 or abs(v) > MAX_FACTORIAL_ARGUMENT for v in values):
                    raise Undecided("a factorial of a negative or a huge number")
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
