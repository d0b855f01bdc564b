"""The sampling half of an online step: a slice of problems to graded, filtered, selected groups.

What was sampled is on disk before it is graded, and what was graded before the trainer sees it. A
step that was sampled before, by weights that the bound on staleness still allows, is read instead
of sampled again.
"""

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rft_ray.decontamination import count_overlap, refuse_overlap
from rft_ray.equations import path_key
from rft_ray.evaluation import sample_all
from rft_ray.filters import filter_groups
from rft_ray.problem_slices import problem_slice
from rft_ray.ray_metrics import Meter, verdict_points
from rft_ray.records import read_groups, write_groups
from rft_ray.sampling import LIVE, SamplingPlan, Weights, request_seed, sampling_params
from rft_ray.selection import select_group
from rft_ray.study import Checkpoints, Samplers, Study
from rft_ray.types import Group
from rft_ray.verifier import Verifier


class SliceSampler:
    """Samples one step's problems from the live policy and from the frozen ones beside it."""

    def __init__(
        self,
        study: Study,
        samplers: Samplers,
        checkpoints: dict[str, Checkpoints],
        verifier: Verifier,
    ) -> None:
        self._study = study
        self._samplers = samplers
        self._checkpoints = checkpoints
        self._verifier = verifier
        self._meter = Meter()
        live = study.config.own_policy
        assert live is not None  # RunConfig demands it
        self._live = live.name

    def sample(self, step: int) -> tuple[list[Group], dict[str, Any]]:
        """The groups to train on, and what the step's line in the metrics says about them."""
        online, selection = self._study.config.online, self._study.config.selection
        started = time.perf_counter()
        sampled = self._sampled(step)
        sampled_at = time.perf_counter()
        test = self._study.test_text
        verified = [refuse_overlap(g, test) for g in self._verifier.verify_groups(sampled)]
        graded = [select_group(group, selection) for group in verified]
        self._meter.record(verdict_points(graded))
        _write(self._study.run.round(0).selected / _file_name(step), graded)
        kept, dropped = filter_groups(graded, online.filters)
        facts = {
            **step_facts(graded),
            "contaminated": sum(count_overlap(group.rollouts, test) for group in graded),
            "dropped": dict(dropped),
            "sample_seconds": sampled_at - started,
            "verify_seconds": time.perf_counter() - sampled_at,
        }
        return kept, facts

    def _sampled(self, step: int) -> list[Group]:
        path = self._study.run.round(0).sampled / _file_name(step)
        if path.exists():
            groups = list(read_groups(path))
            if self._is_fresh(groups, step):
                return groups
        problems = problem_slice(
            self._study.problems["train"],
            self._study.config.online.problems_per_step,
            step,
            self._study.config.seed,
        )
        groups = asyncio.run(sample_all(problems, self._plan(step), lambda count: None))
        _write(path, groups)
        return groups

    def oldest(self, step: int) -> int:
        """The oldest version that the step may be sampled with."""
        return max(0, step - 1 - self._study.config.online.max_staleness)

    def _is_fresh(self, groups: list[Group], step: int) -> bool:
        allowed = range(self.oldest(step), step)
        rollouts = [r for group in groups for r in group.rollouts if r.policy == self._live]
        return all(rollout.policy_version in allowed for rollout in rollouts)

    def _plan(self, step: int) -> SamplingPlan:
        config, policies = self._study.config, []
        for policy in config.policies:
            weights = self._checkpoints[policy.name].newest
            prompt = self._study.models[policy.name].prompt
            sampling = sampling_params(policy.sampling, prompt)
            if policy.name == self._live:
                weights = Weights(LIVE, self.oldest(step))
                if config.online.clip_low is not None:
                    # of the sampled token alone: what the importance ratio is to
                    sampling["logprobs"] = 0
            policies.append(self._samplers.policy(policy.name, weights, prompt, sampling))
        # The same problem comes again in a later pass, and is to be sampled anew there.
        return SamplingPlan(policies, seed=request_seed(config.seed, step, "", ""), round=0)


def step_facts(groups: list[Group]) -> dict[str, Any]:
    """Counts of a step's graded groups, before any filter."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    verdicts = Counter(str(rollout.verdict) for rollout in rollouts)
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    paths = [{path_key(rollout.completion) for rollout in group.accepted} for group in groups]
    return {
        "problems": len(groups),
        "rollouts": len(rollouts),
        "accepted": sum(rollout.is_accepted for rollout in rollouts),
        "selected": sum(bool(rollout.selected) for rollout in rollouts),
        "reward": sum(rewards) / len(rewards) if rewards else 0.0,
        "distinct_paths": sum(map(len, paths)),
        "cut_off": sum(rollout.finish_reason == "length" for rollout in rollouts),
        "sampled_tokens": sum(len(rollout.token_ids or []) for rollout in rollouts),
        "verdicts": dict(verdicts),
    }


def _file_name(step: int) -> str:
    return f"step-{step:06d}.parquet"


def _write(path: Path, groups: list[Group]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_groups(path, groups)
