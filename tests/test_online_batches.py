"""An online step: every accepted rollout once over the ranks, weighted as the equation says."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_ray.config_sections import SelectionConfig
from rft_ray.online_batches import OnlineStep, make_online_step, online_weights, rank_batches
from rft_ray.packing import ExampleColumns
from rft_ray.trainer import StepBatch
from rft_ray.types import Example, Group, Problem, Rollout

LIVE = "live"
MAX_LENGTH = 24
PROMPT_LENGTH = 4
GOLD = [Example([1, 2, 3, 4, 5], [0, 0, 1, 1, 1], 0.5), Example([1, 9], [0, 1])]


def encode(problem: Problem) -> list[int]:
    return [int(problem.id)] * PROMPT_LENGTH


@st.composite
def graded_groups(draw) -> list[Group]:
    """Groups whose rollouts all hold other ids, so that each can be found again."""
    groups, first_id = [], 1000
    for number in range(draw(st.integers(0, 5))):
        rollouts = []
        for _ in range(draw(st.integers(0, 5))):
            length = draw(st.integers(1, MAX_LENGTH - PROMPT_LENGTH))
            ids = list(range(first_id, first_id + length))
            first_id += length
            rollouts.append(
                Rollout(
                    policy=draw(st.sampled_from([LIVE, "frozen"])),
                    completion=draw(st.sampled_from(["<<1+1=2>>", "<<2*1=2>>", "<<2=2>> so"])),
                    token_ids=ids,
                    logprobs=[-0.5 - each for each in range(length)],
                    verdict=draw(st.sampled_from(["correct", "correct", "wrong", "unparsable"])),
                    finish_reason=draw(st.sampled_from(["stop", "stop", "length"])),
                )
            )
        groups.append(Group(Problem(str(number), "q", "1"), rollouts))
    return groups


def segments(batches: list[StepBatch]) -> list[tuple[list[int], np.ndarray, np.ndarray | None]]:
    """(ids, weights, logprobs) of every example that any rank computes."""
    found = []
    for batch in batches:
        for packed in batch.micro_batches:
            for row, row_segments in enumerate(packed.segment_ids):
                for segment in range(1, row_segments.max() + 1):
                    place = (row, row_segments == segment)
                    logprobs = None if packed.logprobs is None else packed.logprobs[place]
                    found.append(
                        (packed.token_ids[place].tolist(), packed.weights[place], logprobs)
                    )
    return found


@given(
    graded_groups(),
    st.sampled_from(["none", "paper"]),
    st.booleans(),
    st.sampled_from(["token_mean", "sequence_mean"]),
    st.sampled_from(["all", "accepted"]),
    st.tuples(st.integers(1, 4), st.integers(MAX_LENGTH, 64), st.integers(1, 3)),
)
@settings(deadline=None)
def test_accepted_rollouts_are_learned_once_with_the_equations_weights(
    groups, rule, with_gold, kind, mean_over, layout
) -> None:
    gold = GOLD if with_gold else []
    selection = SelectionConfig(rule=rule)
    step = make_online_step(groups, encode, MAX_LENGTH, selection, ratio_for=LIVE, gold=gold)
    columns = ExampleColumns.of(step.examples)
    if not step.examples:
        assert not any(group.accepted for group in groups)
        with pytest.raises(ValueError, match="no examples"):
            rank_batches(3, columns, np.zeros(0), *layout)
        return
    weights = online_weights(step, columns, kind, mean_over)
    batches = rank_batches(3, columns, weights, *layout)
    assert len(batches) == layout[0]
    assert len({len(batch.micro_batches) for batch in batches}) == 1
    assert all(batch.step == 3 and batch.examples == len(step.examples) for batch in batches)

    found = segments(batches)
    learned = Counter(tuple(ids) for ids, _, _ in found)
    assert learned == Counter(tuple(example.input_ids) for example in step.examples)
    accepted = {
        (*encode(g.problem), *rollout.token_ids): rollout for g in groups for rollout in g.accepted
    }
    of_rollouts = set(learned) - {tuple(example.input_ids) for example in gold}
    assert of_rollouts == set(accepted) if rule == "none" else of_rollouts <= set(accepted)

    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if mean_over == "all":
        sequences = len(rollouts) + len(gold)
        tokens = sum(len(r.token_ids) for r in rollouts) + sum(columns.loss_tokens[-2:]) * with_gold
    else:
        sequences, tokens = len(step.examples), sum(columns.loss_tokens)
    importance = {tuple(example.input_ids): example.weight for example in step.examples}
    for ids, own_weights, logprobs in found:
        share = importance[tuple(ids)]
        if kind == "sequence_mean":
            assert own_weights.sum() == pytest.approx(share / sequences)
        else:
            assert own_weights[own_weights > 0] == pytest.approx(share / tokens)
        rollout = accepted.get(tuple(ids))
        if rollout:
            assert not own_weights[:PROMPT_LENGTH].any() and own_weights[PROMPT_LENGTH:].all()
        if rollout and rollout.policy == LIVE:
            assert logprobs[PROMPT_LENGTH:].tolist() == rollout.logprobs
        else:
            assert logprobs is None or np.isnan(logprobs).all()


def step_of(*rollouts: Rollout, **settings) -> OnlineStep:
    return make_online_step([Group(Problem("7", "q", "1"), list(rollouts))], encode, **settings)


ACCEPTED = Rollout(
    LIVE, "x", token_ids=[5, 6], logprobs=[-1.0, -2.0], verdict="correct", finish_reason="stop"
)
REJECTED = replace(ACCEPTED, verdict="wrong", token_ids=[8, 8, 8], logprobs=None)


def test_a_rejected_rollout_is_in_the_mean_only() -> None:
    step = step_of(REJECTED, ACCEPTED, REJECTED, max_length=10)
    assert step.examples == [Example([7, 7, 7, 7, 5, 6], [0, 0, 0, 0, 1, 1])]
    assert (step.num_rollouts, step.num_tokens) == (3, 8)
    columns = ExampleColumns.of(step.examples)
    expected = {
        ("sequence_mean", "all"): 1 / 6,
        ("sequence_mean", "accepted"): 1 / 2,
        ("token_mean", "all"): 1 / 8,
        ("token_mean", "accepted"): 1 / 2,
    }
    for (kind, mean_over), weight in expected.items():
        assert online_weights(step, columns, kind, mean_over).tolist() == [weight]


def test_what_cannot_be_learned_is_counted_by_reason_and_stays_in_the_mean() -> None:
    cut = replace(ACCEPTED, token_ids=None)
    long = replace(ACCEPTED, token_ids=[1] * 7)
    step = step_of(cut, long, ACCEPTED, max_length=10)
    assert len(step.examples) == 1
    assert step.dropped == {"no_token_ids": 1, "over_max_length": 1}
    assert (step.num_rollouts, step.num_tokens) == (3, 9)


def test_log_probabilities_go_along_only_where_the_ratio_is_wanted() -> None:
    assert step_of(ACCEPTED, max_length=9, ratio_for="frozen").examples[0].logprobs is None
    wanted = step_of(ACCEPTED, max_length=9, ratio_for=LIVE).examples[0]
    assert wanted.logprobs == [0.0] * PROMPT_LENGTH + [-1.0, -2.0]
    for wrong in (None, [-1.0]):
        with pytest.raises(ValueError, match=r"of live has 2 tokens, but [01] log-prob"):
            step_of(replace(ACCEPTED, logprobs=wrong), max_length=9, ratio_for=LIVE)


def test_rollouts_have_the_weight_of_their_policy() -> None:
    rollouts = [
        Rollout(policy, "<<1+1=2>>", token_ids=[9], verdict="correct", finish_reason="stop")
        for policy in (LIVE, "frozen")
    ]
    groups = [Group(Problem("1", "q", "1"), rollouts)]
    step = make_online_step(groups, encode, MAX_LENGTH, source_weights={"frozen": 0.25})
    assert [example.weight for example in step.examples] == [1.0, 0.25]
