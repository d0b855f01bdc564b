"""Two thousand answers beside what a model might say: what is right, and what only looks it.

`graded_pairs.jsonl` has a line for each: style, gold answer, completion, and whether it is correct.
Where `both_ways` is set they are two answers, either of which may be the gold one.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from rft_ray.grading import grade_gsm8k
from rft_ray.math_grading import grade_math
from rft_ray.verifier import Verifier
from rft_ray.verifier_config import VerifierConfig

LINES = (Path(__file__).parent / "graded_pairs.jsonl").read_text().splitlines()
ROWS: list[dict[str, Any]] = list(map(json.loads, LINES))
GRADERS = {"math": grade_math, "gsm8k": grade_gsm8k}


def of_style(style: str) -> list[dict[str, Any]]:
    return [row for row in ROWS if row["style"] == style]


@pytest.mark.parametrize("style", GRADERS)
@pytest.mark.parametrize("is_correct", [True, False])
def test_pairs_are_graded_as_labelled(style: str, is_correct: bool) -> None:
    rows = [row for row in of_style(style) if row["is_correct"] is is_correct]
    assert len(rows) > 50
    grade = GRADERS[style]
    disagreements = [
        (row["answer"], row["completion"])
        for row in rows
        if (grade(row["completion"], row["answer"]) == "correct") is not is_correct
    ]
    assert disagreements == []


@pytest.mark.parametrize("form", ["{}", r"\boxed{{{}}}", r"So the answer is $\boxed{{{}}}$."])
def test_answers_are_compared_the_same_way_round_and_boxed(form: str) -> None:
    disagreements = [
        (row["completion"], row["answer"])
        for row in of_style("math")
        if row["both_ways"]
        and (grade_math(form.format(row["answer"]), row["completion"]) == "correct")
        is not row["is_correct"]
    ]
    assert disagreements == []


@pytest.mark.parametrize("style", GRADERS)
def test_verdicts_do_not_depend_on_neighbours_order_or_cache(style: str) -> None:
    pairs = [(row["completion"], row["answer"]) for row in of_style(style)][::4]
    alone = {pair: GRADERS[style](*pair) for pair in pairs}
    with Verifier(VerifierConfig(style=style, workers=2, timeout_s=60.0)) as verifier:  # type: ignore[arg-type]
        for seed in range(3):
            shuffled = random.Random(seed).sample(pairs * 2, len(pairs) * 2)
            assert verifier.grade(shuffled) == [alone[pair] for pair in shuffled]
