"""Completions to score a checkpoint by, sampled in the samplers that already run, graded, kept.

Only the final answer counts: wrong calculations on the way do not, as in the papers. Completions
stay on disk, so a number can be traced to the text behind it, and a checkpoint is scored once.
Greedy completions are asked for by the driver itself: a few thousand short requests do not need a
stream, whose actors take longer to start than the answers to come. Many rollouts a problem go
through the stream. What the numbers are is `scores.py`; which models are scored is `scoring.py`.
"""

import asyncio
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from rft_ray.config import EvaluationConfig, VerifierConfig
from rft_ray.records import read_groups, write_groups
from rft_ray.sampling import GroupSampler, Policy, SamplingPlan
from rft_ray.types import Group, Problem
from rft_ray.verifier import Verifier

Advance = Callable[[int], None]


def greedy_plan(policy: Policy, max_tokens: int) -> SamplingPlan:
    """One completion per problem, the likeliest token at a time.

    Of the policy's own sampling only the stop texts hold, here and in `sampled_plan`.
    """
    greedy = {"n": 1, "temperature": 0.0, "max_tokens": max_tokens}
    return _plan(policy, greedy)


def sampled_plan(policy: Policy, config: EvaluationConfig) -> SamplingPlan:
    """`config.samples` rollouts per problem; seeds do not depend on the run's."""
    return _plan(
        policy,
        {
            "n": config.samples,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": config.max_tokens,
        },
    )


def _plan(policy: Policy, sampling: dict[str, object]) -> SamplingPlan:
    stop = [*policy.sampling.get("stop", []), *policy.prompt.stop]
    if stop:
        sampling["stop"] = stop
    return SamplingPlan([replace(policy, sampling=sampling)], seed=0, round=0)


def final_answer_only(config: VerifierConfig) -> VerifierConfig:
    """The verifier of a run without what it demands of the way to an answer, or of the group."""
    plain = {"check_calculations": False, "check_equations": False, "filters": []}
    return config.model_copy(update={**plain, "majority": None, "best_of": None})


def greedy_groups(
    problems: list[Problem],
    plan: SamplingPlan,
    config: VerifierConfig,
    path: Path,
    advance: Advance,
) -> Iterable[Group]:
    """Every problem's greedy completion, graded, kept as the groups file `path`.

    `advance` is told of finished problems. A problem too long for the model has no rollout.
    """
    if path.exists():
        groups = list(read_groups(path))
        advance(len(groups))
        return groups
    sampled = asyncio.run(sample_all(problems, plan, advance))
    with Verifier(final_answer_only(config)) as verifier:
        groups = verifier.verify_groups(sampled)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_groups(path, groups)
    return groups


async def sample_all(
    problems: list[Problem], plan: SamplingPlan, advance: Advance
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


def sampled_groups(
    problems: list[Problem],
    plan: SamplingPlan,
    config: VerifierConfig,
    folder: Path,
    advance: Advance,
) -> Iterable[Group]:
    """Every problem's rollouts, graded, kept in `folder`; what a kill left of them is used."""
    from rft_ray import stages

    if folder.exists():
        advance(len(problems))
    else:
        partial, sampled = folder.with_name(f"{folder.name}.partial"), f"{folder}.sampled"
        shutil.rmtree(partial, ignore_errors=True)
        groups = stages.sample_groups(problems, plan, sampled)
        graded = stages.verify_groups(groups, final_answer_only(config))
        for _ in stages.write_groups(graded, str(partial)):
            advance(1)
        os.replace(partial, folder)
        shutil.rmtree(sampled)
    return read_groups(folder)
