"""Scores and their intervals. Run: pytest tests/test_evaluation.py"""

import math
import random
from pathlib import Path

from rft_ray.evaluation import Score, make_row, paired_difference, read_rows, write_rows


def make_score(solved: int, total: int) -> Score:
    """The first `solved` of `total` problems are solved."""
    return Score({str(i): i < solved for i in range(total)})


def test_interval_is_wilsons() -> None:
    low, high = make_score(30, 100).interval
    z, p, n = 1.959963984540054, 0.3, 100
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert math.isclose(low, center - half) and math.isclose(high, center + half)


def test_no_success_still_has_a_width() -> None:
    low, high = make_score(0, 50).interval
    assert low == 0.0 and 0.05 < high < 0.1


def test_paired_difference_covers_the_truth_about_95_times_in_100() -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(400):
        base = {str(i): rng.random() < 0.3 for i in range(300)}
        better = {key: solved or rng.random() < 0.1 for key, solved in base.items()}
        _, low, high = paired_difference(Score(better), Score(base))
        covered += low <= 0.07 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_rows_survive_the_file(tmp_path: Path) -> None:
    row = make_row("target", "sft", "pass@1", make_score(1, 4), step=7)
    write_rows(tmp_path / "evaluation.json", [row])
    (read,) = read_rows(tmp_path / "evaluation.json")
    assert (read["model"], read["stage"], read["metric"]) == ("target", "sft", "pass@1")
    assert (read["value"], read["n"], read["step"]) == (0.25, 4, 7)
    assert read["low"] < 0.25 < read["high"]
