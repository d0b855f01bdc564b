"""What is known of every problem of a round: which rollouts it got, and how many were accepted.

A few numbers for each part of a problem's rollouts, in memory and in a small file that is replaced
after every wave: the store that later waves and rounds are planned by. What is on disk decides what
was sampled; a part that the store lacks was sampled just before a kill and is to be graded again.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rft_ray.budget import Tried, add_up
from rft_ray.run_dir import write_atomically
from rft_ray.types import Group

SAMPLE_COLUMN = "rollouts.list.element.sample"
PartKey = tuple[str, int]
"""A problem's id and the first sample of the part."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rollouts of a problem that were asked for at once, from sample `first` on, by policy."""

    problem_id: str
    first: int
    policies: dict[str, Tried]

    @property
    def end(self) -> int:
        """The sample after the last one of any policy."""
        return self.first + max((own.rollouts for own in self.policies.values()), default=0)


@dataclass(slots=True)
class PassRates:
    """The parts of every problem by their first sample."""

    parts: dict[str, dict[int, Part]] = field(default_factory=dict)

    def add(self, part: Part) -> None:
        """Count a part; one that was counted before is replaced."""
        self.parts.setdefault(part.problem_id, {})[part.first] = part

    def of(self, problem_id: str) -> list[Part]:
        """A problem's parts in order of their samples."""
        return [part for _, part in sorted(self.parts.get(problem_id, {}).items())]

    def policies(self, problem_id: str) -> dict[str, Tried]:
        """What came of a problem, by policy; one that it is too long for is not there."""
        sums: dict[str, Tried] = {}
        for part in self.of(problem_id):
            for name, own in part.policies.items():
                sums[name] = sums.get(name, Tried()) + own
        return sums

    def tried(self, problem_id: str) -> Tried:
        """What came of a problem, all policies together."""
        return add_up(self.policies(problem_id).values())

    def asked(self, problem_id: str) -> tuple[int, int]:
        """Samples of a problem from the first on without a gap, and the length of the gap then.

        A gap is there where a file was lost; without one its length is 0. A problem too long for
        every policy counts as asked once.
        """
        parts, end = self.of(problem_id), 0
        for part in parts:
            if part.first > end:
                return end, part.first - end
            end = max(end, part.end)
        return max(end, 1 if parts else 0), 0

    def save(self, path: Path) -> None:
        """Replace the file, a part a line."""
        lines = (part_line(part) for own in self.parts.values() for part in own.values())
        write_atomically(path, "".join(f"{line}\n" for line in lines))


def load_rates(path: Path, sampled: Path) -> tuple[PassRates, dict[PartKey, Path]]:
    """The stored rates of what is in the folder of sampled groups, and the parts not yet counted.

    A line whose rollouts were lost is left out.
    """
    rates, left = PassRates(), parts_on_disk(sampled)
    for part in read_parts(path):
        if left.pop((part.problem_id, part.first), None):
            rates.add(part)
    return rates, left


def stored_rates(paths: Iterable[Path]) -> PassRates:
    """All that the stores of several rounds have, each part as if it were a problem's next."""
    rates = PassRates()
    for path in paths:
        for part in read_parts(path):
            known = rates.parts.setdefault(part.problem_id, {})
            known[len(known)] = part
    return rates


def read_parts(path: Path) -> Iterator[Part]:
    """The parts of a file; none where there is no file."""
    if path.exists():
        yield from map(parse_part, path.read_text(encoding="ascii").splitlines())


def part_line(part: Part) -> str:
    """A part as JSON: {"problem_id", "first", "policies": {name: [rollouts, accepted]}}."""
    counts = {name: [own.rollouts, own.accepted] for name, own in part.policies.items()}
    return json.dumps({"problem_id": part.problem_id, "first": part.first, "policies": counts})


def parse_part(line: str) -> Part:
    """The inverse of part_line."""
    raw = json.loads(line)
    policies = {name: Tried(*counts) for name, counts in raw["policies"].items()}
    return Part(raw["problem_id"], raw["first"], policies)


def part_of(group: Group) -> Part:
    """The counts of a graded group."""
    policies: dict[str, Tried] = {}
    for rollout in group.rollouts:
        one = Tried(1, int(rollout.is_accepted))
        policies[rollout.policy] = policies.get(rollout.policy, Tried()) + one
    first = min((rollout.sample for rollout in group.rollouts), default=0)
    return Part(group.problem.id, first, policies)


def parts_on_disk(folder: Path) -> dict[PartKey, Path]:
    """The file of every part in a folder of sampled groups; texts and tokens are not read."""
    found: dict[PartKey, Path] = {}
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            found.update(dict.fromkeys(first_samples(file), path))
    return found


def first_samples(file: pq.ParquetFile) -> list[PartKey]:
    """What identifies each part in a file, in order."""
    table = file.read(columns=["problem_id", SAMPLE_COLUMN])
    if not len(table):
        return []
    rollouts = pa.concat_arrays(table["rollouts"].chunks)
    lengths = rollouts.value_lengths().to_numpy(zero_copy_only=False)
    samples = pc.struct_field(rollouts.flatten(), "sample").to_numpy(zero_copy_only=False)
    firsts, starts, has_any = np.zeros(len(lengths), int), np.cumsum(lengths) - lengths, lengths > 0
    firsts[has_any] = np.minimum.reduceat(samples, starts[has_any]) if has_any.any() else 0
    return list(zip(table["problem_id"].to_pylist(), firsts.tolist(), strict=True))
