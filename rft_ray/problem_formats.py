"""One record of a problem set becomes a Problem: a pure function for each format.

Every function takes the record as plain data (JSON, Arrow), the id a problem gets where the record
has none, and the source to note; each raises InputError naming the field that is wrong. Answers
stay text: GSM8K's and SVAMP's are checked to be numbers, LaTeX is only cut out of its box, never
parsed. Left out: finding the records (`problems.py`), and what a Problem has no place for (MATH's
level, SVAMP's equation).
"""

import math
import re
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import pyarrow as pa

from rft_ray.config import ProblemSetConfig
from rft_ray.errors import InputError
from rft_ray.plain_numbers import parse_plain_number
from rft_ray.record_checks import describe
from rft_ray.stated_answers import ANSWER_MARK
from rft_ray.types import Problem

Raw = dict[str, Any]

SENTENCE_ENDS = ".?!,;:)]\"'\N{RIGHT DOUBLE QUOTATION MARK}\N{HORIZONTAL ELLIPSIS}"
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# Where TeX leaves the formula or the line that a box without braces stands in.
BARE_BOX_END = re.compile(r"\$|\\[\])\\]|\\end(?![A-Za-z])|&|\n")


def parse_gsm8k(raw: Raw, default_id: str, source: str) -> Problem:
    """OpenAI's `question` and `answer`, which ends with `#### number`."""
    return _parse_worked(raw, ("question", "answer"), default_id, source)


def parse_gsm8k_screl(raw: Raw, default_id: str, source: str) -> Problem:
    """The same under gsm8k-ScRel's names, `query` and `response`."""
    return _parse_worked(raw, ("query", "response"), default_id, source)


def parse_math(raw: Raw, default_id: str, source: str) -> Problem:
    """Hendrycks MATH: `problem`, `solution`, and `answer` or the last box of the solution.

    `unique_id` is the id and `subject` is noted in the source where there are such fields.
    """
    prompt, solution = _text(raw, "problem"), _text(raw, "solution")
    has_answer, has_id = raw.get("answer") is not None, raw.get("unique_id") is not None
    return Problem(
        id=_text_or_number(raw, "unique_id") if has_id else default_id,
        prompt=prompt,
        answer=_text_or_number(raw, "answer") if has_answer else find_last_box(solution),
        source=f"{source}/{raw['subject']}" if isinstance(raw.get("subject"), str) else source,
        solution=solution,
    )


def parse_svamp(raw: Raw, default_id: str, source: str) -> Problem:
    """SVAMP's `ID`, `Body`, `Question` and `Answer`; its `Equation` is no solution to learn from.

    The id must be there, so `default_id` goes unused.
    """
    name, body = _text_or_number(raw, "ID"), _text(raw, "Body").strip()
    if body[-1] not in SENTENCE_ENDS:
        body += "."
    answer = _text_or_number(raw, "Answer").strip()
    if parse_plain_number(answer) is None:
        raise InputError(f"Answer: not a number: {answer[:40]!r}")
    return Problem(name, f"{body} {_text(raw, 'Question').strip()}", answer, source)


def parse_columns(raw: Raw, default_id: str, source: str, config: ProblemSetConfig) -> Problem:
    """A record whose columns the config names; id and solution may be missing or null."""
    has_id = raw.get(config.id_column) is not None
    has_solution = raw.get(config.solution_column) is not None
    return Problem(
        id=_text_or_number(raw, config.id_column) if has_id else default_id,
        prompt=_text(raw, config.prompt_column),
        answer=_text_or_number(raw, config.answer_column),
        source=source,
        solution=_text(raw, config.solution_column) if has_solution else None,
    )


def read_row(table: Any, index: int) -> Raw:
    """A row of an Arrow table or batch as plain data; InputError for text that is not UTF-8."""
    row: Raw = {}
    for name in table.schema.names:
        value = table.column(name)[index]
        try:
            row[name] = value.as_py()
        except UnicodeDecodeError:
            raise InputError(f"{name}: not UTF-8 text") from None
        if value.type == pa.float32() and row[name] is not None:
            row[name] = np.float32(row[name])  # 0.1, where a double would say 0.10000000149011612
    return row


def find_last_box(solution: str) -> str:
    r"""What stands in the last `\boxed{...}` or `\fbox{...}` of a solution, its braces balanced.

    A box without braces reaches to the end of its formula: `$\boxed 5$` gives "5". Escaped braces
    are text. Raises InputError where there is no box, or its content is empty or does not end.
    """
    boxes = list(BOX.finditer(solution))
    if not boxes:
        raise InputError(r"solution: has no \boxed{...}, and there is no answer")
    start = boxes[-1].end()
    if solution.startswith("{", start):
        content = solution[start + 1 : _find_closing_brace(solution, start)].strip()
    else:
        end = BARE_BOX_END.search(solution, start)
        content = solution[start : end.start() if end else None].strip(" \t\r.,")
    if not content:
        raise InputError("solution: its last box is empty")
    return content


def _find_closing_brace(text: str, start: int) -> int:
    depth = 0
    for match in BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    raise InputError("solution: the braces of its last box are not balanced")


def _parse_worked(raw: Raw, columns: tuple[str, str], default_id: str, source: str) -> Problem:
    prompt, solution = _text(raw, columns[0]), _text(raw, columns[1])
    _, mark, answer = solution.rpartition(ANSWER_MARK)
    if not mark:
        raise InputError(f"{columns[1]}: has no {ANSWER_MARK}")
    answer = answer.strip().replace(",", "")
    if parse_plain_number(answer) is None:
        raise InputError(f"{columns[1]}: not a number after {ANSWER_MARK}: {answer[:40]!r}")
    return Problem(default_id, prompt, answer, source, solution)


def _text(raw: Raw, column: str) -> str:
    value = raw.get(column)
    if not isinstance(value, str) or not value.strip():
        found = "missing" if column not in raw else f"expected text, found {describe(value)}"
        raise InputError(f"{column}: {found}")
    return value


def _text_or_number(raw: Raw, column: str) -> str:
    """Ids and answers are often bare numbers, of Python, NumPy or Arrow: 145.0 gives "145"."""
    value = raw.get(column)
    is_number = isinstance(value, Real | Decimal) and not isinstance(value, bool)
    if is_number and (isinstance(value, Integral) or math.isfinite(value)):
        return _write_plainly(value)
    return _text(raw, column)


def _write_plainly(number: Any) -> str:
    """All digits that tell the number from its neighbours, no exponent, no ".0"."""
    text = format(Decimal(str(number)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
