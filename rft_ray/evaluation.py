"""Scoring checkpoints: greedy pass@1 with intervals, in the samplers that are already running.

A score is the share of problems whose greedy completion has the right final answer (wrong
calculations on the way do not count against it, as in the papers). Completions are kept, so a
number can be traced to the text behind it. The driver asks the samplers itself: a few thousand
short requests do not need a stream, whose actors take longer to start than the answers to come.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import binomtest, norm

from rft_ray.records import read_groups, write_groups
from rft_ray.run_dir import write_atomically
from rft_ray.sampling import GroupSampler, Policy, SamplingPlan
from rft_ray.types import Group, Problem
from rft_ray.verifier import Verifier

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Score:
    """Which problems of a set a checkpoint solved, greedily."""

    solved: dict[str, bool]

    @property
    def value(self) -> float:
        """pass@1 of the one greedy completion."""
        return sum(self.solved.values()) / len(self.solved)

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson score interval of `value`."""
        test = binomtest(sum(self.solved.values()), len(self.solved))
        interval = test.proportion_ci(CONFIDENCE, method="wilson")
        return float(interval.low), float(interval.high)


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One row of `evaluation.json`."""

    model: str
    stage: str
    metric: str
    value: float
    n: int
    low: float
    high: float
    step: int


def make_row(model: str, stage: str, metric: str, score: Score, step: int) -> EvaluationRow:
    """A score as a row of the result table."""
    low, high = score.interval
    return EvaluationRow(model, stage, metric, score.value, len(score.solved), low, high, step)


def paired_difference(better: Score, base: Score) -> tuple[float, float, float]:
    """Difference of two scores on the same problems and its 95% interval (value, low, high).

    Normal approximation of the mean of per-problem differences, which are -1, 0 or 1.
    """
    deltas = [int(better.solved[key]) - int(base.solved[key]) for key in base.solved]
    mean = sum(deltas) / len(deltas)
    variance = sum((delta - mean) ** 2 for delta in deltas) / max(1, len(deltas) - 1)
    half = float(norm.ppf(0.5 + CONFIDENCE / 2)) * (variance / len(deltas)) ** 0.5
    return mean, mean - half, mean + half


def score_checkpoint(
    problems: list[Problem],
    plan: SamplingPlan,
    verifier: Verifier,
    path: Path,
    advance: Callable[[int], None],
) -> Score:
    """Greedy completions of all problems, graded; kept as the groups file `path`.

    `advance` is told of finished problems. A problem too long for the model counts as unsolved.
    """
    if path.exists():
        groups = list(read_groups(path))
        advance(len(groups))
    else:
        sampled = asyncio.run(_sample_all(problems, plan, advance))
        groups = verifier.verify_groups(sampled)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_groups(path, groups)
    return Score(
        {g.problem.id: any(r.verdict == "correct" for r in g.rollouts) for g in groups}
    )


def greedy_plan(policy: Policy, max_tokens: int, prompt_template: str) -> SamplingPlan:
    """One completion per problem, the likeliest token at a time."""
    greedy = {"n": 1, "temperature": 0.0, "max_tokens": max_tokens}
    return SamplingPlan([replace(policy, sampling=greedy)], prompt_template, seed=0, round=0)


async def _sample_all(
    problems: list[Problem], plan: SamplingPlan, advance: Callable[[int], None]
) -> list[Group]:
    """The groups in the order of the problems, as many at a time as the sampler takes."""
    sampler = GroupSampler(plan)
    slots = asyncio.Semaphore(plan.max_in_flight)

    async def sample(problem: Problem) -> Group:
        async with slots:
            group = await sampler.sample(problem)
        advance(1)
        return group

    return await asyncio.gather(*(sample(problem) for problem in problems))


def write_rows(path: Path, rows: list[EvaluationRow]) -> None:
    """The result table of a round, in the order it is printed."""
    write_atomically(path, json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an `evaluation.json`."""
    return json.loads(path.read_text(encoding="utf-8"))
