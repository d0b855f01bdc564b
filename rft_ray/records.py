"""Groups files: JSON Lines or Parquet in, frozen records out, and back; one group at a time.

A row is a plain dict of the contract's fields with `problem_id` on top, which Ray Data's checkpoint
reads. Parquet always has the one nested schema below, whatever is null in the data. What comes from
a user is checked by `record_checks.py`; rows that this module made are trusted (`row_to_group`).
Text that UTF-8 cannot hold (lone surrogates) survives JSON Lines as it is and becomes U+FFFD in
Arrow. Fields outside the contract are not carried over.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, Self
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from rft_ray.errors import InputError
from rft_ray.record_checks import parse_group, parse_json
from rft_ray.types import Group, Problem, Rollout

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".parquet")
READ_ROWS = 16
ROW_GROUP_ROWS = 256
ROW_GROUP_CHARS = 8_000_000
TOKEN_FIELDS = {"token_ids", "logprobs"}

PROBLEM_NAMES = tuple(field.name for field in fields(Problem))
ROLLOUT_NAMES = tuple(field.name for field in fields(Rollout))
PROBLEM_VALUES = attrgetter(*PROBLEM_NAMES)
ROLLOUT_VALUES = attrgetter(*ROLLOUT_NAMES)

PROBLEM_STRUCT = pa.struct([(name, pa.string()) for name in PROBLEM_NAMES])
ROLLOUT_STRUCT = pa.struct(
    [
        ("policy", pa.string()),
        ("completion", pa.string()),
        ("policy_version", pa.int64()),
        ("round", pa.int64()),
        ("sample", pa.int64()),
        ("token_ids", pa.list_(pa.int64())),
        ("logprobs", pa.list_(pa.float64())),
        ("finish_reason", pa.string()),
        ("verdict", pa.string()),
        ("reward", pa.float64()),
        ("selected", pa.bool_()),
    ]
)
GROUP_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("problem", PROBLEM_STRUCT),
        ("rollouts", pa.list_(ROLLOUT_STRUCT)),
    ]
)


class GroupReader:
    """The groups of a file, in order, once; `skipped` counts the bad records left out so far."""

    def __init__(self, path: str | Path, skip_bad: bool, with_tokens: bool = True) -> None:
        self.path = Path(path)
        self.skipped = 0
        self.first_skipped = ""
        self._skip_bad = skip_bad
        self._place_of: dict[str, str] = {}
        if is_parquet(self.path):
            self._records = _read_parquet(self.path, with_tokens)
        else:
            self._records = read_lines(self.path)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Group:
        for place, raw in self._records:
            try:
                return self._check(place, raw)
            except InputError as error:
                if not self._skip_bad:
                    raise
                self.skipped += 1
                self.first_skipped = self.first_skipped or str(error)
        if not self._place_of:
            reason = f"every record is bad: {self.first_skipped}" if self.skipped else "no groups"
            raise InputError(f"{self.path}: {reason}")
        raise StopIteration

    def _check(self, place: str, raw: bytes | Row) -> Group:
        try:
            group = parse_group(parse_json(raw) if isinstance(raw, bytes) else raw)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        first = self._place_of.setdefault(group.problem.id, place)
        if first is not place:
            raise InputError(f"{place}: problem.id: {group.problem.id!r} is also at {first}")
        return group


def read_groups(
    path: str | Path, skip_bad: bool = False, with_tokens: bool = True
) -> GroupReader:
    """The groups of a JSON Lines file, a Parquet file or a folder of Parquet files, streamed.

    Without tokens, Parquet's `token_ids` and `logprobs` are left unread, which are most of a file.

    Iterating raises InputError at the first bad record ("file:line: rollouts[3].policy: ..."), or
    skips and counts bad records when asked to; always where there is not one good record.
    """
    return GroupReader(path, skip_bad, with_tokens)


def count_groups(path: str | Path) -> int:
    """How many records a groups file has, good or bad, without reading them (for progress bars)."""
    path = Path(path)
    if is_parquet(path):
        return sum(open_parquet(file).metadata.num_rows for file in parquet_files(path))
    count, chunk = 0, b"\n"
    with _opened(path) as file:
        while following := file.read(1 << 20):
            chunk = following
            count += chunk.count(b"\n")
    return count + (not chunk.endswith(b"\n"))


def write_groups(path: str | Path, groups: Iterable[Group]) -> int:
    """Write groups as they come, JSON Lines or Parquet by suffix; the number written.

    The file appears under its name only when it is complete. Raises InputError for a path that
    `check_output` refuses.
    """
    path = Path(path)
    check_output(path)
    with replacing(path) as file:
        if path.suffix == ".parquet":
            return _write_parquet(file, groups)
        count = 0
        for count, group in enumerate(groups, start=1):  # noqa: B007
            line = json.dumps(_to_record(group), allow_nan=False)
            file.write(line.encode("ascii") + b"\n")
        return count


def check_output(path: str | Path, source: str | Path | None = None) -> None:
    """Raise InputError unless a groups file can be written at `path` without touching `source`."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: the name must end in {' or '.join(SUFFIXES)}")
    if os.path.isdir(path):  # unlike Path.is_dir, never raises, whatever the name
        raise InputError(f"{path}: is a folder")
    check_place(path, source)


def check_place(path: Path, source: str | Path | None = None) -> None:
    """Raise InputError unless there can be something new at `path`, outside of `source`."""
    if not os.path.isdir(path.parent):
        raise InputError(f"{path}: there is no folder {path.parent}")
    if source is not None and Path(source).resolve() in (path.resolve(), path.parent.resolve()):
        raise InputError(f"{path}: would overwrite or add to the input {source}")
    probe = _temporary(path)
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot write there: {error.strerror}") from None


def group_to_row(group: Group) -> Row:
    """A group as a row that fits GROUP_SCHEMA."""
    row = _to_record(group)
    for record in (row["problem"], *row["rollouts"]):
        for name, value in record.items():
            if isinstance(value, str):
                record[name] = replace_surrogates(value)
    return {"problem_id": row["problem"]["id"], **row}


def replace_surrogates(text: str) -> str:
    """The text with U+FFFD for what UTF-8, and so Arrow, cannot hold."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", text)


def row_to_group(row: Row) -> Group:
    """The group of a row made by `group_to_row`, unchecked."""
    rollouts = [Rollout(**rollout) for rollout in row["rollouts"]]
    return Group(Problem(**row["problem"]), rollouts)


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank, each with "file:line"."""
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield f"{path}:{number}", line


def is_parquet(path: Path) -> bool:
    """Whether a groups file is Parquet, by its name; InputError where it is no groups file."""
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file")
    if os.path.isdir(path) or path.suffix == ".parquet":
        return True
    if path.suffix != ".jsonl":
        raise InputError(f"{path}: not a .jsonl or .parquet file or a folder of .parquet files")
    return False


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}") from None
    with file:
        yield file


def parquet_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.glob("*.parquet") if not file.name.startswith("."))
    if not files:
        raise InputError(f"{path}: there are no .parquet files in this folder")
    return files


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file of groups, not read yet; InputError where it is none."""
    try:
        # Without pre_buffer a row group streams through the buffer instead of being read whole.
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a readable Parquet file: {_first_line(error)}") from None
    for column in ("problem", "rollouts"):
        if column not in file.schema_arrow.names:
            raise InputError(f"{path}: no column {column!r}")
    return file


def _read_parquet(path: Path, with_tokens: bool) -> Iterator[tuple[str, Row]]:
    for file in parquet_files(path):
        number = 0
        opened = open_parquet(file)
        columns = ["problem", "rollouts"] if with_tokens else _columns_without_tokens(opened)
        batches = opened.iter_batches(READ_ROWS, columns=columns)
        while True:
            try:
                batch = next(batches, None)
                rows = batch.to_pylist() if batch is not None else []
            except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
                place = f"{file}: after row {number}"
                raise InputError(f"{place}: cannot read: {_first_line(error)}") from None
            if batch is None:
                break
            for number, row in enumerate(rows, start=number + 1):  # noqa: B020
                yield f"{file}: row {number}", row


def _columns_without_tokens(file: pq.ParquetFile) -> list[str]:
    leaves = [file.schema.column(index).path for index in range(len(file.schema.names))]
    return [
        leaf
        for leaf in leaves
        if leaf.split(".")[0] in ("problem", "rollouts") and not TOKEN_FIELDS & set(leaf.split("."))
    ]


def _write_parquet(file: BinaryIO, groups: Iterable[Group]) -> int:
    rows, chars, count = [], 0, 0
    with pq.ParquetWriter(file, GROUP_SCHEMA, compression="zstd") as writer:
        for count, group in enumerate(groups, start=1):  # noqa: B007
            rows.append(group_to_row(group))
            chars += sum(len(rollout.completion) for rollout in group.rollouts)
            if len(rows) == ROW_GROUP_ROWS or chars > ROW_GROUP_CHARS:
                writer.write_table(pa.Table.from_pylist(rows, GROUP_SCHEMA))
                rows, chars = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, GROUP_SCHEMA))
    return count


def _to_record(group: Group) -> Row:
    rollouts = [dict(zip(ROLLOUT_NAMES, ROLLOUT_VALUES(r), strict=True)) for r in group.rollouts]
    problem = dict(zip(PROBLEM_NAMES, PROBLEM_VALUES(group.problem), strict=True))
    return {"problem": problem, "rollouts": rollouts}


def _temporary(path: Path) -> Path:
    # Of this writer alone: a node that was thought dead may still be writing the same groups.
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")


@contextmanager
def replacing(path: Path, is_flushed: bool = True) -> Iterator[BinaryIO]:
    """A file that takes the name `path` when the block ends, and is gone when it raises.

    One that is not flushed may be cut short by a power failure in the half minute after.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            yield file
            if is_flushed:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
