"""Budgets on simulated problems: what is asked, and that nothing is asked twice or in vain.

Run: pytest tests/test_budget.py
"""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_ray.budget import BudgetConfig, Tried, missing, next_wave, target

KINDS = st.sampled_from(["uniform", "prop2diff"])
BUDGETS = st.builds(
    BudgetConfig,
    kind=KINDS,
    correct=st.integers(1, 40),
    first_wave=st.integers(1, 16),
)
TRIED = st.integers(0, 60).flatmap(
    lambda rollouts: st.builds(Tried, st.just(rollouts), st.integers(0, rollouts))
)


def spend(
    budget: BudgetConfig, k: int, rates: list[float], seed: int, earlier: Tried
) -> tuple[list[int], Tried]:
    """The waves of one problem, each policy right with its own rate; their sizes and the result."""
    rng, waves, own = random.Random(seed), [], Tried()
    while size := next_wave(budget, k, sum(waves), own, earlier):
        waves.append(size)
        right = sum(rng.random() < rate for rate in rates for _ in range(size))
        own += Tried(size * len(rates), right)
    return waves, own


@given(
    BUDGETS,
    st.integers(1, 300),
    st.lists(st.floats(0, 1), min_size=1, max_size=4),
    st.integers(0, 99),
    TRIED,
)
def test_waves_end_at_the_target_or_at_the_most_and_never_beyond(
    budget: BudgetConfig, k: int, rates: list[float], seed: int, earlier: Tried
) -> None:
    waves, own = spend(budget, k, rates, seed, earlier)
    assert sum(waves) <= k
    assert sum(waves) == k or missing(budget, earlier + own) == 0
    for number, size in enumerate(waves):
        assert size >= 1
        # the first guess is rough, so a wave at most doubles what was asked before it
        assert number == 0 or size <= sum(waves[:number])
    # a fourth more each time reaches 300 from 1 in 24 waves
    assert len(waves) <= 24
    assert waves == [] or waves[0] <= budget.first_wave


@given(BUDGETS, TRIED, st.integers(1, 50))
def test_nothing_is_asked_where_what_was_paid_for_is_enough(
    budget: BudgetConfig, earlier: Tried, k: int
) -> None:
    asked = next_wave(budget, k, 0, Tried(), earlier)
    assert (asked == 0) == (earlier.accepted >= target(budget, earlier))
    # whichever round the rollouts come from
    assert missing(budget, earlier) == missing(budget, Tried() + earlier)
    full = Tried(earlier.rollouts + budget.correct, earlier.accepted + budget.correct)
    assert next_wave(budget, k, 0, Tried(), full) == 0


@given(st.integers(1, 200), st.integers(1, 80))
def test_a_harder_problem_never_gets_a_smaller_target(correct: int, rollouts: int) -> None:
    budget = BudgetConfig(kind="prop2diff", correct=correct)
    targets = [target(budget, Tried(rollouts, accepted)) for accepted in range(rollouts + 1)]
    assert targets == sorted(targets, reverse=True)
    assert (targets[0], targets[-1]) == (correct, 1)
    uniform = BudgetConfig(kind="uniform", correct=correct)
    assert {target(uniform, Tried(rollouts, own)) for own in range(rollouts + 1)} == {correct}


@pytest.mark.parametrize(
    ("correct", "tried", "expected"),
    [
        (8, Tried(4, 3), 2),  # a quarter of the rollouts is wrong
        (8, Tried(5, 3), 4),  # 3.2, rounded up as the paper does
        (10, Tried(10, 9), 1),  # exactly 1: in floats 10 * (1 - 0.9) is above or below it
        (100, Tried(100, 71), 29),
        (8, Tried(4, 4), 1),  # even the easiest is covered
        (8, Tried(), 8),
    ],
)
def test_targets_in_proportion_to_the_share_of_wrong_rollouts(
    correct: int, tried: Tried, expected: int
) -> None:
    assert target(BudgetConfig(kind="prop2diff", correct=correct), tried) == expected


def test_the_target_itself_is_enough() -> None:
    budget = BudgetConfig(kind="uniform", correct=3)
    assert next_wave(budget, 100, 4, Tried(4, 3), Tried()) == 0
    assert next_wave(budget, 100, 4, Tried(4, 2), Tried()) == 2


def test_a_problem_too_long_for_every_policy_is_asked_once() -> None:
    budget = BudgetConfig(kind="uniform")
    assert next_wave(budget, 100, 1, Tried(), Tried()) == 0


def test_uniform_spends_where_it_is_hard() -> None:
    budget, k = BudgetConfig(kind="uniform", correct=2, first_wave=2), 32
    easy, _ = spend(budget, k, [0.9], 1, Tried())
    hard, own = spend(budget, k, [0.08], 1, Tried())
    assert sum(easy) < 6 < sum(hard)
    assert own.accepted >= 2 or sum(hard) == k
