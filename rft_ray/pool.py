"""The pool: the selected groups of a round, on disk, read by problem id.

Files hold a few groups each, in the order in which the stream finished them. An index of ids is
all that stays in memory; groups are read when they are asked for.
"""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from rft_ray.records import GROUP_SCHEMA, row_to_group
from rft_ray.types import Group, Problem

FILES_IN_MEMORY = 16


class Pool:
    """Groups of a folder of Parquet files by problem id; None where the folder has no such group.

    Neighbouring problems stand in the same file, so the last few files are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._file_of: dict[str, Path] = {}
        self._recent: OrderedDict[Path, dict[str, Group]] = OrderedDict()
        for path in sorted(folder.glob("*.parquet")):
            ids = pq.read_table(path, columns=["problem_id"])["problem_id"].to_pylist()
            self._file_of.update(dict.fromkeys(ids, path))

    def __len__(self) -> int:
        return len(self._file_of)

    def get(self, problem_id: str) -> Group | None:
        """The problem's group."""
        path = self._file_of.get(problem_id)
        return None if path is None else self._read(path)[problem_id]

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
