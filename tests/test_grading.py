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

pieces = st.sampled_from(
    ["####", "\\boxed{", "}", "the answer is ", "<<", ">>", "=", "18", " ", "\n", "\\frac{1}{2}",
     "%", "$", "dollars", "\0", "\ud800", "\u0661", "\u202e", "9" * 300, "3 + 4 = 7", "\\text{"]
)
hostile_text = (
    st.lists(pieces, max_size=30).map("".join)
    | st.text(alphabet="<>#=+ 0123456789.,\n$/", max_size=80)
    | st.text()
)
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


@pytest.mark.parametrize(
    "completion",
    [
        r"so \boxed{18}",
        r"so $\boxed{\$18}$ in all",
        r"\boxed{18.0} and again \boxed{18}",
        r"\boxed{\frac{36}{2}}",
        r"\boxed{\text{18}}",
        "The answer is 18",
        "Therefore, the final answer is: **18**.",
        "the answer is $18.",
        "The answer is $18$.",
        "THE ANSWER IS 18.0!",
        "The answer is 18 dollars.",
        "The answer is 18 dollars per week.\nDone.",
        "The answer is 18.\n#### 18",
        r"The answer is \boxed{18}.",
        "the answer is obvious\n#### 18",
        r"\boxed{18 \text{ eggs}}" + "\n#### 18",
    ],
)
def test_boxes_and_phrases_are_answers(completion: str) -> None:
    assert grade_gsm8k(completion, "18") == "correct"
    assert grade_gsm8k(completion, "19") == "wrong"


@pytest.mark.parametrize(
    "completion",
    [
        "The answer is 17.\n#### 18",
        r"\boxed{17}" + "\n#### 18",
        r"\boxed{17} no, \boxed{18}",
        "The answer is 17. The answer is 18.",
        "The answer is 18 or 19",
        "The answer is 18, or maybe 19",
        "The answer is 18 thousand",
        "The answer is 18 and a half",
        "The answer is 18 percent",
        "The answer is 18 squared",
        "The answer is 18x",
        r"\boxed{18",
        r"\boxed 18",
        r"\boxed{18\%}",
        r"\boxed{18 \text{ dollars}}",
        r"\boxed{1\frac{8}{1}}",
        "the answer is " * 200 + "18",
    ],
)
def test_what_is_not_one_answer_is_unparsable(completion: str) -> None:
    assert grade_gsm8k(completion, "18") == "unparsable"


@pytest.mark.parametrize(
    ("final", "leniencies", "verdict"),
    [
        ("18%", Leniencies(percent=True), "correct"),
        ("18%", Leniencies(units=True), "unparsable"),
        ("0.18", Leniencies(percent=True), "wrong"),
        ("1800%", Leniencies(percent=True), "wrong"),
        ("18 dollars", Leniencies(units=True), "correct"),
        ("18 miles per hour", Leniencies(units=True), "correct"),
        ("18km", Leniencies(units=True), "correct"),
        ("18^\\circ", Leniencies(units=True), "correct"),
        ("18 hundred", Leniencies(units=True), "unparsable"),
        ("18 or so", Leniencies(units=True), "unparsable"),
        ("18 dollars 19", Leniencies(units=True), "unparsable"),
        ("18 dollars", Leniencies(percent=True, tolerance=0.1), "unparsable"),
        ("18.1", Leniencies(tolerance=0.01), "correct"),
        ("18.2", Leniencies(tolerance=0.01), "wrong"),
        ("-18", Leniencies(True, 0.5, True), "wrong"),
    ],
)
def test_each_leniency_forgives_what_it_names(
    final: str, leniencies: Leniencies, verdict: str
) -> None:
    assert grade_gsm8k(f"#### {final}", "18", leniencies=leniencies) == verdict


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        ("#### 18 dollars", "correct"),
        ("#### 18\n#### 19", "correct"),
        ("#### 19\n#### 18", "wrong"),
        ("#### 18.", "correct"),
        ("#### 1,8", "correct"),
        ("#### 18\0#### 19", "correct"),
        ("\0#### 18", "unparsable"),
        ("####18", "unparsable"),
        ("#### $18", "unparsable"),
        ("#### 1.8.0", "unparsable"),
        ("#### 18.0000000000000000001", "correct"),
        ("the answer is 18", "unparsable"),
        ("<<2+2=4=5>>#### 18", "correct"),
        ("<<1,000*2=2,000>>#### 18", "miscalculated"),
        ("<<1/3=0.33>>#### 18", "miscalculated"),
        ("#### 18 <<1+1=3>>", "miscalculated"),
        ("#### 18 \0<<1+1=3>>", "correct"),
        ("#### " + "9" * 400, "unparsable"),
    ],
)
def test_compat_reads_as_the_papers_collector(completion: str, verdict: str) -> None:
    assert grade_as_paper(completion, "18") == verdict


def paper_verdict(completion: str, answer: str) -> str:
    """The collector of Yuan et al. (2023) as published, on text without calculations."""
    match = re.search(r"#### (\-?[0-9\.\,]+)", completion.split("\0")[0])
    try:
        final = float(match.group(1).replace(",", "")) if match else None
    except ValueError:
        final = None
    if final is None:
        return "unparsable"
    return "correct" if final == float(answer) else "wrong"


@settings(deadline=None)
@given(st.text(alphabet="#### 18.,-\0\n$x", max_size=30), st.sampled_from(["18", "-1.8", "0"]))
def test_compat_equals_the_collector_on_any_text(completion: str, answer: str) -> None:
    assert grade_as_paper(completion, answer) == paper_verdict(completion, answer)


def test_plain_equations_are_checked_by_option() -> None:
    text = "3 + 4 = 8 eggs\n#### 8"
    assert grade_gsm8k(text, "8") == "correct"
    assert grade_gsm8k(text, "8", check_equations=True) == "miscalculated"
    assert grade_gsm8k("3 + 4 = 7 eggs\n#### 7", "7", check_equations=True) == "correct"


@settings(deadline=None)
@given(st.integers(-(10**30), 10**30), st.integers(0, 6))
def test_every_rendering_of_a_number_is_the_same_answer(number: int, zeros: int) -> None:
    final = f"{number:,}" + ("." + "0" * zeros if zeros else "")
    assert grade_gsm8k(f"#### {final}", str(number)) == "correct"
    assert grade_gsm8k(f"#### {final}", str(number + 1)) == "wrong"


@settings(deadline=None)
@given(hostile_text, st.text() | st.just("18"), st.booleans())
def test_any_text_gets_a_verdict(completion: str, answer: str, is_lenient: bool) -> None:
    leniencies = Leniencies(is_lenient, 0.1 * is_lenient, is_lenient)
    verdict = grade_gsm8k(completion, answer, check_equations=True, leniencies=leniencies)
    assert verdict in VERDICTS
    assert grade_as_paper(completion, answer) in VERDICTS
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
        "\\boxed{" * 10**5,
        "\\boxed{}" * 10**5,
        "the answer is " * 10**5,
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
