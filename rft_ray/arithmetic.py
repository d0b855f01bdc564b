"""Exact arithmetic on text written by a model: no `eval`, and nothing that grows without bound.

The language is Python's arithmetic on plain numbers, since that is what the paper's code evaluated:
`+ - * / // % **`, parentheses, unary signs, decimals, and a leading zero refused as Python does.
Values are rationals: 0.1+0.2 is 0.3, and only the comparison by tolerance is inexact.

`is_equation_right` reads an equation as the paper does, quirks and all; `is_calculation_right` as
arithmetic.

Differences from the paper's `eval` and `float`, each towards refusing: `**` takes whole exponents
only and both it and literals are limited in size; names, calls, comparisons, bit operators,
underscores and non-ASCII digits fail. A sum is exact until it is compared.
"""

import re
from fractions import Fraction

from rft_ray.quick_arithmetic import decide_quickly

MAX_CHARS = 1_000
MAX_DIGITS = 100
MAX_DEPTH = 50
MAX_RESULT_BITS = 4_096
TOLERANCE = Fraction(1, 1_000)

TOKEN = re.compile(
    r"[ \t]*((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?|\*\*|//|[-+*/%()])"
)
NUMBER = re.compile(r"([0-9]*)\.?([0-9]*)(?:[eE]([+-]?[0-9]{1,2}))?")
THOUSANDS_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
LEADING_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")
# possessive, and from a number's first digit only: long ones would take cubic time
PERCENT = re.compile(r"(?<![0-9.])([0-9]++\.?[0-9]*+|\.[0-9]++)[ \t]*+%(?=[ \t]*+(?:[-+*/)]|$))")
SIGNED_NUMBER = re.compile(
    r"[ \t]*([+-]?)((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?)[ \t]*"
)

BINDING = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "%": 2, "**": 4}
SIGN_BINDING = 3


class ExpressionError(ValueError):
    """The text is not arithmetic, is undefined (1/0), or is larger than the limits."""


def evaluate_expression(text: str) -> Fraction:
    """The exact value of an expression: "2*(3+.5)" -> 7.

    Raises ExpressionError for anything else than arithmetic within the limits.
    """
    tokens = _tokenize(text)
    tokens.reverse()
    value = _parse(tokens, 0, 0)
    if tokens:
        raise ExpressionError(f"unexpected {tokens[-1]!r}")
    return value


def is_equation_right(text: str) -> bool:
    """Whether "lhs=rhs" holds to less than 1e-3, by the paper's reading of it.

    What follows a second "=" is ignored ("2+2=4=4" is right), the right side is one number, and
    whatever cannot be evaluated is not right ("1,000*2=2,000", "08+1=9").
    """
    if (quick := decide_quickly(text)) is not None:
        return quick
    sides = text.split("=")
    if len(text) > MAX_CHARS or len(sides) < 2:
        return False
    try:
        left = evaluate_expression(sides[0])
        right = _parse_right_side(sides[1])
        # the paper's code subtracts floats, in which 2.001 is less than 1e-3 above 2
        return abs(float(left) - float(right)) < float(TOLERANCE)
    except (ExpressionError, OverflowError):
        return False


def is_calculation_right(text: str) -> bool:
    """Whether all sides of "lhs=rhs" are equal to less than 1e-3, whatever way they are written.

    Unlike `is_equation_right` it looks at every side ("2+2=4=5" is wrong), each side is an
    expression, and thousands commas, leading zeros, a `$` and percentages are read: "1,000*2=2,000"
    and "08+1=9" and "50%*2=1" are right. What cannot be evaluated is not right.
    """
    if (quick := decide_quickly(text)) is not None:
        return quick
    if len(text) > MAX_CHARS or "=" not in text:
        return False
    try:
        values = [evaluate_loosely(side) for side in text.split("=")]
    except ExpressionError:
        return False
    return all(abs(value - values[0]) < TOLERANCE for value in values)


def evaluate_loosely(text: str) -> Fraction:
    """`evaluate_expression` of text as people write it: "$1,000", "007", "50%" (a half).

    A percent sign before another number stays the remainder: "7%3" is 1.
    """
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"longer than {MAX_CHARS} characters")
    text = THOUSANDS_COMMA.sub("", text.replace("$", ""))
    return evaluate_expression(PERCENT.sub(r"(\1/100)", LEADING_ZEROS.sub("", text)))


def parse_literal(text: str) -> Fraction:
    """The value of an unsigned number such as "12", ".5", "3." or "1e3"; leading zeros are fine.

    Raises ExpressionError where it is not one, or has too many digits.
    """
    match = NUMBER.fullmatch(text)
    if match is None:
        raise ExpressionError(f"not a number: {text[:40]!r}")
    whole, decimals, exponent = match.groups()
    digits = whole + decimals
    if not digits or len(digits) > MAX_DIGITS:
        raise ExpressionError(f"not a number of at most {MAX_DIGITS} digits: {text[:40]!r}")
    scale = int(exponent or 0) - len(decimals)
    if scale >= 0:
        return Fraction(int(digits) * 10**scale)
    return Fraction(int(digits), 10**-scale)


def _parse_right_side(text: str) -> Fraction:
    match = SIGNED_NUMBER.fullmatch(text)
    if match is None:
        raise ExpressionError("the right side is not a number")
    value = parse_literal(match[2])
    return -value if match[1] == "-" else value


def _tokenize(text: str) -> list[str]:
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"longer than {MAX_CHARS} characters")
    text = text.rstrip(" \t")
    tokens, position = [], 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"unexpected {text[position]!r}")
        tokens.append(match[1])
        position = match.end()
    return tokens


def _parse(tokens: list[str], floor: int, depth: int) -> Fraction:
    """Consume the operators that bind tighter than `floor`; `tokens` is a stack, next one last."""
    if depth > MAX_DEPTH:
        raise ExpressionError(f"nested deeper than {MAX_DEPTH}")
    value = _parse_operand(tokens, depth)
    while tokens and BINDING.get(tokens[-1], 0) > floor:
        operator = tokens.pop()
        # ** groups to the right: its right side may begin with another **
        tighter_than = BINDING[operator] - (operator == "**")
        value = _apply(operator, value, _parse(tokens, tighter_than, depth + 1))
    return value


def _parse_operand(tokens: list[str], depth: int) -> Fraction:
    if not tokens:
        raise ExpressionError("ends too early")
    token = tokens.pop()
    if token in "+-":
        value = _parse(tokens, SIGN_BINDING, depth + 1)
        return -value if token == "-" else value
    if token == "(":
        value = _parse(tokens, 0, depth + 1)
        if not tokens or tokens.pop() != ")":
            raise ExpressionError("unclosed parenthesis")
        return value
    if token in BINDING or token == ")":
        raise ExpressionError(f"unexpected {token!r}")
    if token.isdigit() and token[0] == "0" and token.strip("0"):
        raise ExpressionError(f"leading zero in {token[:40]!r}")
    return parse_literal(token)


def _apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    if operator in ("/", "//", "%") and not right:
        raise ExpressionError("division by zero")
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left / right
        case "//":
            return Fraction(left // right)
        case "%":
            return left % right
    return _power(left, right)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    """A power by a whole exponent, refused before it is computed where it would be large."""
    if exponent.denominator != 1:
        raise ExpressionError("the exponent is not a whole number")
    if not base and exponent < 0:
        raise ExpressionError("division by zero")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent.numerator) > MAX_RESULT_BITS:
        raise ExpressionError("the power is too large")
    return base**exponent.numerator
