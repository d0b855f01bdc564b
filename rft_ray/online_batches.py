"""What an online step learns from: graded groups as examples with their weights in the loss.

DeepSeekMath eq. 11: every rollout of the step counts in the mean and those with I(o) = 1 have a
gradient. Rollouts with I(o) = 0 need no forward pass, so they are only counted. The ids are the
sampler's own: nothing is tokenised again.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rft_ray.config import OnlineConfig, RecipeConfig
from rft_ray.loss import token_weights
from rft_ray.packing import ExampleColumns
from rft_ray.prompts import Prompt
from rft_ray.types import Example, Group, Rollout


@dataclass(frozen=True, slots=True)
class OnlineBatch:
    """The examples of one step, and the weight of a loss token of each."""

    columns: ExampleColumns
    weights: np.ndarray

    @property
    def num_examples(self) -> int:
        """Rollouts that have a gradient."""
        return len(self.columns.lengths)

    @property
    def num_tokens(self) -> int:
        """Their loss tokens."""
        return int(self.columns.loss_tokens.sum())


def make_batch(
    groups: list[Group], tokenizer: Any, prompt: Prompt, online: OnlineConfig, recipe: RecipeConfig
) -> OnlineBatch:
    """The accepted rollouts of a step, or the selected ones; those too long for a row are left out.

    What the loss is a mean over is `online.normalise`: all rollouts of the groups, or these.
    """
    examples = [
        make_online_example(prompt.encode(group.problem, tokenizer), rollout, online)
        for group in groups
        for rollout in (group.selected if online.select else group.accepted)
        if rollout.token_ids
    ]
    examples = [example for example in examples if len(example.input_ids) <= recipe.max_length]
    columns = ExampleColumns.of(examples)
    if not examples:
        return OnlineBatch(columns, np.zeros(0))
    of_all = online.normalise == "all"
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    weights = token_weights(
        columns.loss_tokens,
        columns.weights,
        recipe.loss,
        num_sequences=len(rollouts) if of_all else None,
        num_tokens=sum(len(r.token_ids or []) for r in rollouts) if of_all else None,
    )
    return OnlineBatch(columns, weights)


def make_online_example(
    prompt_ids: list[int], rollout: Rollout, online: OnlineConfig
) -> Example:
    """A rollout behind its prompt, with the sampler's log-probabilities where there is a ratio."""
    own = rollout.token_ids or []
    logprobs = None
    if online.clip_low is not None and rollout.logprobs is not None:
        logprobs = [0.0] * len(prompt_ids) + rollout.logprobs
    mask = [0] * len(prompt_ids) + [1] * len(own)
    return Example(prompt_ids + own, mask, logprobs=logprobs)
