"""Completions with an answer and a label, by data set: what verifiers can be compared on.

Published files are read where they are (`../shared/data`); a data set that is not there has no
rows. A label says whether the completion gives the gold answer; `is_debatable` marks labels that
a sound verifier need not share.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from math_variants import variants

DATA = Path(__file__).parents[2] / "shared/data"


class LabelledPair(NamedTuple):
    """One row: `is_right` is its label."""

    id: str
    completion: str
    answer: str
    is_right: bool
    is_debatable: bool = False


def read_pairs(name: str) -> list[LabelledPair]:
    """The rows of a data set of DATASETS, in order."""
    return list(DATASETS[name][1]())


def gsm8k_labelled() -> Iterator[LabelledPair]:
    """OpenAI's 5,276 model solutions to GSM8K's test problems, in their groups-file form."""
    labels = _lines("gsm8k/example_model_solutions.jsonl")
    for group, labelled in zip(_lines("gsm8k/example_groups.jsonl"), labels, strict=True):
        for rollout in group["rollouts"]:
            is_right = labelled[rollout["policy"]]["is_correct"]
            name = f"{group['problem']['id']}/{rollout['policy']}"
            yield LabelledPair(name, rollout["completion"], group["problem"]["answer"], is_right)


def math_verify_tests() -> Iterator[LabelledPair]:
    """The cases of math-verify's own tests."""
    for row in _lines("verifier/math_verify_test_all.jsonl"):
        is_debatable = row.get("debatable", False)
        yield LabelledPair(
            row["id"], row["completion"], row["gold"], row["expected"], is_debatable
        )


def math_cot() -> Iterator[LabelledPair]:
    """Eight responses of a model to each of 100 MATH problems; two labels look wrong."""
    for row in _lines("math/math_cot_100.jsonl"):
        for index, (response, is_right) in enumerate(zip(row["code"], row["score"], strict=True)):
            name = f"math_cot/{row['idx']}/{index}"
            yield LabelledPair(name, response, row["gt"], is_right, row["idx"] in (3, 72))


def math_rewritten() -> Iterator[LabelledPair]:
    """MATH-500's gold answers written otherwise, and answers just beside them, by program."""
    for row in _lines("math/math500.jsonl"):
        for index, (text, is_equal) in enumerate(variants(row["answer"])):
            yield LabelledPair(f"{row['unique_id']}/{index}", text, row["answer"], is_equal)


def math_solutions() -> Iterator[LabelledPair]:
    """MATH-500's own solutions, graded against their answers."""
    for row in _lines("math/math500.jsonl"):
        yield LabelledPair(row["unique_id"], row["solution"], row["answer"], True)


def _lines(name: str) -> Iterator[dict[str, Any]]:
    path = DATA / name
    if path.exists():
        with path.open() as file:
            yield from map(json.loads, file)


# name -> (style to grade with, its rows)
DATASETS: dict[str, tuple[str, Callable[[], Iterator[LabelledPair]]]] = {
    "gsm8k": ("gsm8k", gsm8k_labelled),
    "math_verify_tests": ("math", math_verify_tests),
    "math_cot": ("math", math_cot),
    "math_rewritten": ("math", math_rewritten),
    "math_solutions": ("math", math_solutions),
}
