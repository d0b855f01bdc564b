"""Asking samplers for rollouts: what is asked, with which seed, and the group that comes back.

A request names the weights it wants and carries a seed that is a pure function of what identifies
the rollout, so a restarted run asks for the same samples. Requests whose replica died are repeated;
where they are repeated is Serve's choice. Neither vLLM nor Ray Data is imported here: this is the
light side, which the stream's actors and the evaluation share.
"""

import asyncio
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rft_ray.config import SamplingConfig
from rft_ray.prompts import Prompt
from rft_ray.types import Group, Problem, Rollout

RETRY_SECONDS = (1, 2, 5, 10, 20, 40, 60, 60, 60, 60)


class SamplerUnavailableError(RuntimeError):
    """The replica's engine is dead; another replica, or this one after its restart, may answer."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What a sampler is to serve: a Hugging Face folder, and the step that wrote it (0: base)."""

    path: str
    version: int


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """k completions of one prompt, flat: completion i has `lengths[i]` of `token_ids`.

    `token_ids` int32 (sum of lengths,); `lengths` int32 (k,); `stopped` bool (k,), true where the
    completion ended with EOS, which is then its last token.
    """

    token_ids: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray
    policy_version: int


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy as the sampling stage sees it: whom to ask, for which weights, and how."""

    name: str
    application: str
    """Serve application of its sampler."""
    weights: Weights
    prompt: Prompt
    sampling: dict[str, Any]
    """vLLM sampling parameters; `n` rollouts per problem."""
    max_model_len: int
    """Longest prompt plus completion in tokens; a problem beyond it gets no rollouts."""
    max_rollouts_in_flight: int
    """Rollouts that its replicas take at a time, together."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Everything that decides what a problem is asked; equal plans give equal requests."""

    policies: list[Policy]
    seed: int
    round: int

    @property
    def max_in_flight(self) -> int:
        """Problems asked about at a time: no sampler gets more rollouts to do than it takes."""
        return min(max(1, p.max_rollouts_in_flight // p.sampling["n"]) for p in self.policies)


def sampling_params(
    config: SamplingConfig, prompt: Prompt, temperature: float | None = None
) -> dict[str, Any]:
    """The vLLM sampling parameters of a policy, as every request carries them.

    A round's `temperature` goes before the policy's own; the prompt's stop texts join the config's.
    """
    stop = [*config.stop, *prompt.stop]
    params: dict[str, Any] = {
        "n": config.k,
        "temperature": config.temperature if temperature is None else temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "max_tokens": config.max_tokens,
    }
    return {**params, "stop": stop} if stop else params


def request_seed(run_seed: int, round: int, policy: str, problem_id: str) -> int:
    """Seed of a problem's first rollout; the engine gives sample i this plus i."""
    identity = "\x1f".join([str(run_seed), str(round), policy, problem_id])
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 2


class GroupSampler:
    """Asks every policy of a plan about a problem; lives in the process that needs the groups."""

    def __init__(self, plan: SamplingPlan) -> None:
        from ray import serve
        from transformers import AutoTokenizer

        self.plan = plan
        self.handles = {p.name: serve.get_app_handle(p.application) for p in plan.policies}
        self.tokenizers = {
            p.name: AutoTokenizer.from_pretrained(p.weights.path) for p in plan.policies
        }

    async def sample(self, problem: Problem) -> Group:
        """The problem's rollouts, policy after policy; none from a policy it is too long for."""
        per_policy = await asyncio.gather(
            *(self._sample_policy(problem, policy) for policy in self.plan.policies)
        )
        return Group(problem, [rollout for rollouts in per_policy for rollout in rollouts])

    async def _sample_policy(self, problem: Problem, policy: Policy) -> list[Rollout]:
        tokenizer = self.tokenizers[policy.name]
        prompt_ids = policy.prompt.encode(problem, tokenizer)
        if len(prompt_ids) >= policy.max_model_len:
            return []
        seed = request_seed(self.plan.seed, self.plan.round, policy.name, problem.id)
        sampled = await self._ask(policy, prompt_ids, seed)
        rollouts = to_rollouts(sampled, policy.name, self.plan.round, tokenizer)
        stop = policy.sampling.get("stop")
        return [cut_at_stop(rollout, stop) for rollout in rollouts] if stop else rollouts

    async def _ask(self, policy: Policy, prompt_ids: list[int], seed: int) -> SampledTokens:
        """The request, repeated while its replica is gone; any other failure stops the run."""
        from ray.exceptions import RayActorError

        pauses = iter(RETRY_SECONDS)
        while True:
            try:
                return await self.handles[policy.name].sample.remote(
                    prompt_ids, policy.weights, policy.sampling, seed
                )
            except (RayActorError, SamplerUnavailableError):
                pause = next(pauses, None)
                if pause is None:
                    raise
                await asyncio.sleep(pause)


def to_rollouts(
    sampled: SampledTokens, policy: str, round: int, tokenizer: Any
) -> list[Rollout]:
    """Sampled tokens as rollouts with their text, special tokens left out of it."""
    ids = sampled.token_ids.tolist()
    ends = sampled.lengths.cumsum().tolist()
    token_ids = [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    texts = tokenizer.batch_decode(token_ids, skip_special_tokens=True)
    return [
        Rollout(
            policy=policy,
            completion=text,
            policy_version=sampled.policy_version,
            round=round,
            sample=sample,
            token_ids=own_ids,
            finish_reason="stop" if stopped else "length",
        )
        for sample, (text, own_ids, stopped) in enumerate(
            zip(texts, token_ids, sampled.stopped.tolist(), strict=True)
        )
    ]


def cut_at_stop(rollout: Rollout, stop: list[str]) -> Rollout:
    """The rollout up to the first stop text, which counts as having stopped.

    Its token ids are dropped: they are not those of the text that is left.
    """
    text = rollout.completion
    ends = [at for at in map(text.find, stop) if at >= 0]
    if not ends:
        return rollout
    return replace(rollout, completion=text[: min(ends)], token_ids=None, finish_reason="stop")
