"""Scores and their intervals, against brute force. Run: pytest tests/test_scores.py"""

import itertools
import math
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_ray.score_rows import read_rows
from rft_ray.scores import (
    Score,
    greedy_metrics,
    majority_at_k,
    make_row,
    paired_difference,
    pass_at_k,
    sampled_metrics,
    write_rows,
)
from rft_ray.types import Group, Problem, Rollout


def make_score(solved: int, total: int) -> Score:
    """The first `solved` of `total` problems are solved."""
    return Score({str(i): float(i < solved) for i in range(total)})


def make_group(answers: list[str]) -> Group:
    """A group whose rollouts end in these answers; 4 is right, "" is no answer."""
    rollouts = [
        Rollout("a", f"#### {answer}" if answer else "hm", sample=i,
                verdict="correct" if answer in ("4", "4.0") else "wrong")
        for i, answer in enumerate(answers)
    ]  # fmt: skip
    return Group(Problem("p", "2+2?", "4"), rollouts)


def test_interval_is_wilsons() -> None:
    low, high = make_score(30, 100).interval
    z, p, n = 1.959963984540054, 0.3, 100
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert math.isclose(low, center - half) and math.isclose(high, center + half)


def test_no_success_still_has_a_width() -> None:
    low, high = make_score(0, 50).interval
    assert low == 0.0 and 0.05 < high < 0.1
    low, high = Score({str(i): 0.5 for i in range(50)}).interval
    assert low < 0.5 < high


def test_the_interval_of_a_mean_covers_the_truth_about_95_times_in_100() -> None:
    rng = random.Random(1)
    covered = 0
    for _ in range(400):
        chances = [rng.random() ** 2 for _ in range(200)]
        score = Score({str(i): rng.binomialvariate(8, p) / 8 if hasattr(rng, "binomialvariate")
                       else sum(rng.random() < p for _ in range(8)) / 8
                       for i, p in enumerate(chances)})  # fmt: skip
        low, high = score.interval
        covered += low <= 1 / 3 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_paired_difference_covers_the_truth_about_95_times_in_100() -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(400):
        base = {str(i): float(rng.random() < 0.3) for i in range(300)}
        better = {key: max(solved, float(rng.random() < 0.1)) for key, solved in base.items()}
        _, low, high = paired_difference(Score(better), Score(base))
        covered += low <= 0.07 <= high
    assert 0.91 <= covered / 400 <= 0.98


@given(st.lists(st.sampled_from(["4", "5", "", "4.0"]), min_size=1, max_size=7), st.integers(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(answers: list[str], k: int) -> None:
    group = make_group(answers)
    subsets = list(itertools.combinations(group.rollouts, min(k, len(answers))))
    solved = sum(any(r.verdict == "correct" for r in subset) for subset in subsets)
    assert math.isclose(pass_at_k(group, k), solved / len(subsets), abs_tol=1e-12)


@given(st.lists(st.sampled_from(["4", "5", "6", "", "4.0"]), min_size=1, max_size=9))
def test_majority_of_all_is_the_most_frequent_answer(answers: list[str]) -> None:
    votes = Counter(float(answer) for answer in answers if answer)
    winner = max(votes, key=lambda a: votes[a]) if votes else None  # the first of equals
    assert majority_at_k(make_group(answers), len(answers)) == float(winner == 4.0)


def test_majority_votes_in_blocks_and_leftovers_do_not_vote() -> None:
    group = make_group(["4", "5", "4", "6", "4.0", "4", "5", "", "5", "5"])
    assert majority_at_k(group, 3) == pytest.approx(2 / 3)
    assert majority_at_k(group, 20) == 1.0  # 4 and 5 have four votes each, 4 was first
    assert majority_at_k(make_group([]), 3) == pass_at_k(make_group([]), 3) == 0.0


def test_metrics_have_the_names_of_the_result_table() -> None:
    assert list(greedy_metrics()) == ["pass@1"]
    assert list(sampled_metrics(8, [])) == ["avg@8", "pass@8", "maj@8"]
    metrics = sampled_metrics(4, [1, 2])
    assert list(metrics) == ["avg@4", "pass@2", "maj@2"]
    group = make_group(["4", "5", "", "4"])
    assert [function(group) for function in metrics.values()] == [0.5, 5 / 6, 1.0]
    assert greedy_metrics()["pass@1"](make_group([])) == 0.0


def test_rows_survive_the_file(tmp_path: Path) -> None:
    row = make_row("target", "sft", "pass@1", make_score(1, 4), step=7)
    write_rows(tmp_path / "evaluation.json", [row])
    (read,) = read_rows(tmp_path / "evaluation.json")
    assert (read["model"], read["stage"], read["metric"]) == ("target", "sft", "pass@1")
    assert (read["value"], read["n"], read["step"]) == (0.25, 4, 7)
    assert read["low"] < 0.25 < read["high"]
