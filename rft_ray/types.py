"""The four nouns that cross process borders: Problem, Rollout, Group, Example.

Frozen records with the fields of the groups-file contract and no others; what can be derived is a
property. Reading and writing them is `records.py`; nothing here imports ray, torch or vllm.
"""

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["correct", "wrong", "miscalculated", "unparsable", "timeout", "error"]
FinishReason = Literal["stop", "length"]

VERDICTS: tuple[Verdict, ...] = (
    "correct",
    "wrong",
    "miscalculated",
    "unparsable",
    "timeout",
    "error",
)


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt with a checkable answer; `solution` is the gold solution where there is one."""

    id: str
    prompt: str
    answer: str
    source: str = ""
    solution: str | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion by one policy for one problem, with what became of it.

    `token_ids` ends with the EOS token exactly when `finish_reason` is "stop". `logprobs` are the
    sampler's own, natural logarithms, one per token. `policy_version` is stamped by the sampler.
    """

    policy: str
    completion: str
    policy_version: int = 0
    round: int = 0
    sample: int = 0
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    finish_reason: FinishReason | None = None
    verdict: Verdict | None = None
    reward: float | None = None
    selected: bool | None = None

    @property
    def is_accepted(self) -> bool:
        """Graded correct, not cut off by the token limit, not refused by a filter.

        That is what selection may choose from; what a filter refuses has a reward of 0.
        """
        is_right = self.verdict == "correct" and self.finish_reason != "length"
        return is_right and self.reward != 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """A problem with all its rollouts from all policies: one row of every dataset."""

    problem: Problem
    rollouts: list[Rollout] = field(default_factory=list)

    @property
    def accepted(self) -> list[Rollout]:
        """The rollouts selection chooses from, in order."""
        return [rollout for rollout in self.rollouts if rollout.is_accepted]

    @property
    def selected(self) -> list[Rollout]:
        """The rollouts the target is trained on, in order."""
        return [rollout for rollout in self.rollouts if rollout.selected]


@dataclass(frozen=True, slots=True)
class Example:
    """What the trainer learns from: token ids, 1 where the loss counts, and the example's weight.

    `weight` is I(o) of DeepSeekMath eq. 10 (1 for accepted rollouts and gold solutions).
    `logprobs` are the sampler's, one per input id, of no meaning where the mask is 0; with them the
    loss has an importance ratio, without it is the plain negative log-likelihood.
    """

    input_ids: list[int]
    loss_mask: list[int]
    weight: float = 1.0
    logprobs: list[float] | None = None
