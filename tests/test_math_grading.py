"""Final answers are found where they are stated, and graded without belief in anything else."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.math_variants import variants
from rft_ray.final_answers import find_boxes, find_final_answers
from rft_ray.latex_words import names
from rft_ray.leniencies import Leniencies
from rft_ray.math_grading import grade_math
from rft_ray.types import VERDICTS

DATA = Path(__file__).parents[2] / "shared/data"


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        (r"so $x=\boxed{\frac12}$.", "0.5"),
        (r"\boxed{5} and so the answer is $5$.", "5"),
        (r"the answer is 4? No: \boxed{5}", "5"),
        ("The answer is 5.", "5"),
        ("The final answer is $5$. I hope it is correct.", "5"),
        ("**Answer:** $(1, 2)$", "(1,2)"),
        ("Final Answer: The largest $n$ is 34.", "34"),
        ("2+3=5\n#### 5", "5"),
        (r"\boxed{28}\%", r"28\%"),
        (r"\boxed{28} percent", r"28\%"),
        (r"$\boxed{204}_5$", "204_5"),
        (r"What is \boxed{\phantom{2}}? It is \boxed{4}.", "4"),
        (r"$x = \boxed{3}$ or $x = \boxed{4}$", "3, 4"),
        (r"\boxed{\text{(C)}}", r"\text{(C)}"),
        (r"\boxed{\textbf{(C)}\ 12}", "C"),
        (r"\boxed{C}", r"\textbf{(C) } 12"),
        (r"\boxed{12}", r"\textbf{(C) } 12"),
        (r"Therefore $x \geq 5$ is the solution.", r"[5, \infty)"),
        ("So the total is 12.", "12"),
        (r"\boxed{10}\%", "10"),
        ("10", r"\boxed{10}\%"),
        ("5", r"Adding gives $2+3=\boxed{5}$."),
        (r"\dots", r"\dots"),
    ],
)
def test_a_right_final_answer_is_correct(completion: str, gold: str) -> None:
    assert grade_math(completion, gold) == "correct"


@pytest.mark.parametrize(
    ("completion", "gold", "verdict"),
    [
        (r"\boxed{4}", "5", "wrong"),
        (r"\boxed{4} or \boxed{5}", "5", "wrong"),
        (r"\boxed{5}. The answer is 4.", "5", "wrong"),
        (r"\boxed{5} #### 4", "5", "wrong"),
        ("#### 5\n#### 4", "5", "wrong"),
        ("The answer is 4 or 5.", "5", "wrong"),
        ("The answer is 5. So the answer is 4.", "5", "wrong"),
        (r"\boxed{\textbf{(B)}\ 12}", r"\textbf{(C) } 12", "wrong"),
        ("It is not 5.", "5", "unparsable"),
        ("Is the answer 5?", "5", "unparsable"),
        (r"\boxed{5 6}", "56", "unparsable"),
        (r"\boxed{5...}", "5", "unparsable"),
        ("The answer is definitely not 5.", "5", "unparsable"),
        ("12 apples", "12", "wrong"),
        ("It is 4 or maybe 5.", "5", "unparsable"),
        (r"\boxed{5", "5", "unparsable"),
        (r"\boxed{}", "5", "unparsable"),
        ("", "5", "unparsable"),
        ("hello", "5", "unparsable"),
        ("there were 5 of them and 4 of us all day", "5", "unparsable"),
        (r"\boxed{5}", "", "error"),
        (r"\boxed{5}", r"\boxed{\int x}", "error"),
    ],
)
def test_anything_else_is_not(completion: str, gold: str, verdict: str) -> None:
    assert grade_math(completion, gold) == verdict


def test_leniencies_are_off_unless_named() -> None:
    assert grade_math("28", r"28\%") == "wrong"
    assert grade_math("28", r"28\%", Leniencies(percent=True)) == "correct"


def test_boxes_are_balanced_and_outermost() -> None:
    boxes, _ = find_boxes(r"\boxed{a{b}\}} \fbox{\boxed{c}}")
    assert boxes == [(r"a{b}\}", ""), (r"\boxed{c}", "")]
    assert find_boxes("boxed{1}")[0] == []
    assert find_final_answers(r"\boxed 7").boxes == ("7",)


PARTS = (
    r"\boxed{ } { $ the_answer_is_ ####_ 1 2 x \frac , ^ ( ) \text{ _or_ % ._ \sqrt = < \pm ! "
    r"\infty \cup [ ] \log \sin 0 / - e i 9 _"
)
MATH_TEXT = st.lists(
    st.sampled_from([*sorted(names(PARTS)), "\ud800", "\x00", "\n"]).map(
        lambda part: part.replace("_", " ") if len(part) > 1 else part
    ),
    max_size=25,
).map("".join)


@settings(deadline=None, max_examples=300)
@given(MATH_TEXT | st.text(max_size=200), MATH_TEXT | st.text(max_size=100))
def test_any_text_gets_a_verdict(completion: str, answer: str) -> None:
    assert grade_math(completion, answer) in VERDICTS


HOSTILE = {
    "braces": "{" * 10**5,
    "boxes": r"\boxed{" * 10**5,
    "closed boxes": r"\boxed{1}" * 10**5,
    "digits": r"\boxed{" + "9" * 10**6 + "}",
    "bare digits": "9" * 10**6,
    "answers": "the answer is " * 10**5,
    "marks": "#### 5\n" * 10**5,
    "spaces": "the answer is" + " " * 2_000_000 + "5",
    "dollars": "$" * 10**6,
    "displays": r"\[ " * 10**5,
    "backslashes": "\\" * 10**6,
    "commas": r"\boxed{" + "1," * 900 + "1}",
    "nested": r"\boxed{" + "(" * 900 + ")" * 900 + "}",
    "fractions": r"\boxed{" + r"\frac{1}{" * 200 + "2" + "}" * 200 + "}",
    "tower": r"\boxed{9^{9^{9^{9^{9^9}}}}}",
    "factorial": r"\boxed{((((9!)!)!)!)!}",
    "power": r"\boxed{(1+x+y+z)^{99}(1+x+y+z)^{99}}",
    "sums of roots": r"\boxed{" + "+".join(rf"\sqrt{{{n}}}" for n in range(2, 150)) + "}",
    "nested roots": r"\boxed{" + r"\sqrt{2+" * 18 + "x" + "}" * 18 + "}",
    "sines": r"\boxed{" + r"\sin(x)" * 60 + "}",
    "exponent": r"\boxed{2^{99999999999999999999}}",
    "root": r"\boxed{\sqrt[99999999999]{2}}",
    "binomial": r"\boxed{\binom{99999999}{5555555}}",
    "sets": r"\boxed{\{" + ",".join(rf"\sqrt{{{n}}}" for n in range(2, 150)) + r"\}}",
    "matrix powers": r"\boxed{((((\begin{pmatrix}x&y\\z&w\end{pmatrix}" + "^9)" * 4 + "}",
    "determinant": r"\boxed{\det(\begin{pmatrix}x&y\\z&w\end{pmatrix}^{10})}",
    "bars": r"\boxed{" + "|" * 900 + "x" + "|" * 900 + "<3}",
    "solutions": r"\boxed{" + ",".join(f"x={n},y=2" for n in range(95)) + "}",
    "full width": "\uff15",
    "right to left": "\u202e5",
    "nul": "\x005",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("gold", ["5", r"\{\sqrt2, x\}", r"x^2+\sqrt{x+1}+\sin x"])
def test_hostile_text_is_decided_quickly_and_never_correct(text: str, gold: str) -> None:
    start = time.process_time()
    assert grade_math(text, gold) in ("wrong", "unparsable", "error") or text.endswith("5\n")
    assert grade_math(gold, text) in ("wrong", "unparsable", "error") or text.endswith("5\n")
    assert time.process_time() - start < 10


def test_grading_common_answers_needs_no_heavy_import() -> None:
    code = (
        "import sys; from rft_ray.math_grading import grade_math as g;"
        r"assert g(r'\boxed{\frac{1}{2}}', '0.5') == g('(x+1)^2', 'x^2+2x+1') == 'correct';"
        "sys.exit(any(m in sys.modules for m in ('sympy', 'mpmath', 'torch', 'ray', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not DATA.exists(), reason="shared data is not here")
def test_gold_answers_equal_their_rewritings_and_differ_from_near_misses() -> None:
    rows = (DATA / "math/math500.jsonl").read_text().splitlines()
    golds = {json.loads(row)["answer"] for row in rows}
    disagreements = [
        (gold, text)
        for gold in sorted(golds)[::3]
        for text, is_equal in variants(gold)
        if (grade_math(text, gold) == "correct") != is_equal
    ]
    assert disagreements == []


@pytest.mark.skipif(not DATA.exists(), reason="shared data is not here")
def test_gold_answers_follow_from_their_solutions() -> None:
    rows = map(json.loads, (DATA / "math/math500.jsonl").read_text().splitlines())
    assert [r for r in rows if grade_math(r["solution"], r["answer"]) != "correct"] == []


@pytest.mark.skipif(not DATA.exists(), reason="shared data is not here")
def test_labelled_cases_are_graded_as_labelled_but_for_listed_ones() -> None:
    # 013: two numbers in a sentence that denies one.
    # Those marked debatable want rounding, dropped units, decimal commas, or a chain that is false.
    rows = (DATA / "verifier/math_verify_test_all.jsonl").read_text().splitlines()
    odd = [
        row["id"][-3:]
        for row in map(json.loads, rows)
        if (grade_math(row["completion"], row["gold"]) == "correct") != row["expected"]
        and not row.get("debatable")
    ]
    assert odd == ["013"]
