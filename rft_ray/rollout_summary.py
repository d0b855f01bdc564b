"""What the report keeps of the rollouts: distinct paths against samples, and groups to show.

The selected groups are streamed through once, without token ids; memory is a few groups and some
sums (`path_sums.py`). The groups of a later round hold the rollouts of all rounds before it, so
that round and the pool are summed apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq

from rft_ray.errors import InputError
from rft_ray.path_sums import PathSums
from rft_ray.path_table import add_group, rollout_paths
from rft_ray.records import row_to_group
from rft_ray.types import Group

READ_ROWS = 16
UNREAD = {"token_ids", "logprobs"}
NUM_EXAMPLES = 6


@dataclass(slots=True)
class RolloutSummary:
    """What is kept of a round's groups: its own path sums, those of all rounds, and examples."""

    round: int = 0
    own: PathSums = field(default_factory=PathSums)
    pool: PathSums = field(default_factory=PathSums)
    examples: list[tuple[tuple[bool, int, str], Group]] = field(default_factory=list)

    def add(self, group: Group) -> None:
        """Count a group; it is kept as an example while no better one is known."""
        rollouts = rollout_paths(group)
        add_group(self.pool, group, rollouts)
        pairs = zip(rollouts, group.rollouts, strict=True)
        own = [counted for counted, rollout in pairs if rollout.round == self.round]
        add_group(self.own, group, own)
        # Problems that show both outcomes first, then by a hash: the same six whatever the order
        # in which the stream delivered them.
        has_both = bool(group.selected) and len(group.accepted) < len(group.rollouts)
        rank = (not has_both, crc32(group.problem.id.encode("utf-8", "replace")), group.problem.id)
        if len(self.examples) < NUM_EXAMPLES or rank < self.examples[-1][0]:
            self.examples.append((rank, group))
            self.examples.sort(key=lambda example: example[0])
            del self.examples[NUM_EXAMPLES:]


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
