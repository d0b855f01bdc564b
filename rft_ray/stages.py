"""The stream: sample, verify, select and write, each a Ray Data stage over groups.

One row is one group, so every stage sees all rollouts of its problem, nothing is shuffled, and the
memory of any node is bounded by what is in flight. Sampled groups are on disk before anything
downstream sees them; a stage or task that is run again finds them there and samples nothing twice.
This is the only file that knows Ray Data; the work itself is in `sampler.py`, `verifier.py` and
`selection.py`.
"""

import asyncio
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, Dataset

from rft_ray.config import SelectionConfig, VerifierConfig
from rft_ray.decontamination import TestText, refuse_overlap
from rft_ray.pass_rates import part_line, part_of
from rft_ray.pool import Pool
from rft_ray.ray_metrics import Meter, verdict_points
from rft_ray.records import GROUP_SCHEMA, PROBLEM_STRUCT, group_to_row, replacing, row_to_group
from rft_ray.sampling import Ask, GroupSampler, SamplingPlan
from rft_ray.selection import round_statistics, select_group
from rft_ray.types import Group, Problem
from rft_ray.verifier import Verifier

# Few, since the rollouts of unfinished groups are all that a kill can cost; more than one, since
# each task and each file has a price.
GROUPS_PER_TASK = 4
# Stages other than the engines' are light: they share cores instead of holding them.
STAGE_CPUS = 0.1
ASK_SCHEMA = pa.schema(
    [("problem", PROBLEM_STRUCT), ("first", pa.int64()), ("count", pa.int64())]
)


def sample_groups(problems: list[Problem], plan: SamplingPlan, folder: str) -> Dataset:
    """Lazily, the group of every problem: read where it was sampled before, else sampled now.

    Every sampled group is on disk, under `folder`, before the row leaves the stage.
    """
    files = sorted(Path(folder).glob("*.parquet"))
    done = sampled_ids(files)
    todo = [problem for problem in problems if problem.id not in done]
    parts = [read_files(files)] if done else []
    if todo:
        rows = ray.data.from_items(
            [asdict(problem) for problem in todo],
            override_num_blocks=-(-len(todo) // GROUPS_PER_TASK),
        )
        calls = -(-plan.max_in_flight // GROUPS_PER_TASK)
        parts.append(_through_actor(rows, SampleGroups, (plan, folder), calls))
    return parts[0] if len(parts) == 1 else parts[0].union(*parts[1:])


def sample_wave(asks: list[Ask], plan: SamplingPlan, folder: str) -> Dataset:
    """Lazily, the rollouts asked for, a group for each ask, on disk before it leaves the stage.

    The caller asks for nothing that is on disk already.
    """
    counts = [ask.count for ask in asks]
    most = max(*counts, GROUPS_PER_TASK * sum(counts) // len(counts))
    in_flight = min(policy.max_rollouts_in_flight for policy in plan.policies)
    rows = ray.data.from_arrow(
        [
            pa.Table.from_pylist([asdict(ask) for ask in block], schema=ASK_SCHEMA)
            for block in cut_wave(asks, most)
        ]
    )
    calls = max(1, in_flight // most)
    return _through_actor(rows, SampleWave, (plan, folder), calls)


def cut_wave(asks: list[Ask], most: int) -> list[list[Ask]]:
    """The asks in order, cut into blocks of at most `most` rollouts a policy (no ask has more).

    Asks differ in size, unlike the groups of a fixed budget, and a block is what is in flight.
    """
    blocks: list[list[Ask]] = []
    room = 0
    for ask in asks:
        if ask.count > room:
            blocks.append([])
            room = most
        blocks[-1].append(ask)
        room -= ask.count
    return blocks


def read_sampled(problems: list[Problem], folder: str) -> Dataset:
    """Lazily, every problem's group of what waves left in `folder`, empty where they asked nothing.

    The groups are those of a fixed budget: nothing downstream knows of waves.
    """
    empty = [Group(problem) for problem in problems]
    starts = range(0, len(empty), GROUPS_PER_TASK)
    blocks = [groups_to_table(empty[start : start + GROUPS_PER_TASK]) for start in starts]
    return join_pool(ray.data.from_arrow(blocks), folder)


class SampleGroups:
    """Actor of the sampling stage: a few problems in, their groups out, on disk first."""

    def __init__(self, plan: SamplingPlan, folder: str) -> None:
        self.sampler = GroupSampler(plan)
        self.folder = Path(folder)

    async def __call__(self, rows: pa.Table) -> pa.Table:
        problems = [Problem(**row) for row in rows.to_pylist()]
        path = self.folder / f"{_file_stem(problems)}.parquet"
        if path.exists():
            # The task was run before and its answer was lost: its samples were not.
            return pq.read_table(path, schema=GROUP_SCHEMA)
        groups = await asyncio.gather(*(self.sampler.sample(problem) for problem in problems))
        table = groups_to_table(groups)
        await asyncio.to_thread(write_table, table, path)
        return table


class SampleWave:
    """Actor of the sampling stage in a wave: asks in, a group for each out, on disk first."""

    def __init__(self, plan: SamplingPlan, folder: str) -> None:
        self.sampler = GroupSampler(plan)
        self.folder = Path(folder)

    async def __call__(self, rows: pa.Table) -> pa.Table:
        asks = [Ask(**{**row, "problem": Problem(**row["problem"])}) for row in rows.to_pylist()]
        path = self.folder / f"{_wave_stem(asks)}.parquet"
        if path.exists():
            return pq.read_table(path, schema=GROUP_SCHEMA)
        groups = await asyncio.gather(*(self.sampler.answer(ask) for ask in asks))
        table = groups_to_table(groups)
        await asyncio.to_thread(write_table, table, path)
        return table


class VerifyGroups:
    """Actor of the verifying stage: owns the killable worker processes."""

    def __init__(
        self, config: VerifierConfig, is_metered: bool, test: TestText | None = None
    ) -> None:
        self.verifier = Verifier(config)
        self.test = test
        self.meter = Meter() if is_metered else None

    def __call__(self, table: pa.Table) -> pa.Table:
        verified = self.verifier.verify_groups(table_to_groups(table))
        groups = [refuse_overlap(group, self.test) for group in verified]
        if self.meter:
            self.meter.record(verdict_points(groups))
        return groups_to_table(groups)


def verify_groups(
    groups: Dataset,
    config: VerifierConfig,
    is_metered: bool = True,
    test: TestText | None = None,
) -> Dataset:
    """Lazily, the same groups with every rollout's verdict and reward filled in.

    With `is_metered` false the verdicts are left out of Ray's metrics: they will be given again.
    What overlaps with `test` is refused.
    """
    return _through_actor(groups, VerifyGroups, (config, is_metered, test))


class JoinPool:
    """Actor of the joining stage: knows where the earlier rounds' rollouts of a problem are."""

    def __init__(self, folder: str) -> None:
        self.pool = Pool(Path(folder))

    def __call__(self, table: pa.Table) -> pa.Table:
        return groups_to_table(
            join_group(self.pool.get(group.problem.id), group) for group in table_to_groups(table)
        )


def join_pool(groups: Dataset, folder: str) -> Dataset:
    """Lazily, each group with the rollouts that earlier rounds left in `folder` before its own."""
    return _through_actor(groups, JoinPool, (folder,))


def join_group(earlier: Group | None, group: Group) -> Group:
    """The group with the earlier rounds' rollouts of its problem in front."""
    return group if earlier is None else Group(group.problem, earlier.rollouts + group.rollouts)


def select_groups(groups: Dataset, config: SelectionConfig) -> Dataset:
    """Lazily, the same groups with `selected` filled in; a pure function of each group."""

    # Ray Data's pages name a stage after its class or function.
    def select_diverse(table: pa.Table) -> pa.Table:
        return groups_to_table(select_group(g, config) for g in table_to_groups(table))

    return groups.map_batches(
        select_diverse, batch_size=None, batch_format="pyarrow", num_cpus=STAGE_CPUS
    )


def write_groups(
    groups: Dataset, folder: str, round: int = 0, test: TestText | None = None
) -> Iterator[dict[str, Any]]:
    """Run the stream: write every group under `folder` and yield its statistics as it arrives.

    They are `selection.round_statistics` of the round, with `test` also the count of rollouts that
    were refused for their overlap. Exactly one row per problem, whatever is
    retried: a file's name depends on its groups only.
    """

    words = None if test is None else ray.put(test)

    def write_files(table: pa.Table) -> dict[str, list[Any]]:
        chosen = table_to_groups(table)
        if chosen:
            stem = _file_stem([group.problem for group in chosen])
            write_table(table, Path(folder) / f"{stem}.parquet")
        own = None if words is None else _fetched(words)
        return {"statistics": [round_statistics(group, round, own) for group in chosen]}

    written = groups.map_batches(
        write_files, batch_size=None, batch_format="pyarrow", num_cpus=STAGE_CPUS
    )
    written.set_name(stream_name(Path(folder)))
    for row in written.iter_rows():
        yield row["statistics"]


@lru_cache(maxsize=1)
def _fetched(reference: "ray.ObjectRef[TestText]") -> TestText:
    """Once a process: it is as large as the test problems."""
    return ray.get(reference)


def stream_name(folder: Path) -> str:
    """What Ray Data's pages and log files call the stream into a folder.

    runs/a/round-000/selected.partial -> round-000-selected
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "-", f"{folder.parent.name}-{folder.stem}").strip("-")


def pass_rate_lines(groups: Dataset) -> Iterator[str]:
    """Run the stream: the counts of every graded group (`pass_rates.part_line`) as they come."""

    def count_table(table: pa.Table) -> dict[str, list[str]]:
        return {"line": [part_line(part_of(group)) for group in table_to_groups(table)]}

    counted = groups.map_batches(
        count_table, batch_size=None, batch_format="pyarrow", num_cpus=STAGE_CPUS
    )
    for row in counted.iter_rows():
        yield row["line"]


def read_groups_dataset(folder: str) -> Dataset:
    """The groups files of a folder as a stream; half-written ones have another suffix."""
    return read_files(sorted(Path(folder).glob("*.parquet")))


def read_files(files: list[Path]) -> Dataset:
    """Groups files as a stream."""
    paths = [str(path) for path in files]
    return ray.data.read_parquet(paths, schema=GROUP_SCHEMA, override_num_blocks=len(paths))


def sampled_ids(files: list[Path]) -> set[str]:
    """Ids of the problems whose groups are in the files."""
    ids: set[str] = set()
    for path in files:
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
    # Hundreds of small files a second: what a power failure tears is found and sampled again.
    with replacing(path, is_flushed=False) as file:
        pq.write_table(table, file, compression="zstd")


def _through_actor(
    rows: Dataset, actor: type, arguments: tuple[Any, ...], calls: int | None = None
) -> Dataset:
    """Lazily, what one actor makes of the blocks, of which it may have `calls` in hand at once."""
    return rows.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=STAGE_CPUS,
        compute=ActorPoolStrategy(
            size=1,
            max_concurrent_calls_per_actor=calls,
            max_tasks_in_flight_per_actor=calls and 2 * calls,
        ),
    )


def _wave_stem(asks: list[Ask]) -> str:
    """A problem comes again in later waves, from another sample on."""
    identity = "\x1f".join(f"{ask.problem.id}\x1e{ask.first}\x1e{ask.count}" for ask in asks)
    return hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _file_stem(problems: Iterable[Problem]) -> str:
    ids = "\x1f".join(problem.id for problem in problems)
    return hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest()[:16]
