"""Sets of real numbers: intervals, unions, inequalities and finite sets, compared exactly.

Two sets are equal if they agree on every cell: the real line is cut at all endpoints of both, and
each endpoint and each gap between endpoints is a cell. Endpoints are constant expressions; they are
ordered by their values and taken for the same only where that is proved.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from rft_ray.latex_tree import (
    EXPRESSIONS,
    Answer,
    Apply,
    Bracket,
    Expression,
    Joined,
    Listing,
    Number,
    Power,
    Product,
    Relation,
    Sum,
    Symbol,
    negated,
    quotient,
)
from rft_ray.math_forms import Form
from rft_ray.math_functions import FormBuilder
from rft_ray.math_limits import Undecided, Undefined
from rft_ray.math_values import value_at, variables

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
MAX_ENDPOINTS = 60
INFINITY = Symbol("infinity")
REALS = frozenset(("set R", "set { R }"))
NEAR = 1e-12
MAX_ENDPOINT = 1e300


@dataclass(frozen=True, slots=True)
class Span:
    """The numbers between two endpoints; None is infinite."""

    low: Expression | None
    high: Expression | None
    has_low: bool = False
    has_high: bool = False


@dataclass(frozen=True, slots=True)
class Union:
    parts: tuple["RealSet", ...]


@dataclass(frozen=True, slots=True)
class Common:
    parts: tuple["RealSet", ...]


@dataclass(frozen=True, slots=True)
class Without:
    whole: "RealSet"
    removed: "RealSet"


RealSet: TypeAlias = Span | Union | Common | Without
ALL = Span(None, None)
IsSame: TypeAlias = Callable[[Expression, Expression], bool | None]


def infinite_sign(node: Answer) -> int:
    """1 for infinity, -1 for minus infinity, 0 for anything else."""
    if node == INFINITY:
        return 1
    if isinstance(node, Product) and node.factors[-1] == INFINITY and len(node.factors) == 2:
        return -1 if node.factors[0] == Number(Fraction(-1)) else 0
    return 0


def as_set(node: Answer) -> RealSet | None:
    """The set of real numbers that an answer denotes; None where it denotes none."""
    match node:
        case Bracket("(" | "[", (low, high), ")" | "]"):
            return _interval(low, high, node.left == "[", node.right == "]")
        case Bracket("{", items, "}"):
            return _points(items)
        case Symbol(name) if name in REALS:
            return ALL
        case Symbol("emptyset"):
            return Union(())
        case Joined(operator, parts):
            return _joined(operator, [as_set(part) for part in parts])
        case Relation((Symbol(), inside), ("in",)):
            return as_set(inside)
        case Relation(sides, operators):
            return _chain(sides, operators)
        case Listing(items, joint) if all(isinstance(item, Relation) for item in items):
            return _relations(items, joint)
    return None


def _joined(operator: str, parts: list[RealSet | None]) -> RealSet | None:
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    if operator == "setminus":
        return Without(found[0], found[1])
    return Union(tuple(found)) if operator == "cup" else Common(tuple(found))


def _interval(low: Answer, high: Answer, has_low: bool, has_high: bool) -> RealSet | None:
    if infinite_sign(low) > 0 or infinite_sign(high) < 0:
        return None
    ends = [None if infinite_sign(end) else end for end in (low, high)]
    if any(end is not None and not _is_constant(end) for end in ends):
        return None
    if (ends[0] is None and has_low) or (ends[1] is None and has_high):
        return None
    return Span(ends[0], ends[1], has_low, has_high)  # type: ignore[arg-type]


def _points(items: tuple[Answer, ...]) -> RealSet | None:
    if not all(_is_constant(item) for item in items):
        return None
    return Union(tuple(Span(item, item, True, True) for item in items))  # type: ignore[arg-type]


def _is_constant(node: Answer) -> bool:
    return isinstance(node, EXPRESSIONS) and not variables(node) and not infinite_sign(node)


def _relations(items: tuple[Answer, ...], joint: str) -> RealSet | None:
    """Inequalities of one variable: "or" unites, "and" intersects, a comma says neither.

    But what x is not, it is not beside all else: x > 2, x != 3.
    """
    parts = [as_set(item) for item in items]
    names = {name for item in items for name in _names(item)}
    excepts = any("!=" in item.operators for item in items if isinstance(item, Relation))
    if (joint == "," and not excepts) or len(names) != 1 or None in parts:
        return None
    return _joined("cup" if joint == "or" else "cap", parts)


def _names(node: Answer) -> frozenset[str]:
    if not isinstance(node, Relation):
        return frozenset()
    return variables(*(side for side in node.sides if isinstance(side, EXPRESSIONS)))


def _chain(sides: tuple[Answer, ...], operators: tuple[str, ...]) -> RealSet | None:
    """-2 <= x < 7 as an interval, where every link is linear in the same variable."""
    if not all(isinstance(side, EXPRESSIONS) for side in sides) or not set(operators) <= set(
        FLIPPED
    ):
        return None
    names = variables(*sides)  # type: ignore[arg-type]
    if len(names) != 1:
        return None
    (name,) = names
    links = zip(sides, operators, sides[1:], strict=False)
    parts = [_half_line(left, op, right, name) for left, op, right in links]  # type: ignore[arg-type]
    return None if None in parts else Common(tuple(parts))  # type: ignore[arg-type]


def _half_line(left: Expression, operator: str, right: Expression, name: str) -> RealSet | None:
    """Where `left operator right` holds, if it is linear in the variable, or in |linear|."""
    match left, right:
        case Apply("abs", (inside,)), _ if operator in "<=>=" and not variables(right):
            return _within(inside, operator, right, name)
        case _, Apply("abs") if not variables(left):
            return _half_line(right, FLIPPED[operator], left, name)
    if left == Symbol(name) and not variables(right):
        return _ray(operator, right)
    if right == Symbol(name) and not variables(left):
        return _ray(FLIPPED[operator], left)
    difference = Sum((left, negated(right)))
    if not _is_linear(difference, name):
        return None
    at_zero = substituted(difference, name, Number(Fraction(0)))
    slope = Sum((substituted(difference, name, Number(Fraction(1))), negated(at_zero)))
    slope_value = value_at(slope, {}).real
    if abs(slope_value) < NEAR:
        return None
    bound = quotient(negated(at_zero), slope)
    return _ray(operator if slope_value > 0 else FLIPPED[operator], bound)


def _within(inside: Expression, operator: str, bound: Expression, name: str) -> RealSet | None:
    """|inside| < bound is inside < bound and inside > -bound; for > it is one of the two."""
    if operator == "=":
        return None
    parts = [
        _half_line(inside, operator, bound, name),
        _half_line(inside, FLIPPED[operator], negated(bound), name),
    ]
    return _joined("cap" if operator in ("<", "<=") else "cup", parts)


def _ray(operator: str, bound: Expression) -> RealSet | None:
    if infinite_sign(bound):
        return ALL if (operator in ("<", "!=")) == (infinite_sign(bound) > 0) else None
    match operator:
        case "<" | "<=":
            return Span(None, bound, has_high=operator == "<=")
        case ">" | ">=":
            return Span(bound, None, has_low=operator == ">=")
    point = Span(bound, bound, True, True)
    return point if operator == "=" else Without(ALL, point)


def _is_linear(node: Expression, name: str) -> bool:
    form: Form = FormBuilder().of(node)
    atom = ("x", name)
    degrees = {dict(m).get(atom, Fraction(0)) for m in form.top}
    others = {a[0] for m in form.top for a, _ in m} - {"x"}
    return form.is_whole and degrees <= {0, 1} and others <= {"p", "pi", "e", "q"}


def substituted(node: Expression, name: str, value: Expression) -> Expression:
    """The expression with a variable replaced."""
    match node:
        case Symbol():
            return value if node.name == name else node
        case Sum(terms):
            return Sum(tuple(substituted(term, name, value) for term in terms))
        case Product(factors):
            return Product(tuple(substituted(factor, name, value) for factor in factors))
        case Power(base, exponent):
            return Power(substituted(base, name, value), substituted(exponent, name, value))
        case Apply(function, arguments):
            return Apply(function, tuple(substituted(a, name, value) for a in arguments))
    return node


def are_same_sets(left: RealSet, right: RealSet, is_same: IsSame) -> bool | None:
    """Whether two sets agree on every cell; None where endpoints cannot be told apart."""
    try:
        line = _Line([*_endpoints(left), *_endpoints(right)], is_same)
    except (Undecided, Undefined):
        return None
    cells = range(2 * len(line.keys) + 1)
    return all(line.holds(left, cell) == line.holds(right, cell) for cell in cells)


def _endpoints(node: RealSet) -> Iterator[Expression]:
    match node:
        case Span(low, high):
            yield from (end for end in (low, high) if end is not None)
        case Union(parts) | Common(parts):
            for part in parts:
                yield from _endpoints(part)
        case Without(whole, removed):
            yield from _endpoints(whole)
            yield from _endpoints(removed)


class _Line:
    """The real line in cells: gap 0, endpoint 1, gap 2, endpoint 3, ... in increasing order."""

    def __init__(self, ends: list[Expression], is_same: IsSame) -> None:
        if len(ends) > MAX_ENDPOINTS:
            raise Undecided("many endpoints")
        self.cell_of: dict[Expression, int] = {}
        self.keys: list[float] = []
        valued = [(_real_value(end), end) for end in dict.fromkeys(ends)]
        for value, end in sorted(valued, key=lambda pair: pair[0]):
            near = bool(self.keys) and value - self.keys[-1] <= NEAR * max(1.0, abs(value))
            if near:
                known = next(e for e, c in self.cell_of.items() if c == 2 * len(self.keys) - 1)
                verdict = is_same(known, end)
                if verdict is None:
                    raise Undecided("endpoints too close")
                near = verdict
            if not near:
                self.keys.append(value)
            self.cell_of[end] = 2 * len(self.keys) - 1

    def holds(self, node: RealSet, cell: int) -> bool:
        match node:
            case Span(low, high, has_low, has_high):
                first = -1 if low is None else self.cell_of[low]
                last = 2 * len(self.keys) + 1 if high is None else self.cell_of[high]
                above = cell > first or (has_low and cell == first)
                return above and (cell < last or (has_high and cell == last))
            case Union(parts):
                return any(self.holds(part, cell) for part in parts)
            case Common(parts):
                return all(self.holds(part, cell) for part in parts)
            case Without(whole, removed):
                return self.holds(whole, cell) and not self.holds(removed, cell)


def _real_value(end: Expression) -> float:
    value = value_at(end, {})
    if value.imag or abs(value) > MAX_ENDPOINT:
        raise Undecided("a complex or a huge endpoint")
    return float(value.real)
