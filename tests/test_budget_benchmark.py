"""The draws of benchmarks/budgets.py from a made-up pool. Run: pytest this file"""

import random
from pathlib import Path

import pytest

from benchmarks.budgets import (
    COMPARED,
    draw_all,
    draw_waves,
    group_paths,
    measure,
    read_pool,
    total_rollouts,
)
from rft_ray.budget import BudgetConfig
from rft_ray.records import write_groups
from rft_ray.types import Group, Problem, Rollout

K = 64


def make_pool(problems: int = 120) -> list[list[list[str | None]]]:
    """Two policies, problems from hopeless to easy, a few paths each."""
    rng = random.Random(0)
    pool = []
    for _ in range(problems):
        rate = rng.betavariate(0.6, 1.2)
        pool.append(
            [
                [f"path {rng.randint(0, 3)}" if rng.random() < own else None for _ in range(K)]
                for own in (rate, 0.4 * rate)
            ]
        )
    return pool


@pytest.mark.parametrize("fixed_k", [4, 16])
def test_every_budget_takes_as_many_rollouts_but_for_part_of_a_problem(fixed_k: int) -> None:
    pool = make_pool()
    for seed in range(3):
        drawn = draw_all(pool, fixed_k, seed)
        total = total_rollouts(drawn["fixed"])
        assert total == 2 * fixed_k * len(pool)
        for kind in ("uniform", "prop2diff"):
            assert total - 4 * fixed_k <= total_rollouts(drawn[kind]) <= total
            assert max(own.rollouts for own in drawn[kind]) <= 4 * fixed_k


def test_looking_at_pass_rates_solves_more_of_such_a_pool() -> None:
    """The pool has many problems that four rollouts do not solve and few more would."""
    drawn = draw_all(make_pool(), 4, seed=0)
    measured = {kind: measure(own) for kind, own in drawn.items()}
    for kind in ("uniform", "prop2diff"):
        assert measured[kind][COMPARED] > measured["fixed"][COMPARED]


def test_a_draw_takes_nothing_twice_and_stops_at_the_target() -> None:
    budget = BudgetConfig(kind="uniform", correct=3, first_wave=2)
    never: list[str | None] = [None] * 8
    assert draw_waves([never, never], budget, 8).rollouts == 16
    always: list[str | None] = [f"{number}" for number in range(8)]
    drawn = draw_waves([always, always], budget, 8)
    assert (drawn.rollouts, drawn.accepted, drawn.paths) == (4, 4, 2)


def test_a_pool_is_read_from_graded_groups(tmp_path: Path) -> None:
    right = Rollout("a", "<<1+1=2>>2\n#### 2", finish_reason="stop", verdict="correct")
    rollouts = [right, Rollout("b", "no", verdict="wrong"), Rollout("a", "", verdict="wrong")]
    group = Group(Problem("1", "q", "2"), rollouts)
    assert group_paths(group) == [["1+1=2", None], [None]]
    write_groups(tmp_path / "graded.parquet", [group])
    assert read_pool(tmp_path / "graded.parquet") == [group_paths(group)]
