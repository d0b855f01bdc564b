"""The pool: the groups of a folder, on disk, read by problem id.

Files hold a few groups each, in the order in which the stream finished them. A problem that was
sampled in waves stands in several, which are one group here; a part that is there twice counts once
(`repeats.py`). An index of ids is all that stays in
memory; groups are read when they are asked for.
"""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from rft_ray.errors import InputError
from rft_ray.pass_rates import PartKey, first_samples
from rft_ray.records import GROUP_SCHEMA, row_to_group
from rft_ray.torn_files import unreadable
from rft_ray.types import Group, Problem

FILES_IN_MEMORY = 16


class Pool:
    """Groups of a folder of Parquet files by problem id; None where the folder has no such group.

    Neighbouring problems stand in the same file, so the last few files are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._files_of: dict[str, list[Path]] = {}
        self._recent: OrderedDict[Path, dict[str, Group]] = OrderedDict()
        seen: set[PartKey] = set()
        for path in sorted(folder.glob("*.parquet")):
            if reason := unreadable(path):
                raise InputError(f"{path}: {reason}; remove {folder}, which is then made again")
            with pq.ParquetFile(path) as file:
                keys = first_samples(file)
            for key in keys:
                if key not in seen:
                    seen.add(key)
                    self._files_of.setdefault(key[0], []).append(path)

    def __len__(self) -> int:
        return len(self._files_of)

    def __iter__(self) -> Iterator[Group]:
        """Every group, in the order of the files."""
        for problem_id, paths in self._files_of.items():
            yield join_parts([self._read(path)[problem_id] for path in paths])

    def get(self, problem_id: str) -> Group | None:
        """The problem's group."""
        paths = self._files_of.get(problem_id)
        if paths is None:
            return None
        return join_parts([self._read(path)[problem_id] for path in paths])

    def in_order(self, problems: list[Problem]) -> Iterator[Group]:
        """Groups in the order of the problems: the stream's own depends on timing, a run must not.

        Raises KeyError where a problem has none.
        """
        for problem in problems:
            group = self.get(problem.id)
            if group is None:
                raise KeyError(problem.id)
            yield group

    def _read(self, path: Path) -> dict[str, Group]:
        if path not in self._recent:
            rows = pq.read_table(path, schema=GROUP_SCHEMA).to_pylist()
            self._recent[path] = {row["problem_id"]: row_to_group(row) for row in rows}
            if len(self._recent) > FILES_IN_MEMORY:
                self._recent.popitem(last=False)
        self._recent.move_to_end(path)
        return self._recent[path]


def join_parts(parts: list[Group]) -> Group:
    """One group of the parts of a problem, as if its rollouts had been sampled at once.

    Policies keep the order of the part with the lowest samples; a policy's rollouts go by sample.
    """
    if len(parts) == 1:
        return parts[0]
    parts = sorted(parts, key=lambda part: min((r.sample for r in part.rollouts), default=0))
    rollouts = [rollout for part in parts for rollout in part.rollouts]
    place = {name: number for number, name in enumerate(dict.fromkeys(r.policy for r in rollouts))}
    rollouts.sort(key=lambda rollout: (place[rollout.policy], rollout.sample))
    return Group(parts[0].problem, rollouts)
