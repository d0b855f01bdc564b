"""The stream: sample, verify, select and write, each a Ray Data stage over groups.

One row is one group, so every stage sees all rollouts of its problem, nothing is shuffled, and the
memory of any node is bounded by what is in flight. Sampled groups are on disk before anything
downstream sees them; a stage or task that is run again finds them there and samples nothing twice.
This is the only file that knows Ray Data; the work itself is in `sampler.py`, `verifier.py` and
`selection.py`.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import serve
from ray.data import ActorPoolStrategy, Dataset
from ray.exceptions import RayActorError
from transformers import AutoTokenizer

from rft_ray.config import SelectionConfig, VerifierConfig
from rft_ray.prompts import encode_prompt
from rft_ray.records import GROUP_SCHEMA, group_to_row, row_to_group
from rft_ray.sampler import SampledTokens, SamplerUnavailableError, Weights
from rft_ray.selection import group_statistics, select_group
from rft_ray.types import Group, Problem, Rollout
from rft_ray.verifier import Verifier

# Few, since the rollouts of unfinished groups are all that a kill can cost; more than one, since
# each task and each file has a price.
GROUPS_PER_TASK = 4
# Stages other than the engines' are light: they share cores instead of holding them.
STAGE_CPUS = 0.1
RETRY_SECONDS = (1, 2, 5, 10, 20, 40, 60, 60, 60, 60)


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy as the sampling stage sees it: whom to ask, for which weights, and how."""

    name: str
    application: str
    """Serve application of its sampler."""
    weights: Weights
    sampling: dict[str, Any]
    """vLLM sampling parameters; `n` rollouts per problem."""
    max_model_len: int
    """Longest prompt plus completion in tokens; a problem beyond it gets no rollouts."""
    max_in_flight: int
    """Requests that its replicas take at a time."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Everything that decides what a problem is asked; equal plans give equal seeds."""

    policies: list[Policy]
    prompt_template: str
    seed: int
    round: int
    folder: str
    """Where finished groups are written."""
    problem_ids: frozenset[str] = field(default_factory=frozenset)


def request_seed(run_seed: int, round: int, policy: str, problem_id: str) -> int:
    """Seed of a problem's first rollout; sample i has this plus i, in the engine.

    A pure function of what identifies the rollout, so a restart asks for the same samples.
    """
    identity = "\x1f".join([str(run_seed), str(round), policy, problem_id])
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 2


class SampleGroups:
    """Actor of the sampling stage: asks every policy about a few problems and writes the groups."""

    def __init__(self, plan: SamplingPlan) -> None:
        self.plan = plan
        self.handles = {p.name: serve.get_app_handle(p.application) for p in plan.policies}
        self.tokenizers = {
            p.name: AutoTokenizer.from_pretrained(p.weights.path) for p in plan.policies
        }

    async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[pa.Table]:
        problems = [
            Problem(*values)
            for values in zip(*(batch[name].tolist() for name in _PROBLEM_FIELDS), strict=True)
        ]
        path = Path(self.plan.folder) / f"{_file_stem(problems)}.parquet"
        if path.exists():
            yield pq.read_table(path, schema=GROUP_SCHEMA)
            return
        groups = await asyncio.gather(*(self._sample_group(problem) for problem in problems))
        table = groups_to_table(groups)
        await asyncio.to_thread(write_table, table, path)
        yield table

    async def _sample_group(self, problem: Problem) -> Group:
        per_policy = await asyncio.gather(
            *(self._sample_policy(problem, policy) for policy in self.plan.policies)
        )
        return Group(problem, [rollout for rollouts in per_policy for rollout in rollouts])

    async def _sample_policy(self, problem: Problem, policy: Policy) -> list[Rollout]:
        tokenizer = self.tokenizers[policy.name]
        prompt_ids = encode_prompt(problem, tokenizer, self.plan.prompt_template)
        if len(prompt_ids) >= policy.max_model_len:
            return []
        seed = request_seed(self.plan.seed, self.plan.round, policy.name, problem.id)
        sampled = await self._ask(policy, prompt_ids, seed)
        return _to_rollouts(sampled, policy.name, self.plan.round, tokenizer)

    async def _ask(self, policy: Policy, prompt_ids: list[int], seed: int) -> SampledTokens:
        """The request, repeated while its replica is gone; any other failure stops the run."""
        for pause in (*RETRY_SECONDS, None):
            try:
                return await self.handles[policy.name].sample.remote(
                    prompt_ids, policy.weights, policy.sampling, seed
                )
            except (RayActorError, SamplerUnavailableError):
                if pause is None:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError("unreachable: the last attempt returns or raises")


_PROBLEM_FIELDS = ("id", "prompt", "answer", "source", "solution")


def _to_rollouts(
    sampled: SampledTokens, policy: str, round: int, tokenizer: Any
) -> list[Rollout]:
    ids = sampled.token_ids.tolist()
    ends = sampled.lengths.cumsum().tolist()
    completions_ids = [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    texts = tokenizer.batch_decode(completions_ids, skip_special_tokens=True)
    return [
        Rollout(
            policy=policy,
            completion=text,
            policy_version=sampled.policy_version,
            round=round,
            sample=sample,
            token_ids=token_ids,
            finish_reason="stop" if stopped else "length",
        )
        for sample, (text, token_ids, stopped) in enumerate(
            zip(texts, completions_ids, sampled.stopped.tolist(), strict=True)
        )
    ]


def sample_groups(problems: Iterable[Problem], plan: SamplingPlan) -> Dataset:
    """Lazily, the group of every problem: read where it was sampled before, else sampled now.

    Every sampled group is on disk, under `plan.folder`, before the row leaves the stage.
    """
    problems = list(problems)
    done = sampled_ids(plan.folder)
    todo = [problem for problem in problems if problem.id not in done]
    parts = []
    if len(todo) < len(problems):
        parts.append(read_groups_dataset(plan.folder))
    if todo:
        in_flight = min(policy.max_in_flight for policy in plan.policies)
        rows = ray.data.from_items(
            [asdict(problem) for problem in todo],
            override_num_blocks=-(-len(todo) // GROUPS_PER_TASK),
        )
        parts.append(
            rows.map_batches(
                SampleGroups,
                fn_constructor_args=(plan,),
                batch_size=None,
                batch_format="numpy",
                num_cpus=STAGE_CPUS,
                max_concurrency=max(1, -(-in_flight // GROUPS_PER_TASK)),
                compute=ActorPoolStrategy(
                    size=1, max_tasks_in_flight_per_actor=2 * max(1, in_flight // GROUPS_PER_TASK)
                ),
            )
        )
    return parts[0].union(*parts[1:])


class VerifyGroups:
    """Actor of the verifying stage: owns the killable worker processes."""

    def __init__(self, config: VerifierConfig) -> None:
        self.verifier = Verifier(config)

    def __call__(self, table: pa.Table) -> pa.Table:
        groups = [self.verifier.verify_group(group) for group in table_to_groups(table)]
        return groups_to_table(groups)


def verify_groups(groups: Dataset, config: VerifierConfig) -> Dataset:
    """Lazily, the same groups with every rollout's verdict and reward filled in."""
    return groups.map_batches(
        VerifyGroups,
        fn_constructor_args=(config,),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=STAGE_CPUS,
        compute=ActorPoolStrategy(size=1),
    )


def select_groups(groups: Dataset, config: SelectionConfig) -> Dataset:
    """Lazily, the same groups with `selected` filled in; a pure function of each group."""

    def select_table(table: pa.Table) -> pa.Table:
        return groups_to_table(select_group(g, config.rule) for g in table_to_groups(table))

    return groups.map_batches(
        select_table, batch_size=None, batch_format="pyarrow", num_cpus=STAGE_CPUS
    )


def write_groups(groups: Dataset, folder: str) -> Iterator[dict[str, Any]]:
    """Run the stream: write every group under `folder` and yield its statistics as it arrives.

    Exactly one row per problem, whatever is retried: a file's name depends on its groups only.
    """

    def write_block(table: pa.Table) -> dict[str, list[Any]]:
        chosen = table_to_groups(table)
        if chosen:
            stem = _file_stem([group.problem for group in chosen])
            write_table(table, Path(folder) / f"{stem}.parquet")
        return {"statistics": [group_statistics(group) for group in chosen]}

    written = groups.map_batches(
        write_block, batch_size=None, batch_format="pyarrow", num_cpus=STAGE_CPUS
    )
    for row in written.iter_rows():
        yield row["statistics"]


def read_groups_dataset(folder: str) -> Dataset:
    """The groups files of a folder as a stream; half-written ones have another suffix."""
    paths = [str(path) for path in sorted(Path(folder).glob("*.parquet"))]
    return ray.data.read_parquet(paths, schema=GROUP_SCHEMA, override_num_blocks=len(paths))


def sampled_ids(folder: str) -> set[str]:
    """Ids of the problems whose groups are on disk."""
    ids: set[str] = set()
    for path in Path(folder).glob("*.parquet"):
        ids.update(pq.read_table(path, columns=["problem_id"])["problem_id"].to_pylist())
    return ids


def groups_to_table(groups: Iterable[Group]) -> pa.Table:
    """Groups as rows of the fixed schema."""
    return pa.Table.from_pylist([group_to_row(group) for group in groups], schema=GROUP_SCHEMA)


def table_to_groups(table: pa.Table) -> list[Group]:
    """The inverse of groups_to_table."""
    return [row_to_group(row) for row in table.to_pylist()]


def write_table(table: pa.Table, path: Path) -> None:
    """A Parquet file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial, compression="zstd")
    # Readers take every *.parquet, so the name is given last.
    os.replace(partial, path)


def _file_stem(problems: Iterable[Problem]) -> str:
    ids = "\x1f".join(problem.id for problem in problems)
    return hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest()[:16]
