"""What the report keeps of the rollouts: distinct paths against samples, and groups to show.

The selected groups are streamed through once, without token ids; memory is a few groups and some
sums. Distinct paths against k are exact expectations over which k of a policy's rollouts are
taken, so the curve does not depend on the order they were sampled in. The groups of a later round
hold the rollouts of all rounds before it, so that round and the pool are summed apart.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq

from rft_ray.errors import InputError
from rft_ray.records import row_to_group
from rft_ray.selection import path_key
from rft_ray.tally import POOLED
from rft_ray.types import Group

READ_ROWS = 16
UNREAD = {"token_ids", "logprobs"}
DOUBLINGS = 16
NUM_EXAMPLES = 6

Curves = dict[str, list[tuple[float, ...]]]


@dataclass(slots=True)
class PathSums:
    """By policy and pooled: distinct paths among 1, 2, 4, ... rollouts, summed over problems."""

    num_problems: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)
    most_rollouts: Counter[str] = field(default_factory=Counter)

    def add(self, rollouts: list[tuple[str, str | None]]) -> None:
        """Count a problem's rollouts, each as its policy and, where it is accepted, its path."""
        self.num_problems += 1
        sizes = Counter(policy for policy, _ in rollouts)
        self.most_rollouts |= sizes
        paths: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for policy, path in rollouts:
            if path is not None:
                paths[path][policy] += 1
        for name in [*sizes, POOLED]:
            of = sizes if name == POOLED else Counter({name: sizes[name]})
            sums = self.sums.setdefault(name, [0.0] * DOUBLINGS)
            expected = 0.0
            for power in range(DOUBLINGS):
                # From all of a policy's rollouts on, the number of paths stays what it is.
                if power == 0 or 2 ** (power - 1) < max(of.values(), default=0):
                    expected = expected_paths(paths.values(), of, 2**power)
                sums[power] += expected

    def curves(self) -> Curves:
        """By policy and pooled: (k, mean distinct paths of a problem among k rollouts a policy)."""
        largest = max(self.most_rollouts.values(), default=0)
        curves: Curves = {}
        for name in [*(name for name in self.sums if name != POOLED), POOLED]:
            most = largest if name == POOLED else self.most_rollouts[name]
            if name in self.sums and most:
                means = [total / self.num_problems for total in self.sums[name]]
                # Beyond the number of rollouts the sums are those of all rollouts.
                powers = [power for power in range(DOUBLINGS) if 2**power <= 0.75 * most]
                last = min(DOUBLINGS - 1, math.ceil(math.log2(most)))
                curves[name] = [(2**p, means[p]) for p in powers] + [(most, means[last])]
        return curves


@dataclass(slots=True)
class RolloutSummary:
    """What is kept of a round's groups: its own path sums, those of all rounds, and examples."""

    round: int = 0
    own: PathSums = field(default_factory=PathSums)
    pool: PathSums = field(default_factory=PathSums)
    examples: list[tuple[tuple[bool, int, str], Group]] = field(default_factory=list)

    def add(self, group: Group) -> None:
        """Count a group; it is kept as an example while no better one is known."""
        rollouts = [
            (r.policy, path_key(r.completion) if r.is_accepted else None) for r in group.rollouts
        ]
        self.pool.add(rollouts)
        pairs = zip(rollouts, group.rollouts, strict=True)
        self.own.add([counted for counted, rollout in pairs if rollout.round == self.round])
        # Problems that show both outcomes first, then by a hash: the same six whatever the order
        # in which the stream delivered them.
        has_both = bool(group.selected) and len(group.accepted) < len(group.rollouts)
        rank = (not has_both, crc32(group.problem.id.encode("utf-8", "replace")), group.problem.id)
        if len(self.examples) < NUM_EXAMPLES or rank < self.examples[-1][0]:
            self.examples.append((rank, group))
            self.examples.sort(key=lambda example: example[0])
            del self.examples[NUM_EXAMPLES:]


def expected_paths(paths: Iterable[Counter[str]], sizes: Counter[str], k: int) -> float:
    """Expected number of distinct paths among k rollouts drawn from each policy of `sizes`.

    A path is given as its number of accepted rollouts by policy; `sizes` has all rollouts. A policy
    that has fewer than k gives all it has.
    """
    return sum(
        1.0 - math.prod(missing_chance(sizes[name], path[name], k) for name in sizes)
        for path in paths
    )


@lru_cache(maxsize=65_536)
def missing_chance(total: int, hits: int, k: int) -> float:
    """Chance that k of `total` rollouts, drawn at random, hold none of `hits`: (4, 1, 2) -> 0.5."""
    k = min(k, total)
    return math.comb(total - hits, k) / math.comb(total, k)


def read_rollouts(folder: Path, number: int) -> RolloutSummary:
    """Stream a round's folder of Parquet files; InputError names a file that is torn."""
    summary = RolloutSummary(number)
    for file in sorted(folder.glob("*.parquet")):
        for group in _read_file(file):
            summary.add(group)
    return summary


def _read_file(path: Path) -> Iterator[Group]:
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            leaves = [file.schema.column(i).path for i in range(len(file.schema.names))]
            columns = [leaf for leaf in leaves if not UNREAD & set(leaf.split("."))]
            for batch in file.iter_batches(READ_ROWS, columns=columns):
                for row in batch.to_pylist():
                    yield row_to_group(row)
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: not a readable groups file: {reason}") from None
