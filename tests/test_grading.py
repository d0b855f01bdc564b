"""Precision first: tables of what is correct, and of everything near it that is not."""

import json
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_ray.grading import find_calculations, grade_as_paper, grade_gsm8k
from rft_ray.leniencies import Leniencies
from rft_ray.plain_numbers import parse_plain_number
from rft_ray.types import VERDICTS

GSM8K = Path(__file__).parents[2] / "shared/data/gsm8k"


@pytest.mark.parametrize(
    ("final", "answer"),
    [
        ("18", "18"),
        ("18.", "18"),
        ("18.0", "18"),
        ("1,000", "1000.0"),
        ("1000", "1,000"),
        ("1,234,567.50", "1234567.5"),
        ("$18", "18"),
        ("-$5", "-5"),
        ("-0", "0"),
        ("+7", "7"),
        ("007", "7"),
        (".5", "1/2"),
        ("2000/2", "1000"),
        ("18 \n\n", "18"),
    ],
)
def test_equal_plain_numbers_are_correct(final: str, answer: str) -> None:
    assert grade_gsm8k(f"2+2=<<2+2=4>>4\n#### {final}", answer) == "correct"


@pytest.mark.parametrize(
    ("final", "answer"),
    [
        ("1.00000001", "1"),
        ("0.33", "1/3"),
        ("500", "5"),
        ("5", "500"),
        ("18", "-18"),
        ("100000", "100009"),
        ("99999999999999999999", "99999999999999999998"),
        ("0.1", "0.10000000000000001"),
    ],
)
def test_unequal_numbers_are_wrong_however_close(final: str, answer: str) -> None:
    assert grade_gsm8k(f"#### {final}", answer) == "wrong"


UNPARSABLE_FINALS = (
    ";eighteen;18 dollars;18%;1.8 billion;18 or 19;18 19;18\nSo it is 19.;# 18;18 #### 19;1,8;18,;"
    "18\n#### nothing;1 8;18x;18\x00;\uff11\uff18;\u0661\u0668;\u202e81;18\u200b;18/0;1e1;18..;"
    "--18;nan;inf;0x12;18\ud800"
)


@pytest.mark.parametrize("completion", ["", "18", "It is 18", "####", "the answer is", "\\boxed{}"])
def test_a_completion_without_a_marked_answer_is_unparsable(completion: str) -> None:
    assert grade_gsm8k(completion, "18") == "unparsable"


@pytest.mark.parametrize("final", UNPARSABLE_FINALS.split(";"))
def test_what_is_not_one_plain_number_is_unparsable(final: str) -> None:
    assert grade_gsm8k(f"#### {final}", "18") == "unparsable"


def test_final_answers_that_agree_are_one_answer() -> None:
    assert grade_gsm8k("#### 18\n#### 18.0", "18") == "correct"


@pytest.mark.parametrize("answer", ["", "x", "1/0", "18 dollars", "nan", "1" * 101])
def test_an_unreadable_gold_answer_accepts_nothing(answer: str) -> None:
    assert grade_gsm8k(f"#### {answer}", answer) == "error"


def test_a_wrong_calculation_matters_only_beside_a_right_answer() -> None:
    assert grade_gsm8k("<<2+2=5>>\n#### 4", "4") == "miscalculated"
    assert grade_gsm8k("<<2+2=5>>\n#### 4", "4", check_calculations=False) == "correct"
    assert grade_gsm8k("<<2+2=5>>\n#### 5", "4") == "wrong"
    assert grade_gsm8k("<<2+2=4>><<1,000*2=2,000>>\n#### 4", "4") == "correct"
    assert grade_gsm8k("<<2+2=4=5>>\n#### 4", "4") == "miscalculated"
    assert grade_gsm8k("<<>>\n#### 4", "4") == "miscalculated"
    assert grade_gsm8k("no calculations, one << unclosed\n#### 4", "4") == "correct"


@settings(deadline=None)
@given(st.integers(-(10**30), 10**30), st.integers(0, 6))
def test_every_rendering_of_a_number_is_the_same_answer(number: int, zeros: int) -> None:
    final = f"{number:,}" + ("." + "0" * zeros if zeros else "")
    assert grade_gsm8k(f"#### {final}", str(number)) == "correct"
    assert grade_gsm8k(f"#### {final}", str(number + 1)) == "wrong"


@settings(deadline=None)
@given(st.text(alphabet="<>#=+ 0123456789.,\n$/", max_size=80) | st.text(), st.text())
def test_any_text_gets_a_verdict(completion: str, answer: str) -> None:
    assert grade_gsm8k(completion, answer) in VERDICTS
    value = parse_plain_number(completion)
    assert value is None or isinstance(value, Fraction)


@settings(deadline=None)
@given(st.text(alphabet="<>a=", max_size=40))
def test_calculations_are_those_of_the_papers_pattern(text: str) -> None:
    assert list(find_calculations(text)) == re.findall(r"<<([^>]*)>>", text)


@pytest.mark.parametrize(
    "text",
    [
        "<<" * 10**6,
        "<<1>" * 10**5,
        "####" * 10**5,
        "#### " + "9" * 10**6,
        "#### " + "1," * 10**6,
        "#### 1" + " " * 10**6 + "x",
        "{" * 10**6,
        "<<" + "(" * 10**6 + ">>#### 1",
    ],
    ids=lambda text: f"{text[:12]}({len(text)})",
)
def test_two_megabytes_are_graded_in_linear_time(text: str) -> None:
    start = time.perf_counter()
    assert grade_gsm8k(text, "1") in ("unparsable", "miscalculated")
    assert time.perf_counter() - start < 2


@pytest.mark.skipif(not GSM8K.exists(), reason="shared data is not here")
def test_all_labelled_solutions_are_graded_as_labelled() -> None:
    groups = (GSM8K / "example_groups.jsonl").read_text().splitlines()
    labels = (GSM8K / "example_model_solutions.jsonl").read_text().splitlines()
    disagreements = []
    for line, labelled in zip(map(json.loads, groups), map(json.loads, labels), strict=True):
        for rollout in line["rollouts"]:
            answer = line["problem"]["answer"]
            verdict = grade_gsm8k(rollout["completion"], answer, check_calculations=False)
            if (verdict == "correct") != labelled[rollout["policy"]]["is_correct"]:
                disagreements.append(rollout["completion"])
    assert disagreements == []
