"""One online step: graded groups -> examples -> what every rank computes, as pure functions.

DeepSeekMath eq. 11: the gradient is the mean over rollouts of I(o) / |o| times the sum of the
gradients of their log-likelihoods. Rollouts with I(o) = 1 become examples of weight 1; the others
are not computed, and only count in what the mean is over. The ids that were sampled are the ids
that are learned, so nothing is tokenised here. Left out: filters, which come before, and the ratio
itself, which is `loss.py`'s.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np

from rft_ray.config_sections import SelectionConfig
from rft_ray.packing import ExampleColumns, plan_step
from rft_ray.selection import EVERYTHING, select_group
from rft_ray.trainer import StepBatch, step_batch
from rft_ray.types import Example, Group, Problem, Rollout

MeanOver = Literal["all", "accepted"]
"""all: every rollout of the step, as in the equation; accepted: only those that are learned."""


@dataclass(frozen=True, slots=True)
class OnlineStep:
    """The examples of a step, and what they were chosen from.

    `num_rollouts` and `num_tokens` are over all rollouts of the groups, rejected ones included
    (those without token ids count no tokens). `dropped` counts by reason the rollouts that I(o)
    would have kept: `no_token_ids` (cut at a stop text), `over_max_length`. `gold` goes last.
    """

    examples: list[Example]
    num_gold: int
    num_rollouts: int
    num_tokens: int
    dropped: Counter[str]


def make_online_step(
    groups: Iterable[Group],
    encode: Callable[[Problem], list[int]],
    max_length: int,
    selection: SelectionConfig = EVERYTHING,
    ratio_for: str | None = None,
    gold: Sequence[Example] = (),
    source_weights: Mapping[str, float] = MappingProxyType({}),
) -> OnlineStep:
    """The examples of a step from its graded groups.

    `encode` gives the prompt's ids as the policies saw them (`Prompt.encode`). `selection` may
    choose among the accepted rollouts first. Rollouts of the policy `ratio_for` carry their
    sampler's log-probabilities into the loss; all others are learned without a ratio.
    `source_weights` are by policy, 1 where there is none. Raises ValueError where a rollout of
    `ratio_for` has no log-probabilities, or not one a token.
    """
    groups = [select_group(group, selection) for group in groups]
    examples, dropped = list[Example](), Counter[str]()
    for group in groups:
        prompt_ids = encode(group.problem) if group.selected else []
        for rollout in group.selected:
            reason = _why_unusable(rollout, max_length - len(prompt_ids))
            if reason:
                dropped[reason] += 1
            else:
                weight = source_weights.get(rollout.policy, 1.0)
                own = _example(prompt_ids, rollout, rollout.policy == ratio_for)
                examples.append(replace(own, weight=weight))
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return OnlineStep(
        examples=[*examples, *gold],
        num_gold=len(gold),
        num_rollouts=len(rollouts),
        num_tokens=sum(len(rollout.token_ids or ()) for rollout in rollouts),
        dropped=dropped,
    )


def _why_unusable(rollout: Rollout, max_tokens: int) -> str | None:
    if not rollout.token_ids:
        return "no_token_ids"
    return "over_max_length" if len(rollout.token_ids) > max_tokens else None


def _example(prompt_ids: list[int], rollout: Rollout, has_ratio: bool) -> Example:
    token_ids, logprobs = rollout.token_ids or [], None
    if has_ratio:
        if rollout.logprobs is None or len(rollout.logprobs) != len(token_ids):
            raise ValueError(
                f"a rollout of {rollout.policy} has {len(token_ids)} tokens, but "
                f"{len(rollout.logprobs or ())} log-probabilities"
            )
        logprobs = [0.0] * len(prompt_ids) + rollout.logprobs
    return Example(
        input_ids=prompt_ids + token_ids,
        loss_mask=[0] * len(prompt_ids) + [1] * len(token_ids),
        logprobs=logprobs,
    )


def online_weights(
    step: OnlineStep,
    columns: ExampleColumns,
    kind: Literal["token_mean", "sequence_mean"],
    mean_over: MeanOver,
) -> np.ndarray:
    """The weight of each loss token of each example; `columns` are those of `step.examples`.

    Gold examples count in the mean either way.
    """
    from rft_ray.loss import token_weights

    if mean_over == "accepted":
        return token_weights(columns.loss_tokens, columns.weights, kind)
    gold_tokens = int(columns.loss_tokens[len(step.examples) - step.num_gold :].sum())
    return token_weights(
        columns.loss_tokens,
        columns.weights,
        kind,
        num_sequences=step.num_rollouts + step.num_gold,
        num_tokens=step.num_tokens + gold_tokens,
    )


def rank_batches(
    number: int,
    columns: ExampleColumns,
    weights: np.ndarray,
    num_ranks: int,
    row_tokens: int,
    rows_per_micro_batch: int = 1,
) -> list[StepBatch]:
    """What each rank computes in step `number`: every example once, on all as many micro-batches.

    Raises ValueError where there are no examples: such a step is to be left out, on all ranks.
    """
    ids = list(range(len(columns.lengths)))
    plan = plan_step(ids, columns.lengths, num_ranks, row_tokens, rows_per_micro_batch)
    return [step_batch(number, plan, columns, weights, rank) for rank in range(num_ranks)]
