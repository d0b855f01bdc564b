"""When an online run stops for want of progress, also across a kill.

Run: pytest tests/test_online_patience.py
"""

import json
from pathlib import Path

import pytest

from rft_ray.online import is_improving, validation_values


@pytest.mark.parametrize(
    ("values", "patience", "expected"),
    [
        ([0.1], 1, True),
        ([0.1, 0.1], 1, True),
        ([0.2, 0.1], 1, False),
        ([0.2, 0.1], 2, True),
        ([0.2, 0.1, 0.1], 2, False),
        ([0.2, 0.1, 0.3], 1, True),
        ([0.3, 0.2, 0.1], None, True),
    ],
)
def test_stops_when_the_best_is_too_long_ago(
    values: list[float], patience: int | None, expected: bool
) -> None:
    assert is_improving(values, patience) == expected


def test_scores_of_a_killed_part_of_the_run_are_found(tmp_path: Path) -> None:
    def line(stage: str, problem_set: str, step: int, value: float) -> str:
        row = {"kind": "evaluation", "stage": stage, "problem_set": problem_set}
        return json.dumps(row | {"step": step, "value": value}) + "\n"

    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(
        line("sft", "validation", 160, 0.5)
        + line("online", "validation", 40, 0.1)
        + line("online", "validation", 80, 0.2)
        + line("online", "heldout", 80, 0.4)
        + json.dumps({"kind": "online_step", "step": 80})
        + "\n"
        + line("online", "validation", 80, 0.3)
    )
    # a step scored again counts once, by its last score
    assert validation_values(metrics) == {40: 0.1, 80: 0.3}
