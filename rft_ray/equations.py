"""What makes two solutions one path: keys over a solution's calculations, as pure functions.

The paper's key is the ordered, literal list; the others forgive the order of equations or of
operands. A key is computed from the text alone and never evaluates it. Left out: algebra beyond the
order of terms and factors, so 2*(3+4) and 2*3+2*4 stay two paths.
"""

import re
from fractions import Fraction

from rft_ray.arithmetic import ExpressionError, parse_literal
from rft_ray.grading import find_calculations
from rft_ray.text_equations import find_text_equations

MAX_CHARS = 1_000
MAX_DEPTH = 50
TOKEN = re.compile(r"[0-9][0-9,]*\.?[0-9]*%?|\.[0-9]+%?|[-+*/()]")
SIGNS = str.maketrans({"x": "*", "\u00d7": "*", "\u00f7": "/", "\u2212": "-", "$": "", " ": "",
                       "\t": ""})  # fmt: skip


def path_key(text: str) -> str:
    """The calculations of a text, in order, without spaces: the paper's key (`get_equation`).

    "3+4=<<3+4=7>>7, <<7 *2=14>>" -> "3+4=7|7*2=14"
    """
    return "|".join(find_calculations(text)).replace(" ", "")


def equation_set_key(text: str) -> str:
    """The calculations of a text whatever their order and however often each is written.

    "<<7*2=14>> <<3+4=7>> <<7*2=14>>" -> "3+4=7|7*2=14"
    """
    return "|".join(sorted({found.replace(" ", "") for found in find_calculations(text)}))


def normalised_key(text: str) -> str:
    """The equations of a text in order, each with its operands in one order and form.

    Where there are no `<<...>>`, the equations written in plain text count.
    "<<4+3=7.0>>" and "so 3 + 4 = 7" -> "3+4=7"
    """
    found = list(find_calculations(text)) or map("=".join, find_text_equations(text))
    return "|".join(map(normalise_equation, found))


def normalise_equation(equation: str) -> str:
    """An equation with sorted operands and plain numbers: "4 + 3 = 7.0" -> "3+4=7".

    What is not arithmetic stays as it is, without spaces.
    """
    left, mark, right = equation.partition("=")
    return _normalise(left) + mark + _normalise(right)


def _normalise(expression: str) -> str:
    try:
        tokens = _tokenize(expression)
        tokens.reverse()
        found = _sum(tokens, 0)
        if tokens:
            raise ExpressionError(f"unexpected {tokens[-1]!r}")
        return found
    except ExpressionError:
        return expression.replace(" ", "")


def _tokenize(expression: str) -> list[str]:
    text = expression.translate(SIGNS)
    tokens = TOKEN.findall(text)
    if len(text) > MAX_CHARS or not tokens or sum(map(len, tokens)) != len(text):
        raise ExpressionError("not arithmetic")
    return tokens


def _sum(tokens: list[str], depth: int) -> str:
    """Terms in one order, those that are taken away last; `tokens` is a stack, next one last."""
    added, taken = [_product(tokens, depth)], list[str]()
    while tokens and tokens[-1] in "+-":
        (added if tokens.pop() == "+" else taken).append(_product(tokens, depth))
    return "-".join(["+".join(sorted(added)), *sorted(taken)])


def _product(tokens: list[str], depth: int) -> str:
    """Factors in one order, divisors last."""
    factors, divisors = [_factor(tokens, depth)], list[str]()
    while tokens and tokens[-1] in "*/":
        (factors if tokens.pop() == "*" else divisors).append(_factor(tokens, depth))
    return "/".join(["*".join(sorted(factors)), *sorted(divisors)])


def _factor(tokens: list[str], depth: int) -> str:
    if not tokens or depth > MAX_DEPTH:
        raise ExpressionError("ends too early, or is nested too deep")
    token = tokens.pop()
    if token == "-":
        return "-" + _factor(tokens, depth + 1)
    if token == "(":
        inner = _sum(tokens, depth + 1)
        if not tokens or tokens.pop() != ")":
            raise ExpressionError("unclosed parenthesis")
        return inner if re.fullmatch(r"[0-9.]+%?", inner) else f"({inner})"
    if token in "+*/)":
        raise ExpressionError(f"unexpected {token!r}")
    percent = "%" if token.endswith("%") else ""
    return _plain_number(parse_literal(token.rstrip("%").replace(",", ""))) + percent


def _plain_number(value: Fraction) -> str:
    """7.0 -> "7", 0.50 -> "0.5": decimals, so that 1/2 stays a division."""
    whole, rest = divmod(value, 1)
    if not rest:
        return str(whole)
    digits = 0
    while rest.denominator != 1:
        rest *= 10
        digits += 1
    return f"{whole}.{int(rest):0{digits}d}"
