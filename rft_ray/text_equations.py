"""Plain equations in a text, "3 + 4 = 7": found without a parser of language, checked exactly.

Only what is surely an equation of numbers counts: both sides of a "=" evaluate, one of them has an
operator, and no letter, power or LaTeX touches them. Everything else ("x = 5", "3 apples = 6",
ratios, remainders, mixed numbers, "3 / 1/4") is passed over, since a false alarm costs a right
rollout. What `<<...>>` holds is not looked at here.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

from rft_ray.arithmetic import TOLERANCE, ExpressionError, evaluate_loosely

MAX_SIDE_CHARS = 200
# a side: characters of arithmetic only, on one line
LEFT_SIDE = re.compile(r"[-+*/().,$0-9 \t]*$")
RIGHT_SIDE = re.compile(r"[-+*/().,$0-9 \t]*")
OPERATOR = re.compile(r"[0-9).]\s*[-+*/]\s*[-(.$0-9]")
LETTER_TIMES = re.compile(r"(?<=[0-9)]) [xX] (?=[($.0-9])")
DECIMALS = re.compile(r"-?\$?[0-9,]*\.([0-9]+)")
# the number goes on: a remainder, "5 and 2/3", "26 cents" beside dollars
GOES_ON = re.compile(r"\s*(?:r\b|rem|(?:with|and) a\b|and \(?[0-9]|cents?\b)", re.IGNORECASE)
SIGNS = str.maketrans({"\N{MULTIPLICATION SIGN}": "*", "\N{DIVISION SIGN}": "/"})
SIGNS[ord("\N{MINUS SIGN}")] = "-"


def find_text_equations(text: str) -> Iterator[tuple[str, str]]:
    """The sides of every plain equation outside of `<<...>>`, in order: "3 + 4", "7".

    A chain "1 + 2 = 3 = 6 / 2" gives a pair for each of its signs.
    """
    text = LETTER_TIMES.sub(" * ", _without_calculations(text).translate(SIGNS))
    position = text.find("=")
    while position >= 0:
        left = _left_side(text[max(0, position - MAX_SIDE_CHARS) : position])
        right = _right_side(text[position + 1 : position + 1 + MAX_SIDE_CHARS])
        if left and right and _is_equation(left, right):
            yield left, right
        position = text.find("=", position + 1)


def is_text_equation_right(sides: tuple[str, str]) -> bool:
    """Whether the sides agree to 1e-3, or the right one is the left one rounded as it is written.

    ("10 / 3", "3.33") is right, ("10 / 3", "3") and ("3 + 4", "8") are wrong; sides that cannot be
    evaluated are not wrong, since they may be no arithmetic.
    """
    try:
        left, right = map(evaluate_loosely, sides)
    except ExpressionError:
        return True
    decimals = DECIMALS.fullmatch(sides[1])
    half_unit = Fraction(1, 2 * 10 ** len(decimals[1])) if decimals else Fraction(0)
    return abs(left - right) < TOLERANCE or abs(left - right) <= half_unit


def _is_equation(left: str, right: str) -> bool:
    """Whether something is computed, and divisions cannot be meant otherwise ("3 / 1/4")."""
    has_operator = OPERATOR.search(left) or OPERATOR.search(right)
    return has_operator is not None and left.count("/") < 2 and right.count("/") < 2


def _without_calculations(text: str) -> str:
    """The text without what stands in `<<...>>`, in linear time."""
    parts, start = [], 0
    while (opening := text.find("<<", start)) >= 0 and (close := text.find(">>", opening)) >= 0:
        parts.append(text[start:opening])
        start = close + 2
    return "".join([*parts, text[start:]])


def _left_side(before: str) -> str | None:
    """The arithmetic that ends a text, or None where a word or a symbol could be part of it."""
    match = LEFT_SIDE.search(before)
    side = match[0] if match else ""
    start = len(before) - len(side)
    stripped = side.strip()
    if not stripped or stripped[0] not in "-($.0123456789" or stripped[-1] not in ")0123456789":
        return None
    before_it = before[:start] + side[: len(side) - len(side.lstrip())]
    if before_it and not before_it[-1].isspace() and before_it[-1] not in "=:;([{":
        return None
    last_word = before_it.rpartition("\n")[2].strip()[-1:]
    # "x - 3 = 4", "3 apples x 2/3 = 2": the side may go on in front
    if (stripped[0] == "-" and last_word not in "=:;([{") or last_word in ("x", "X", "%", "^"):
        return None
    return stripped


def _right_side(after: str) -> str | None:
    """The arithmetic that begins a text, without the punctuation behind it."""
    match = RIGHT_SIDE.match(after)
    side = match[0] if match else ""
    rest = after[len(side) :]
    touches = bool(side) and not side[-1].isspace() and bool(rest) and not rest[0].isspace()
    if touches and rest[0] not in "=;:?!)]}'\"":
        return None
    if GOES_ON.match(rest) or rest.lstrip().startswith(("%", "^", "\\")):
        return None
    side = side.strip()
    while side and side[-1] in ".,(":
        side = side[:-1].rstrip()
    return side if side and side[-1] in ")0123456789" else None
