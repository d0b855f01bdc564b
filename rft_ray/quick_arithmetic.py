"""Small calculations decided with floats, where floats cannot be mistaken; most of GSM8K's are.

A speed-up of `arithmetic.py` and nothing else: whatever is larger, nested, near the tolerance or
written in any special way is left to the exact evaluator.
"""

import re

SMALL = r"(?:(?:0|[1-9][0-9]{0,5})(?:\.[0-9]{1,4})?|\.[0-9]{1,4})"
RESULT = r"(-?[0-9]{1,9}(?:\.[0-9]{1,18})?)"
BINARY = re.compile(rf"({SMALL})([-+*/])({SMALL})={RESULT}")
CHAIN = re.compile(rf"({SMALL}(?:[-+*/]{SMALL}){{2,5}})={RESULT}")
OPERATORS = re.compile(r"([-+*/])")
# around the tolerance of 1e-3; a float is off by less than 1e-5 while no term exceeds LARGEST
CLEARLY_RIGHT, CLEARLY_WRONG = 0.0009, 0.0011
LARGEST = 1e9


def decide_quickly(text: str) -> bool | None:
    """Whether "a+b*c=d" holds to less than 1e-3, or None where only exact arithmetic can tell."""
    match = BINARY.fullmatch(text)
    if match is not None:
        left, operator, right, result = match.groups()
        value = _apply(operator, float(left), float(right))
    else:
        match = CHAIN.fullmatch(text)
        if match is None:
            return None
        left, result = match.groups()
        value = _evaluate(OPERATORS.split(left))
    if value is None or not -LARGEST < value < LARGEST:
        return None
    off = value - float(result)
    if -CLEARLY_RIGHT < off < CLEARLY_RIGHT:
        return True
    return None if -CLEARLY_WRONG < off < CLEARLY_WRONG else False


def _evaluate(parts: list[str]) -> float | None:
    """The value of numbers and operators in turn; None for a division by 0 or a large term."""
    total, term = 0.0, float(parts[0])
    for operator, number in zip(parts[1::2], parts[2::2], strict=True):
        if operator in "+-":
            total, term = total + term, float(number)
            if operator == "-":
                term = -term
            continue
        value = _apply(operator, term, float(number))
        if value is None or not -LARGEST < value < LARGEST:
            return None
        term = value
    return total + term


def _apply(operator: str, left: float, right: float) -> float | None:
    if operator == "*":
        return left * right
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    return left / right if right else None
