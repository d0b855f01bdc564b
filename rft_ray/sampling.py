"""Asking samplers for rollouts: what is asked, with which seed, and the group that comes back.

A request names the weights it wants and carries a seed that is a pure function of what identifies
the rollout, so a restarted run asks for the same samples. Requests whose replica died are repeated;
where they are repeated is Serve's choice. Neither vLLM nor Ray Data is imported here: this is the
light side, which the stream's actors and the evaluation share.
"""

import asyncio
import hashlib
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rft_ray.config import SamplingConfig
from rft_ray.errors import StoppedError, first_words
from rft_ray.prompts import Prompt
from rft_ray.ray_metrics import Meter
from rft_ray.types import Group, Problem, Rollout

# Five minutes, in which a node may be replaced and an engine started on it.
RETRY_SECONDS = (1, 2, 5, *[10] * 31)


LIVE = "live"
"""In place of a folder: the weights that a running trainer sends."""


class SamplerUnavailableError(StoppedError):
    """The replica cannot answer now; another one, or this one a little later, may.

    Its engine is dead, or it has not been sent the live weights that were asked for.
    """


class ParityError(StoppedError):
    """A sampler's log-probabilities differ from the trainer's after a weight refresh."""


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """One replica's refresh: seconds from pause to resume, bytes read, and the parity check."""

    seconds: float
    num_bytes: int
    parity_max_abs_diff: float | None
    drain_seconds: float = 0.0
    """Before the pause: waiting for the requests in flight."""
    transfer_seconds: float = 0.0
    """Of the pause: receiving (or reading) and loading the weights."""


def refresh_facts(reports: list[RefreshReport]) -> dict[str, Any]:
    """What the replicas' reports say in a `refresh` line of the metrics."""
    checked = [r.parity_max_abs_diff for r in reports if r.parity_max_abs_diff is not None]
    return {
        "drain_seconds": max(report.drain_seconds for report in reports),
        "transfer_seconds": max(report.transfer_seconds for report in reports),
        "bytes": sum(report.num_bytes for report in reports),
        "replicas": len(reports),
        "parity_max_abs_diff": max(checked) if checked else None,
    }


@dataclass(frozen=True, slots=True)
class Weights:
    """What a sampler is to serve: a Hugging Face folder, and the step that wrote it (0: base).

    With the path LIVE it is what the trainer sent last, if that is this version or a later one.
    """

    path: str
    version: int

    def satisfied_by(self, held: "Weights | None") -> bool:
        """Whether a replica that holds those may answer a request for these."""
        if held is None or held.path != self.path:
            return False
        return held.version >= self.version if self.path == LIVE else held == self


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
    logprobs: np.ndarray | None = None
    """float32 (sum of lengths,), of each token under the policy at temperature 1, where asked."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy as the sampling stage sees it: whom to ask, for which weights, and how."""

    name: str
    application: str
    """Serve application of its sampler."""
    tokenizer: str
    """Folder of its tokeniser, which training leaves as it is."""
    weights: Weights
    prompt: Prompt
    sampling: dict[str, Any]
    """vLLM sampling parameters; `n` rollouts per problem."""
    max_model_len: int
    """Longest prompt plus completion in tokens; a problem beyond it gets no rollouts."""
    max_rollouts_in_flight: int
    """Rollouts that its replicas take at a time, together."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Rollouts `first`, `first + 1`, ... of a problem, `count` of each policy.

    A policy whose own number of rollouts (`n`) is smaller gives those below it only.
    """

    problem: Problem
    first: int
    count: int


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


@lru_cache(maxsize=16)
def load_tokenizer(folder: str) -> Any:
    """The tokeniser of a model folder, read once a process.

    AutoTokenizer imports torch, 4 s of CPU for each process of the stream. It is left out where the
    folder names the plain class, which is what it would give, and what training leaves there.
    """
    file = Path(folder) / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if settings.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in settings:
        from transformers import TokenizersBackend

        return TokenizersBackend.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


class GroupSampler:
    """Asks every policy of a plan about a problem; lives in the process that needs the groups."""

    def __init__(self, plan: SamplingPlan) -> None:
        from ray import serve

        self.plan = plan
        self.handles = {p.name: serve.get_app_handle(p.application) for p in plan.policies}
        self.tokenizers = {p.name: load_tokenizer(p.tokenizer) for p in plan.policies}
        self._meter = Meter()
        self._in_flight = 0

    async def sample(self, problem: Problem) -> Group:
        """The problem's rollouts, policy after policy; none from a policy it is too long for."""
        most = max(policy.sampling["n"] for policy in self.plan.policies)
        return await self.answer(Ask(problem, 0, most))

    async def answer(self, ask: Ask) -> Group:
        """The same for some of the problem's rollouts, which do not depend on how they are cut."""
        self._count(1)
        try:
            per_policy = await asyncio.gather(
                *(self._sample_policy(ask, policy) for policy in self.plan.policies)
            )
        finally:
            self._count(-1)
        return Group(ask.problem, [rollout for rollouts in per_policy for rollout in rollouts])

    def _count(self, change: int) -> None:
        self._in_flight += change
        self._meter.record([("rft_groups_in_flight", float(self._in_flight), {})])

    async def _sample_policy(self, ask: Ask, policy: Policy) -> list[Rollout]:
        tokenizer = self.tokenizers[policy.name]
        prompt_ids = policy.prompt.encode(ask.problem, tokenizer)
        count = min(ask.count, policy.sampling["n"] - ask.first)
        if len(prompt_ids) >= policy.max_model_len or count < 1:
            return []
        seed = request_seed(self.plan.seed, self.plan.round, policy.name, ask.problem.id)
        part = replace(policy, sampling={**policy.sampling, "n": count})
        sampled = await self._ask(part, prompt_ids, seed + ask.first)
        rollouts = to_rollouts(sampled, policy.name, self.plan.round, tokenizer, ask.first)
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
            except (RayActorError, SamplerUnavailableError) as error:
                pause = next(pauses, None)
                if pause is None:
                    why = first_words(str(getattr(error, "cause", error)), 200)
                    raise SamplerUnavailableError(
                        f"the sampler of {policy.name} has not answered in "
                        f"{sum(RETRY_SECONDS)} s: {why}"
                    ) from error
                await asyncio.sleep(pause)


def to_rollouts(
    sampled: SampledTokens, policy: str, round: int, tokenizer: Any, first: int = 0
) -> list[Rollout]:
    """Sampled tokens as rollouts `first` and on, with their text, special tokens left out of it."""
    ids = sampled.token_ids.tolist()
    ends = sampled.lengths.cumsum().tolist()
    token_ids = [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    texts = tokenizer.batch_decode(token_ids, skip_special_tokens=True)
    logprobs: list[list[float] | None] = [None] * len(ends)
    if sampled.logprobs is not None:
        values = sampled.logprobs.tolist()
        logprobs = [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return [
        Rollout(
            policy=policy,
            completion=text,
            policy_version=sampled.policy_version,
            round=round,
            sample=sample,
            token_ids=own_ids,
            logprobs=own_logprobs,
            finish_reason="stop" if stopped else "length",
        )
        for sample, (text, own_ids, own_logprobs, stopped) in enumerate(
            zip(texts, token_ids, logprobs, sampled.stopped.tolist(), strict=True), start=first
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
    text = text[: min(ends)]
    return replace(rollout, completion=text, token_ids=None, logprobs=None, finish_reason="stop")
