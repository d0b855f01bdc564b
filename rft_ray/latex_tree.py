"""The nouns of a mathematical answer: a small frozen tree that the parser builds and others read.

Expressions have a value; the other answers hold expressions. Numbers are exact rationals. Nothing
is simplified here: 2+2 stays a sum, and what it equals is `math_equality.py`'s business.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias


class LatexError(ValueError):
    """The text is not an answer that can be read, or is larger than the limits."""


@dataclass(frozen=True, slots=True)
class Number:
    """An exact rational."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Symbol:
    """A variable or a constant by its name: "x", "x_1", "pi", "e", "i", "infinity", "degree"."""

    name: str


@dataclass(frozen=True, slots=True)
class Sum:
    """Two or more terms."""

    terms: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Product:
    """Two or more factors; a quotient is a product with a power -1."""

    factors: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Power:
    """A base and an exponent; a root is a power 1/n."""

    base: "Expression"
    exponent: "Expression"


@dataclass(frozen=True, slots=True)
class Apply:
    """A function by name: "sin", "ln", "abs", "factorial", "percent", "pm" (plus or minus), "f"."""

    function: str
    arguments: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of equal length."""

    rows: tuple[tuple["Expression", ...], ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Answers side by side without brackets; `joint` is "," or "and" or "or"."""

    items: tuple["Answer", ...]
    joint: str = ","


@dataclass(frozen=True, slots=True)
class Bracket:
    """A tuple, a point, an interval or a set, by its brackets: "(", "[", "{", "<"."""

    left: str
    items: tuple["Answer", ...]
    right: str


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain such as -2 <= x < 7: n sides and n-1 operators (= < > <= >= != in approx)."""

    sides: tuple["Answer", ...]
    operators: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """Sets under one operator: "cup", "cap" or "setminus"."""

    operator: str
    parts: tuple["Answer", ...]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with a unit in canonical spelling, such as "centimeter^2" or "dollar"."""

    value: "Answer"
    unit: str


@dataclass(frozen=True, slots=True)
class Words:
    """An answer in words, in lower case: "evelyn", or the letter of a choice, "b"."""

    text: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """Parts between colons: a ratio 3:4 or a time 12:00, with "a.m.", "p.m." or "" as its half."""

    parts: tuple["Expression", ...]
    half: str = ""
    is_time: bool = False


Expression: TypeAlias = Number | Symbol | Sum | Product | Power | Apply | Matrix
Answer: TypeAlias = Expression | Listing | Bracket | Relation | Joined | Quantity | Words | Ratio

EXPRESSIONS = (Number, Symbol, Sum, Product, Power, Apply, Matrix)
MINUS_ONE = Number(Fraction(-1))


def quotient(top: Expression, bottom: Expression) -> Expression:
    """top / bottom, folded where both are numbers."""
    if isinstance(bottom, Number):
        if bottom.value == 0:
            raise LatexError("division by zero")
        if isinstance(top, Number):
            return Number(top.value / bottom.value)
    return Product((top, Power(bottom, MINUS_ONE)))


def negated(node: Expression) -> Expression:
    """The node with the other sign."""
    return Number(-node.value) if isinstance(node, Number) else Product((MINUS_ONE, node))


def as_expression(node: Answer) -> Expression:
    """The node itself; raises LatexError where arithmetic cannot be done on it."""
    if not isinstance(node, EXPRESSIONS):
        raise LatexError(f"no arithmetic on a {type(node).__name__.lower()}")
    return node
