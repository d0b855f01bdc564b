"""Boxes are cut out with balanced braces, and numbers of any library become plain text."""

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_ray.config import ProblemSetConfig
from rft_ray.errors import InputError
from rft_ray.problem_formats import find_last_box, parse_columns
from rft_ray.types import Problem

CONFIG = ProblemSetConfig(format="jsonl", path="unused")


def parse(answer: Any) -> Problem:
    return parse_columns({"id": answer, "prompt": "p", "answer": answer}, "1", "", CONFIG)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"$\boxed{5}$", "5"),
        (r"$\boxed{1}$, no: $\boxed{ 2 }$.", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}} {x}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\left\{ x \right.} and }", r"\left\{ x \right."),
        (r"\fbox{7} after \boxed {6}", "6"),
        (r"\boxed{6} then \fbox{7}", "7"),
        (r"\boxed{a = \boxed{b}}", "b"),
        (r"It is $\boxed 5$.", "5"),
        (r"It is $\boxed 42.$ Done", "42"),
        (r"\[\boxed \frac{1}{2}\]", r"\frac{1}{2}"),
        (r"\(\boxed 5\) cm", "5"),
        (r"\begin{align*}x &= \boxed 5\\ &> 1\end{align*}", "5"),
        (r"\boxed{5}, which we \boxedin{6}", "5"),
        ("\\boxed{1,\n2}", "1,\n2"),
    ],
)
def test_the_last_box_is_the_answer(solution: str, answer: str) -> None:
    assert find_last_box(solution) == answer


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        ("5", r"solution: has no \boxed"),
        (r"\boxed{5} \boxed{", "solution: the braces of its last box are not balanced"),
        (r"\boxed{5\}", "solution: the braces of its last box are not balanced"),
        (r"\boxed{ }", "solution: its last box is empty"),
        (r"$\boxed$ 5", "solution: its last box is empty"),
    ],
)
def test_a_solution_without_a_whole_box_is_malformed(solution: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        find_last_box(solution)
    assert str(caught.value).startswith(message)


BALANCED = st.recursive(
    st.text("ab1 ^$,", min_size=1, max_size=3) | st.sampled_from([r"\{", r"\}", r"\\"]),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(
        lambda parts: f"{{{''.join(parts)}}}"
    ),
)


@given(st.text("ab{}$ ", max_size=8), BALANCED, st.text("ab{}$ \n", max_size=8))
def test_what_was_boxed_is_found_again(before: str, content: str, after: str) -> None:
    solution = f"{before}\\boxed{{x{content}x}}{after}"
    assert find_last_box(solution) == f"x{content}x"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (18, "18"),
        (145.0, "145"),
        (100.0, "100"),
        (2.5, "2.5"),
        (-0.001, "-0.001"),
        (1e-7, "0.0000001"),
        (1e16, "10000000000000000"),
        (10**400, "1" + "0" * 400),
        (np.int32(7), "7"),
        (np.float32(0.1), "0.1"),
        (np.float64(3.0), "3"),
        (Decimal("1.50"), "1.5"),
        (Decimal("1E+3"), "1000"),
    ],
)
def test_numbers_become_plain_text(number: Any, text: str) -> None:
    assert parse(number) == Problem(text, "p", text)


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), float("nan"), np.float32("inf"), Decimal("nan"), 1j, [1]]
)
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="id: expected text"):
        parse(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_plain_text_keeps_every_digit(number: float) -> None:
    assert float(parse(number).answer) == number
