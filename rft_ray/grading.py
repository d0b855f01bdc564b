"""Is a completion right? Pure functions from texts to a verdict, one per answer style.

Precision comes first: in RFT a false "correct" becomes training data. So the final answer is all
that follows `####`, up to the end of the text; it must be one plain number that equals the gold
answer as a rational; what cannot be read is `unparsable`, never guessed. Left out: LaTeX boxes,
"the answer is", and unit words.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

from rft_ray.arithmetic import ExpressionError, is_equation_right, parse_literal
from rft_ray.types import Verdict

ANSWER_MARK = "####"
PLAIN_NUMBER = re.compile(
    r"([+-]?)\$?((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:/([0-9]+))?"
)


def grade_gsm8k(completion: str, answer: str, check_calculations: bool = True) -> Verdict:
    """Grade GSM8K's form: calculations in `<<lhs=rhs>>`, then `#### number` and nothing else.

    Several final answers must agree. A gold answer that is not a number gives `error`: nothing can
    be said about the completion.

    "2+2=<<2+2=4>>4\\n#### 4.0", "4" -> correct;  "<<2+2=5>> #### 4", "4" -> miscalculated
    "#### 5", "4" -> wrong;                       "#### 4 or 5", "4" -> unparsable
    """
    gold = parse_plain_number(answer)
    if gold is None:
        return "error"
    final = final_number(completion)
    if final is None:
        return "unparsable"
    if final != gold:
        return "wrong"
    if check_calculations and not all(map(is_equation_right, find_calculations(completion))):
        return "miscalculated"
    return "correct"


def final_number(completion: str) -> Fraction | None:
    """The number after `####`; None where there is none, or several that differ."""
    finals = {parse_plain_number(final) for final in completion.split(ANSWER_MARK)[1:]}
    return finals.pop() if len(finals) == 1 else None


def final_answer(text: str) -> str | None:
    """What follows the last `####`, without the white space around it; None without the mark."""
    _, mark, answer = text.rpartition(ANSWER_MARK)
    return answer.strip() if mark else None


def parse_plain_number(text: str) -> Fraction | None:
    """The exact value of a number standing alone, or None.

    Thousands commas, a dollar sign, decimals and a simple fraction are plain: "1,000", "$5", "18.",
    "1/2". Misplaced commas, units, percent signs and non-ASCII digits are not.
    """
    match = PLAIN_NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    sign, digits, denominator = match.groups()
    try:
        value = parse_literal(digits.replace(",", ""))
        if denominator is not None:
            value /= parse_literal(denominator)
    except (ExpressionError, ZeroDivisionError):
        return None
    return -value if sign == "-" else value


def find_calculations(text: str) -> Iterator[str]:
    """What stands inside every `<<...>>`, in order: the matches of `<<([^>]*)>>` in linear time.

    The regular expression is quadratic in the number of unclosed `<<`, which models do write.
    """
    start = text.find("<<")
    while start >= 0:
        close = text.find(">", start)
        if close < 0:
            return
        if text.startswith(">>", close):
            yield text[start + 2 : close]
            close += 1
        start = text.find("<<", close + 1)
