"""Is a completion right? GSM8K's style: pure functions from two texts to a verdict.

Precision comes first: in RFT a false "correct" becomes training data. A final answer is written
after `####`, in `\\boxed{}`, or after "the answer is" (`stated_answers.py` finds it); it must be
one plain number (`plain_numbers.py`) that equals the gold answer as a rational. Final answers that
differ are none. What cannot be read is `unparsable`, never guessed. Left out: LaTeX, which is the
style `math`, and numbers in words.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

from rft_ray.arithmetic import is_calculation_right, is_equation_right
from rft_ray.leniencies import Leniencies
from rft_ray.plain_numbers import STRICT, parse_number
from rft_ray.stated_answers import find_stated_answers
from rft_ray.text_equations import find_text_equations, is_text_equation_right
from rft_ray.types import Verdict

PAPER_ANSWER = re.compile(r"#### (-?[0-9.,]+)")


def grade_gsm8k(
    completion: str,
    answer: str,
    check_calculations: bool = True,
    check_equations: bool = False,
    leniencies: Leniencies = STRICT,
) -> Verdict:
    """Grade GSM8K's form: calculations in `<<lhs=rhs>>`, a final answer, and nothing after it.

    Wrong calculations, and with `check_equations` wrong plain equations of the text, make a right
    answer `miscalculated`. A gold answer that is not a number gives `error`: nothing can be said
    about the completion.

    "2+2=<<2+2=4>>4\\n#### 4.0", "4" -> correct;  "<<2+2=5>> #### 4", "4" -> miscalculated
    "#### 5", "4" -> wrong;                       "#### 4 or 5", "4" -> unparsable
    """
    gold = parse_number(answer, leniencies)
    if gold is None:
        return "error"
    final = final_number(completion, leniencies)
    if final is None:
        return "unparsable"
    if not is_equal(final, gold, leniencies.tolerance):
        return "wrong"
    if check_calculations and not all(map(is_calculation_right, find_calculations(completion))):
        return "miscalculated"
    if check_equations and not all(map(is_text_equation_right, find_text_equations(completion))):
        return "miscalculated"
    return "correct"


def grade_as_paper(completion: str, answer: str, check_calculations: bool = True) -> Verdict:
    """Grade as the collector of Yuan et al. (2023) does, quirks and all, without its `eval`.

    The text ends at the first NUL; the first `#### number` counts, whatever follows it; numbers are
    compared as floats; a calculation is `is_equation_right`, and no calculation is a right one.
    """
    gold = _paper_float(answer)
    if gold is None:
        return "error"
    text = completion.partition("\0")[0]
    match = PAPER_ANSWER.search(text)
    final = _paper_float(match[1]) if match else None
    if final is None:
        return "unparsable"
    if final != gold:
        return "wrong"
    if check_calculations and not all(map(is_equation_right, find_calculations(text))):
        return "miscalculated"
    return "correct"


def is_equal(value: Fraction | int, gold: Fraction | int, tolerance: float = 0.0) -> bool:
    """Whether two numbers are the same, or differ by at most `tolerance` of the gold one."""
    if value == gold:
        return True
    return tolerance > 0 and abs(value - gold) <= Fraction(tolerance) * abs(gold)


def final_number(completion: str, leniencies: Leniencies = STRICT) -> Fraction | int | None:
    """The number that is the final answer; None where there is none, or several that differ.

    The strongest form that is there decides: `####` before `\\boxed{}` before "the answer is".
    Weaker forms beside it may be unreadable (they are often prose), but a number among them must
    be the same.
    """
    finals = find_stated_answers(completion)
    agreed: Fraction | int | None = None
    for final in finals:
        value = parse_number(final.text, leniencies, final.form)
        if value is None and final.form != finals[0].form:
            continue
        if value is None or (agreed is not None and value != agreed):
            return None
        agreed = value
    return agreed


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


def _paper_float(text: str) -> float | None:
    """A finite float of ASCII text, commas removed; None where there is none."""
    if not text.isascii() or "_" in text:
        return None
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None
