"""The exact value of a number standing alone, and what style gsm8k forgives around it.

Rationals only. A currency sign, thousands commas, decimals and a simple fraction are plain;
misplaced commas, percent signs, exponents and digits that are not ASCII are not. Unit words are
forgiven in a sentence ("the answer is 18 dollars."), elsewhere by the leniency `units`; words that
change the number ("18 thousand", "18 or 19", "18 squared") never are.
"""

import re
from fractions import Fraction

from rft_ray.arithmetic import ExpressionError, parse_literal
from rft_ray.leniencies import Leniencies
from rft_ray.stated_answers import Form

MAX_CHARS = 200
SIMPLE = re.compile(r"-?[0-9]{1,18}")
PLAIN_NUMBER = re.compile(
    r"([-+\u2212]?[$€£¥]?|[$€£¥][-\u2212])"
    r"((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:/([0-9]+)\.?)?"
)
LATEX_FRACTION = re.compile(r"([+-]?)\\[dt]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}")
# $18$ dollars, where $18 is no price
SPOKEN_FORMULA = re.compile(r"\A\$([^$]{1,40})\$(?=\s)")
LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox|mathbf)\s*\{([^{}\\]*)\}")
WITH_UNITS = re.compile(r"(\S+?)\s*(°|(?:(?:\s|(?<=[0-9]))[A-Za-z][A-Za-z/.²³'-]*){1,4})")
# what makes another number of the one before it, or another answer
NOT_UNITS = re.compile(
    r"\b(?:hundred|thousand|[kmbexir]|bn|mn|million|billion|trillion|dozen|score|percent|pct"
    r"|percentage|half|halve|third|quarter|(?:four|fif|six|eigh|ten|hundred|thousand)th"
    r"|squared|cubed|factorial|plus|minus|times|over|divided|mod|modulo|point|negative|pi"
    r"|to|the|and|or|not|nor|but|than|less|more|fewer|if|is|was|approximately|about|remainder"
    r"|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six"
    r"|seven|eigh|nine)teen|twenty|(?:thir|for|fif|six|seven|eigh|nine)ty)s?\b",
    re.IGNORECASE,
)
STRICT = Leniencies()


def parse_number(
    text: str, leniencies: Leniencies = STRICT, form: Form = "mark"
) -> Fraction | int | None:
    """The value of a final answer given in `form`, or None where it is not one number.

    "1,000" -> 1000; "$5" -> 5; "18." -> 18; "1/2" -> 1/2; in a box also "\\frac{1}{2}"; in a
    sentence also "18 dollars"; with `percent` "50%" -> 50; with `units` "18 dollars" anywhere.
    """
    text = text.strip()
    if SIMPLE.fullmatch(text):
        return int(text)
    if len(text) > MAX_CHARS:
        return None
    if form != "mark":
        text = _strip_markup(text)
    if (value := parse_plain_number(text)) is not None:
        return value
    if leniencies.percent and text.endswith("%"):
        return parse_plain_number(text[:-1].rstrip().removesuffix("\\"))
    if leniencies.units or form == "phrase":
        return _parse_with_units(text)
    return None


def parse_plain_number(text: str) -> Fraction | None:
    """The exact value of a number standing alone, or None.

    Thousands commas, a currency sign, decimals and a simple fraction are plain: "1,000", "$5",
    "18.", "1/2". Misplaced commas, units, percent signs and non-ASCII digits are not.
    """
    text = text.strip()
    match = PLAIN_NUMBER.fullmatch(text) or LATEX_FRACTION.fullmatch(text)
    if match is None:
        return None
    sign, digits, denominator = match.groups()
    try:
        value = parse_literal(digits.replace(",", ""))
        if denominator is not None:
            value /= parse_literal(denominator)
    except (ExpressionError, ZeroDivisionError):
        return None
    return -value if "-" in sign or "\u2212" in sign else value


def _strip_markup(text: str) -> str:
    """A boxed or spoken answer without the dollars, asterisks and LaTeX spaces around it."""
    text = text.strip(" \t*`")
    for opening, closing in (("\\(", "\\)"), ("$", "$")):
        if len(text) > 2 and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)]
    text = SPOKEN_FORMULA.sub(r"\1 ", text).strip()
    text = text.replace("{,}", ",").replace("\\$", "$")
    text = re.sub(r"\\[,!;: ]|~", "", text) if "\\" in text or "~" in text else text
    return LATEX_TEXT.sub(r" \1", text).strip()


def _parse_with_units(text: str) -> Fraction | None:
    text = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})$", "°", LATEX_TEXT.sub(r" \1", text))
    match = WITH_UNITS.fullmatch(text.rstrip(" ."))
    if match is None:
        return None
    return None if NOT_UNITS.search(match[2]) else parse_plain_number(match[1])
