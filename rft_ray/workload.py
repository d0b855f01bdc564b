"""How much work a run is: problems, tokens, examples and steps, before any of it is there.

Problems are counted where their file is here. All else is what the config's `workload` says, whose
defaults are GSM8K's. Left out: how many rollouts a budget that adapts will sample, which
`budget_plan.py` plays through; here every problem gets its k.
"""

from dataclasses import dataclass

import numpy as np

from rft_ray.budget_plan import count_problems
from rft_ray.config import PromptConfig, RecipeConfig, RunConfig
from rft_ray.packing import planned_steps

GSM8K_TRAIN, GSM8K_TEST = 7473, 1319
SELECTED = {1: 0.6, 3: 1.0, 6: 1.4, 12: 1.9, 25: 2.7, 50: 3.7, 100: 5.25, 400: 12.84}
"""Selected rollouts of a problem by those sampled: the sizes of the training sets of Yuan et al.
2023, table 5, and for 100 and 400 the distinct paths of table 1 and 2."""
CHARS_PER_TOKEN = 4
NAMED_PROMPTS = {"alpaca": 160, "chat": 120}
"""Characters of the prompts that a config only names."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Counts and mean lengths in tokens of one run."""

    train_problems: int
    heldout_problems: int
    question: float
    """Tokens of a problem with the template around it."""
    solution: float
    response: float
    selected: float
    """Of each problem in a round, over all policies."""
    accepted: float
    """The same before selection."""
    sources: tuple[str, ...]
    """How each is known, in words."""

    @property
    def example(self) -> float:
        """Tokens of a training example."""
        return self.question + self.solution

    def examples(self, selected: float = 0.0) -> int:
        """Of a training on gold solutions and that many rollouts of each problem."""
        return round(self.train_problems * (1 + selected))

    def steps(self, recipe: RecipeConfig, selected: float = 0.0) -> int:
        """Optimiser steps of such a training."""
        return planned_steps(recipe, self.examples(selected))


def workload_of(config: RunConfig) -> Workload:
    """What a run will meet."""
    own = config.workload
    train, train_source = _count(own.train_problems, config, "train", GSM8K_TRAIN)
    heldout, heldout_source = _count(own.heldout_problems, config, "heldout", GSM8K_TEST)
    rollouts = sum(policy.sampling.k for policy in config.policies)
    accepted = own.accepted_share * rollouts
    selected = accepted if config.selection.rule == "none" else selected_of(rollouts)
    if own.selected_per_problem is not None:
        selected = own.selected_per_problem
    question = own.question_tokens + template_tokens(config.prompt, own.template_tokens)
    question += config.prompt.shots * (own.question_tokens + own.solution_tokens)
    return Workload(
        train_problems=train,
        heldout_problems=heldout,
        question=question,
        solution=own.solution_tokens,
        response=own.response_tokens,
        selected=min(selected, accepted),
        accepted=accepted,
        sources=(
            f"{train} training problems ({train_source}), {heldout} held-out ({heldout_source})",
            f"{question:.0f} tokens a prompt, {own.solution_tokens:g} a solution, "
            f"{own.response_tokens:g} a rollout",
            f"of {rollouts} rollouts a problem {own.accepted_share:.0%} are accepted, "
            f"{min(selected, accepted):.3g} selected; {own.verdicts_s:g} verdicts/s a worker",
        ),
    )


def _count(stated: int | None, config: RunConfig, name: str, usual: int) -> tuple[int, str]:
    if stated is not None:
        return stated, "workload"
    found = count_problems(getattr(config.problems, name))
    return (found, "counted") if found else (usual, "GSM8K's")


def template_tokens(prompt: PromptConfig, stated: float | None) -> float:
    """Of the text around a problem."""
    if stated is not None:
        return stated
    chars = NAMED_PROMPTS.get(prompt.template, len(prompt.template.replace("{prompt}", "")))
    return (chars + len(prompt.system or "")) / CHARS_PER_TOKEN


def selected_of(rollouts: int) -> float:
    """Selected rollouts of a problem with that many, between the published ones on a line of
    powers; no more than of 400."""
    known = np.log(list(SELECTED)), np.log(list(SELECTED.values()))
    return float(np.exp(np.interp(np.log(rollouts), *known)))
