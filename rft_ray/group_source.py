"""Which groups a command reads: a groups file as it is, or what a run directory has, in whole.

A problem of a run may stand in several files of a folder, a part of its rollouts in each: sampled
in waves, or in a step of an online run each time its turn came. Here it is one group, and a part
that is there twice counts once. Only ids stay in memory, and a bounded number of parts.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from rft_ray.errors import InputError
from rft_ray.pass_rates import PartKey, first_samples
from rft_ray.pool import join_parts
from rft_ray.records import (
    ROLLOUT_NAMES,
    TOKEN_FIELDS,
    GroupReader,
    open_parquet,
    parquet_files,
    read_groups,
    row_to_group,
)
from rft_ray.run_dir import groups_of_run, is_run_dir
from rft_ray.types import Group

PARTS_AT_A_TIME = 8192
ONLINE_FILES = "step-*.parquet"


def find_source(source: str | Path, round_number: int | None = None, sampled: bool = True) -> Path:
    """The groups file that SOURCE means: itself, or what the newest round of a run directory has.

    With `sampled` false a round counts only once its rollouts are selected. Raises InputError where
    there are none, or a round is asked of something that is not a run directory.
    """
    if is_run_dir(source):
        return groups_of_run(source, round_number, sampled)
    if round_number is not None:
        raise InputError(f"{source}: not a run directory, so there is no round {round_number}")
    return Path(source)


def open_source(
    source: Path, skip_bad: bool = False, with_tokens: bool = False
) -> "GroupReader | JoinedGroups":
    """The groups to read, each problem once; errors as `records.read_groups` raises them."""
    if _is_folder_of_run(source):
        joined = JoinedGroups(source, with_tokens)
        if joined.num_parts > len(joined):
            return joined
    return read_groups(source, skip_bad, with_tokens)


class JoinedGroups:
    """The groups of a run's folder, in the order in which its files name the problems first."""

    def __init__(self, folder: Path, with_tokens: bool) -> None:
        self.path = folder
        self._columns = None if with_tokens else _columns_without_tokens()
        self._files_of: dict[str, list[Path]] = {}
        self.num_parts = 0
        is_online = any(folder.glob(ONLINE_FILES))
        seen: set[PartKey] = set()
        for path in parquet_files(folder):
            for key in _part_keys(path):
                self.num_parts += 1
                # The steps of an online run all begin with sample 0, each with rollouts of its own.
                if is_online or key not in seen:
                    seen.add(key)
                    self._files_of.setdefault(key[0], []).append(path)

    def __len__(self) -> int:
        return len(self._files_of)

    def __iter__(self) -> Iterator[Group]:
        for ids in self._slices():
            parts = self._read(ids)
            for problem_id in ids:
                yield join_parts(parts[problem_id])

    def _slices(self) -> Iterator[list[str]]:
        """Problems that are read together: each pass opens every file that has one of them."""
        ids, count = [], 0
        for problem_id, files in self._files_of.items():
            if ids and count + len(files) > PARTS_AT_A_TIME:
                yield ids
                ids, count = [], 0
            ids.append(problem_id)
            count += len(files)
        yield ids

    def _read(self, ids: Iterable[str]) -> dict[str, list[Group]]:
        wanted: dict[Path, list[str]] = {}
        for problem_id in ids:
            for path in self._files_of[problem_id]:
                wanted.setdefault(path, []).append(problem_id)
        parts: dict[str, list[Group]] = {}
        for path in sorted(wanted):
            with open_parquet(path) as file:
                table = file.read(columns=self._columns)
            own = table.filter(pc.is_in(table["problem_id"], pa.array(wanted[path], pa.string())))
            for row in own.to_pylist():
                parts.setdefault(row["problem_id"], []).append(row_to_group(row))
        return parts


def _is_folder_of_run(source: Path) -> bool:
    """Whether a run wrote this folder; anyone else's is to have a problem once."""
    if not source.is_dir():
        return False
    is_round = re.fullmatch(r"round-[0-9]{3,}", source.resolve().parent.name)
    return bool(is_round and source.name in ("sampled", "selected")) or any(
        source.glob(ONLINE_FILES)
    )


def _part_keys(path: Path) -> list[PartKey]:
    with open_parquet(path) as file:
        if "problem_id" not in file.schema_arrow.names:
            raise InputError(f"{path}: no column 'problem_id'")
        return first_samples(file)


def _columns_without_tokens() -> list[str]:
    rollout = [name for name in ROLLOUT_NAMES if name not in TOKEN_FIELDS]
    return ["problem_id", "problem", *(f"rollouts.list.element.{name}" for name in rollout)]
