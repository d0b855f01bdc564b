r"""What an answer calls its value, and both values of \pm.

"x = 5" names 5; "f(x) = x^2" names x^2; "a = 1+1 = 2" names 2, unless the chain contradicts itself.
"""

from fractions import Fraction
from itertools import pairwise

from rft_ray.latex_symbols import CALLABLE_LETTERS
from rft_ray.latex_tree import (
    EXPRESSIONS,
    Answer,
    Apply,
    Bracket,
    Expression,
    Joined,
    Listing,
    Matrix,
    Number,
    Power,
    Product,
    Quantity,
    Ratio,
    Relation,
    Sum,
    Symbol,
    Words,
)
from rft_ray.math_values import CONSTANTS, has_unknown_function, variables
from rft_ray.math_zero import same_value

ANY_NAME = ""


def split_name(node: Answer) -> tuple[str | None, Answer | None]:
    """The name, None where there is none, and the value; no value where a chain is wrong."""
    if not isinstance(node, Relation):
        return None, node
    sides, operators = node.sides, node.operators
    if operators == ("in",):
        return _name(sides[0]), sides[1] if _name(sides[0]) is not None else node
    if not set(operators) <= {"=", "approx"}:
        return None, node
    name = _name(sides[0])
    if name is not None and not _uses(sides[0], sides[-1]):
        return name or None, _last_exact(sides[1:], operators[1:])
    name = _name(sides[-1])
    if len(sides) == 2 and name is not None and _is_constant(sides[0]):
        return name or None, sides[0]
    # 0 = 0 is no way to say 0
    if sides[0] != sides[-1] and all(map(_is_constant, sides)):
        return None, _last_exact(sides, operators)
    return None, node


def _name(node: Answer) -> str | None:
    """The name on a left side: x, f(x), p(x), (x, y); ANY_NAME for words such as "area"."""
    match node:
        case Symbol(name) if name not in CONSTANTS:
            return name
        case Words():
            return ANY_NAME
        case Apply(function, arguments) if len(function.rstrip("'")) == 1:
            is_name = all(isinstance(argument, Symbol) for argument in arguments)
            return function * len(arguments) if is_name else str(node)
        case Product((Symbol(first), Symbol(second))) if (first + second).isupper():
            return first + second  # a side, or P(A)
        case Product((Symbol(function), Symbol(_))) if function not in CONSTANTS:
            return function
        case Product((Power(Symbol(function), _), Symbol(_))) if function in CALLABLE_LETTERS:
            return f"{function}^-1"
        case Bracket("(", items, ")") if all(isinstance(item, Symbol) for item in items):
            return str([item.name for item in items])  # type: ignore[union-attr]
    return None


def _uses(left: Answer, value: Answer) -> bool:
    """Whether the name is no definition: x = 2x - 1 is an equation, and so is ab = 5."""
    if not isinstance(value, EXPRESSIONS):
        return False
    used = variables(value)
    match left:
        case Symbol(name):
            return name in used
        case Product((Symbol(first), Symbol(second))) if (first + second).isupper():
            return bool(used & {first, second})
        case Product((Symbol(function), Symbol(argument))):
            return function in used or argument not in used
    return False


def _is_constant(node: Answer) -> bool:
    return isinstance(node, EXPRESSIONS) and not variables(node) and not has_unknown_function(node)


def _last_exact(values: tuple[Answer, ...], operators: tuple[str, ...]) -> Answer | None:
    """The last value before an approximation; None where two of the values are not equal."""
    exact = [values[0]]
    for operator, value in zip(operators, values[1:], strict=False):
        if operator == "approx":
            break
        exact.append(value)
    for a, b in pairwise(exact):
        if isinstance(a, EXPRESSIONS) and isinstance(b, EXPRESSIONS) and same_value(a, b) is False:
            return None
    return exact[-1]


def without_signs(node: Answer) -> Answer:
    r"""The answer with every \pm written out: 1 \pm 2 -> 3, -1. Upper signs go together.

    Two \pm in one value may or may not go together, so such a value is left as it is.
    """
    match node:
        case Listing(items, joint):
            parts = [part for item in items for part in _both(item)]
            return node if len(parts) == len(items) else Listing(tuple(parts), joint)
        case Bracket("{", items, "}"):
            parts = [part for item in items for part in _both(item)]
            return node if len(parts) == len(items) else Bracket("{", tuple(parts), "}")
    both = _both(node)
    return both[0] if len(both) == 1 else Listing(tuple(both))


def _both(node: Answer) -> list[Answer]:
    upper, lower = _count(node, "pm"), _count(node, "mp")
    if upper + lower == 0 or upper > 1 or (lower > 1 and not upper):
        return [node]
    return [_signed(node, 1), _signed(node, -1)]


def _parts(node: Answer) -> tuple[Answer, ...]:
    match node:
        case Sum(parts) | Product(parts) | Apply(_, parts) | Ratio(parts):
            return parts
        case Listing(parts) | Bracket(_, parts) | Relation(parts) | Joined(_, parts):
            return parts
        case Power(base, exponent):
            return base, exponent
        case Quantity(value):
            return (value,)
        case Matrix(rows):
            return sum(rows, ())
    return ()


def _count(node: Answer, function: str) -> int:
    here = isinstance(node, Apply) and node.function == function
    return here + sum(_count(part, function) for part in _parts(node))


def _signed(node: Answer, sign: int) -> Answer:
    """The node with the upper (1) or the lower (-1) of every pair of signs."""
    match node:
        case Apply("pm" | "mp" as function, (inside,)):
            factor = sign if function == "pm" else -sign
            return Product((Number(Fraction(factor)), _expression(inside, sign)))
        case Sum(parts):
            return Sum(_expressions(parts, sign))
        case Product(parts):
            return Product(_expressions(parts, sign))
        case Apply(function, parts):
            return Apply(function, _expressions(parts, sign))
        case Power(base, exponent):
            return Power(_expression(base, sign), _expression(exponent, sign))
        case Bracket(left, items, right):
            return Bracket(left, tuple(_signed(item, sign) for item in items), right)
        case Relation(sides, operators):
            return Relation(tuple(_signed(side, sign) for side in sides), operators)
        case Quantity(value, unit):
            return Quantity(_signed(value, sign), unit)
        case Matrix(rows):
            return Matrix(tuple(_expressions(row, sign) for row in rows))
    return node


def _expression(node: Expression, sign: int) -> Expression:
    return _signed(node, sign)  # type: ignore[return-value] - an expression stays one


def _expressions(parts: tuple[Expression, ...], sign: int) -> tuple[Expression, ...]:
    return tuple(_expression(part, sign) for part in parts)
