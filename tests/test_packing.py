"""Plans: an example of a step is in exactly one row, and all ranks do as many micro-batches."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_ray.config import RecipeConfig
from rft_ray.packing import (
    ExampleColumns,
    StepPlan,
    pack_batch,
    pack_rows,
    plan_step,
    plan_steps,
    planned_steps,
)
from rft_ray.types import Example

ROW_TOKENS = 64
lengths_st = st.lists(st.integers(2, ROW_TOKENS), min_size=1, max_size=40).map(np.array)


def recipe(**fields) -> RecipeConfig:
    return RecipeConfig(**{"batch_size": 8, "max_length": ROW_TOKENS, **fields})


def assert_invariants(plan: StepPlan, lengths: np.ndarray, ranks: int, rows_each: int) -> None:
    assert len(plan.micro_batches) == ranks
    counts = {len(batches) for batches in plan.micro_batches}
    assert len(counts) == 1 and counts.pop() >= 1
    batches = [batch for rank in plan.micro_batches for batch in rank]
    assert all(len(batch) == rows_each for batch in batches)
    rows = [row for batch in batches for row in batch]
    assert Counter(i for row in rows for i in row) == Counter(plan.example_ids)
    assert all(lengths[row].sum() <= ROW_TOKENS for row in rows)
    assert 0 < plan.fill <= 1


@given(lengths_st, st.integers(1, 4), st.integers(1, 3), st.integers(1, 20), st.integers(1, 9))
@settings(deadline=None)
def test_every_step_keeps_the_invariants(lengths, ranks, rows_each, batch_size, number) -> None:
    plan = plan_steps(lengths, recipe(batch_size=batch_size), ranks, ROW_TOKENS, rows_each)
    step = plan.step(number)
    assert len(step.example_ids) == batch_size
    assert_invariants(step, lengths, ranks, rows_each)


@given(lengths_st, st.integers(1, 20), st.integers(0, 3))
@settings(deadline=None)
def test_epochs_are_permutations_joined_end_to_end(lengths, batch_size, seed) -> None:
    count = len(lengths)
    plan = plan_steps(lengths, recipe(batch_size=batch_size, seed=seed), 1, ROW_TOKENS)
    steps = math.ceil(3 * count / batch_size)
    stream = [i for n in range(1, steps + 1) for i in plan.step(n).example_ids]
    for epoch in range(3):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_a_step_depends_on_nothing_but_its_number() -> None:
    lengths = np.random.default_rng(0).integers(2, ROW_TOKENS, 50)
    forwards = plan_steps(lengths, recipe(), 2, ROW_TOKENS)
    last = plan_steps(lengths, recipe(), 2, ROW_TOKENS).step(9)
    assert [forwards.step(n) for n in range(1, 10)][-1] == last


def test_seed_and_epoch_change_the_order_but_ranks_do_not() -> None:
    lengths = np.full(100, 8)
    of = {seed: plan_steps(lengths, recipe(seed=seed, batch_size=100), 1, 64) for seed in (0, 1)}
    orders = [of[0].step(1), of[0].step(2), of[1].step(1)]
    assert len({tuple(order.example_ids) for order in orders}) == 3
    other = plan_steps(lengths, recipe(batch_size=100), 4, ROW_TOKENS, 2).step(1)
    assert other.example_ids == orders[0].example_ids


@given(lengths_st, st.integers(1, 4))
@settings(deadline=None)
def test_no_more_rows_than_best_fit_needs(lengths, quantum) -> None:
    rows = pack_rows(list(range(len(lengths))), lengths, ROW_TOKENS, quantum)
    # Best-fit decreasing is within 11/9 of the optimum, plus one.
    bound = math.ceil(11 / 9 * math.ceil(lengths.sum() / ROW_TOKENS) + 1)
    # The true optimum may exceed the token count; long examples need a row each.
    bound = max(bound, int((lengths > ROW_TOKENS // 3).sum()))
    assert len(rows) % quantum == 0
    assert len(rows) <= math.ceil(bound / quantum) * quantum


def test_rows_that_must_exist_share_the_load() -> None:
    lengths = np.full(9, 20)
    rows = pack_rows(list(range(9)), lengths, ROW_TOKENS, 4)
    assert sorted(len(row) for row in rows) == [2, 2, 2, 3]


@pytest.mark.parametrize(
    ("fields", "examples", "expected"),
    [({"steps": 7}, 3, 7), ({"epochs": 3.0}, 10, 4), ({"epochs": 0.1}, 10, 1)],
)
def test_number_of_steps(fields, examples, expected) -> None:
    assert planned_steps(recipe(**fields), examples) == expected


def test_impossible_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="no examples"):
        plan_steps(np.array([], dtype=np.int64), recipe(), 1, ROW_TOKENS)
    with pytest.raises(ValueError, match="65 tokens"):
        plan_steps(np.array([65]), recipe(), 1, ROW_TOKENS)
    with pytest.raises(ValueError, match="no tokens"):
        ExampleColumns.of([Example([], [])])
    with pytest.raises(ValueError, match="differ in length"):
        ExampleColumns.of([Example([1, 2], [1])])
    one_short, one_long = Example([1, 2], [0, 1], 1.0, [0.0]), Example([1], [1], 1.0, [0.0, 0.0])
    with pytest.raises(ValueError, match="logprobs differ in length"):
        ExampleColumns.of([one_short, one_long])
    with pytest.raises(ValueError, match="no examples"):
        plan_step([], np.array([5]), 2, ROW_TOKENS)
    with pytest.raises(ValueError, match="65 tokens"):
        plan_step([1], np.array([5, 65]), 2, ROW_TOKENS)


def test_packed_rows_hold_each_example_with_its_own_positions() -> None:
    columns = ExampleColumns.of(
        [Example([10, 11, 12], [0, 1, 1]), Example([20, 21], [1, 1]), Example([30, 31], [0, 0])]
    )
    assert columns.loss_tokens.tolist() == [2, 1, 0]
    batch = pack_batch([[0, 1], []], columns, {0: 0.5, 1: 0.25})
    assert batch.token_ids.tolist() == [[10, 11, 12, 20, 21, 0, 0, 0], [0] * 8]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert batch.segment_ids[0].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
    # Nothing predicts the first token of an example, whatever its mask says.
    assert batch.weights[0].tolist() == [0, 0.5, 0.5, 0, 0.25, 0, 0, 0]
    assert not batch.weights[1].any()


def test_log_probabilities_stand_where_their_tokens_stand() -> None:
    columns = ExampleColumns.of(
        [Example([10, 11], [0, 1], 1.0, [0.0, -1.5]), Example([20, 21, 22], [0, 1, 1])]
    )
    batch = pack_batch([[1, 0], []], columns, {0: 0.5, 1: 0.25})
    expected = np.full((2, 8), np.nan)
    expected[0, 3:5] = [0.0, -1.5]
    np.testing.assert_array_equal(batch.logprobs, expected)
    without = ExampleColumns.of([Example([10, 11], [0, 1])])
    assert len(without.logprobs) == 0
    assert pack_batch([[0]], without, {0: 1.0}).logprobs is None
