"""How many rollouts a problem gets: fixed, until enough are right, or more where it is harder.

Pure functions of one problem's counts. A problem is asked in waves, and how much it is asked next
depends on nothing but what came of its own earlier rollouts: a run that was killed asks for the
same ones again, and the problems need no common state. uniform and prop2diff are DART-Math's
DARS-Uniform and DARS-Prop2Diff (Tong et al. 2024, section 3.1). Their published code goes on until
there is one more right response than the target (`>`); here the target itself is enough. A target
counts the accepted rollouts of all policies together, and every policy is asked alike, as each
finds paths that the others miss. Left out: favouring the policies that are right more often.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from rft_ray.config_section import Count, Section

LEAST_GROWTH = 4
"""A wave adds at least a fourth to a problem's rollouts, so that waves are few."""


class BudgetConfig(Section):
    """How rollouts are spread over the problems, and when more of them are not worth it."""

    kind: Literal["fixed", "uniform", "prop2diff"] = "fixed"
    """fixed: `sampling.k` for every problem; uniform: until `correct` rollouts are accepted;
    prop2diff: until accepted ones are in proportion to the share of wrong ones, at least 1."""
    correct: Count = 4
    """Accepted rollouts that a problem is to get, from all policies and rounds together; with
    prop2diff a problem that is never solved, easier ones in proportion fewer."""
    first_wave: Count = 4
    """Rollouts of each policy before the first decision. Later waves ask for what is expected to be
    missing, at most as many again; `sampling.k` is the most that a problem gets in a round."""
    min_new_paths: Annotated[float, Field(ge=0.0)] = 0.0
    """The run ends after a round that found fewer new distinct paths per rollout sampled; 0 never
    ends it early."""


@dataclass(frozen=True, slots=True)
class Tried:
    """Rollouts of a problem, and how many of them were accepted."""

    rollouts: int = 0
    accepted: int = 0

    def __add__(self, other: "Tried") -> "Tried":
        return Tried(self.rollouts + other.rollouts, self.accepted + other.accepted)


def add_up(tried: Iterable[Tried]) -> Tried:
    """The sum; nothing tried where there is nothing."""
    return sum(tried, Tried())


def target(budget: BudgetConfig, tried: Tried) -> int:
    """Accepted rollouts that a problem is to have, by what is known of its difficulty.

    prop2diff: (correct 8, 3 of 4 accepted) -> 2; (correct 8, 4 of 4) -> 1; nothing tried -> 8
    """
    if budget.kind == "uniform" or not tried.rollouts:
        return budget.correct
    wrong = tried.rollouts - tried.accepted
    # in whole numbers, since a float's rounding could push the ceiling up by one
    return max(1, -(-budget.correct * wrong // tried.rollouts))


def missing(budget: BudgetConfig, tried: Tried) -> int:
    """Accepted rollouts between what a problem has and its target."""
    return max(0, target(budget, tried) - tried.accepted)


def next_wave(budget: BudgetConfig, k: int, asked: int, own: Tried, earlier: Tried) -> int:
    """Rollouts to ask of each policy for a problem now, so that `asked` never exceeds k; 0: enough.

    `asked` are those already asked of each in this round, `own` what came of them, `earlier` what
    other rounds left. Later waves expect the round's own rate of acceptance, by the rule of
    succession, and at most double what was asked, since the first estimates are rough.
    """
    lacking = missing(budget, earlier + own)
    if not lacking or asked >= k:
        return 0
    if not asked:
        return min(budget.first_wave, k)
    if not own.rollouts:
        return 0  # too long for every policy
    expected_rate = (own.accepted + 1) / (own.rollouts + 2)
    policies = own.rollouts / asked
    expected = math.ceil(lacking / expected_rate / policies)
    least = math.ceil(asked / LEAST_GROWTH)
    return min(max(expected, least), asked, k - asked)
