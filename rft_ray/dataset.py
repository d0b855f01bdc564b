"""Selected rollouts as a dataset that other trainers read: three formats, three ways of storing.

Rows are made a problem at a time and written as they come, so memory is a few groups. What is
written is there whole or not at all, a folder too. Left out: tokenising (trainers do their own),
splits other than train, and pushing to a hub.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from rft_ray.dataset_card import dataset_card, read_run_facts
from rft_ray.errors import InputError
from rft_ray.records import SUFFIXES, check_output, check_place, replace_surrogates, replacing
from rft_ray.types import Group, Rollout

Format = Literal["query-response", "messages", "preference"]
Row = dict[str, Any]

FORMATS: tuple[Format, ...] = get_args(Format)
REJECTED_VERDICTS = ("wrong", "miscalculated", "unparsable")
ROW_GROUP_ROWS = 1_000
ROW_GROUP_CHARS = 8_000_000
SHARD_BYTES = 500_000_000

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMAS: dict[str, pa.Schema] = {
    "query-response": pa.schema([("query", pa.string()), ("response", pa.string())]),
    "messages": pa.schema([("messages", pa.list_(MESSAGE))]),
    "preference": pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected")]),
}


@dataclass(slots=True)
class ExportCounts:
    """What an export wrote; `selected` counts rollouts by policy and round."""

    problems: int = 0
    rows: int = 0
    gold: int = 0
    selected: Counter[tuple[str, int]] = field(default_factory=Counter)
    left_out: int = 0
    """Problems without a row: nothing to learn from, or no pair."""


def export_dataset(
    groups: Iterable[Group], out: str | Path, format: Format, source: str | Path | None = None
) -> ExportCounts:
    """Write groups as a dataset of a format; OUT's ending chooses how: .jsonl, .parquet, or none.

    Without an ending OUT becomes a folder in Hugging Face's layout, with a card. `source` is where
    the groups come from: messages name it, and the card tells of the run it lies in. Raises
    InputError where OUT cannot be written, groups are not selected, or there is not one row.
    """
    out = Path(out)
    check_dataset_output(out, source)
    facts = read_run_facts(source) if source is not None and not out.suffix else None
    counts = ExportCounts()
    rows = _all_rows(groups, format, counts, f"{source}: " if source is not None else "")
    if out.suffix == ".jsonl":
        with replacing(out) as file:
            for row in rows:
                file.write(json.dumps(row).encode("ascii") + b"\n")
    elif out.suffix == ".parquet":
        with replacing(out) as file:
            _write_tables(file, _tables(rows, SCHEMAS[format]), SCHEMAS[format])
    else:
        with _replacing_folder(out) as folder:
            (folder / "data").mkdir()
            _write_shards(folder / "data", _tables(rows, SCHEMAS[format]), SCHEMAS[format])
            card = dataset_card(format, counts, facts)
            (folder / "README.md").write_text(card, encoding="utf-8")
    return counts


def check_dataset_output(out: str | Path, source: str | Path | None = None) -> None:
    """Raise InputError unless a dataset can be written at OUT without touching `source`."""
    out = Path(out)
    if out.suffix in SUFFIXES:
        check_output(out, source)
        return
    if out.suffix:
        endings = " or ".join(SUFFIXES)
        raise InputError(f"{out}: the name must end in {endings}, or have no ending (a folder)")
    if os.path.isdir(out):
        if os.path.ismount(out) or out.resolve() == Path.cwd() or any(out.iterdir()):
            raise InputError(f"{out}: is a folder that is in use or not empty")
    elif os.path.exists(out):
        raise InputError(f"{out}: is a file")
    check_place(out, source)


def rows_of_group(group: Group, format: Format) -> list[Row]:
    """A problem's rows: the gold solution first, then the selected rollouts, in their order."""
    prompt = group.problem.prompt
    if format == "preference":
        return [
            {"prompt": prompt, "chosen": chosen.completion, "rejected": rejected}
            for chosen, rejected in preference_pairs(group)
        ]
    gold = [] if group.problem.solution is None else [group.problem.solution]
    texts = gold + [rollout.completion for rollout in group.selected]
    if format == "query-response":
        return [{"query": prompt, "response": text} for text in texts]
    return [{"messages": [_message("user", prompt), _message("assistant", t)]} for t in texts]


def preference_pairs(group: Group) -> list[tuple[Rollout, str]]:
    """Each selected rollout with a rejected text of the same problem; [] where either is missing.

    Rejected is what the verifier judged bad and the token limit did not cut off. Texts of the same
    policy are preferred where it has any, and of those the one least used so far: a round-robin
    over distinct texts.
    """
    policies_of: dict[str, set[str]] = {}
    for rollout in group.rollouts:
        is_rejected = rollout.verdict in REJECTED_VERDICTS and rollout.finish_reason != "length"
        if is_rejected and not rollout.selected:
            policies_of.setdefault(rollout.completion, set()).add(rollout.policy)
    for rollout in group.selected:
        policies_of.pop(rollout.completion, None)
    if not policies_of:
        return []
    used: Counter[str] = Counter()
    pairs = []
    for chosen in group.selected:
        own = [text for text, policies in policies_of.items() if chosen.policy in policies]
        rejected = min(own or policies_of, key=lambda text: used[text])
        used[rejected] += 1
        pairs.append((chosen, rejected))
    return pairs


def _all_rows(
    groups: Iterable[Group], format: Format, counts: ExportCounts, place: str
) -> Iterator[Row]:
    """Counts as it goes; raises at the end where there was no row, so that nothing is written."""
    for group in groups:
        _check_selected(group, place)
        rows = rows_of_group(group, format)
        counts.problems += 1
        counts.rows += len(rows)
        counts.left_out += not rows
        if rows:
            counts.selected.update((rollout.policy, rollout.round) for rollout in group.selected)
            counts.gold += format != "preference" and group.problem.solution is not None
        yield from map(_without_surrogates, rows)
    if not counts.rows:
        what = "a selected and a rejected" if format == "preference" else "a gold or a selected"
        count = counts.problems
        raise InputError(f"{place}nothing to export: no problem of {count} has {what} solution")


def _check_selected(group: Group, place: str) -> None:
    for index, rollout in enumerate(group.rollouts):
        if rollout.selected is None:
            name = f"problem {group.problem.id!r}: rollouts[{index}].selected"
            raise InputError(f"{place}{name}: not filled; run `rft-ray select` first")


def _message(role: str, content: str) -> Row:
    return {"role": role, "content": content}


def _without_surrogates(value: Any) -> Any:
    """Lone surrogates stop other readers of JSON as well, so no format has them."""
    if isinstance(value, dict):
        return {key: _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return replace_surrogates(value)


def _tables(rows: Iterable[Row], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows in pieces, each a row group of bounded size."""
    piece: list[Row] = []
    chars = 0
    for row in rows:
        piece.append(row)
        chars += len(str(row))
        if len(piece) == ROW_GROUP_ROWS or chars > ROW_GROUP_CHARS:
            yield pa.Table.from_pylist(piece, schema)
            piece, chars = [], 0
    if piece:
        yield pa.Table.from_pylist(piece, schema)


def _write_tables(file: BinaryIO, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def _write_shards(folder: Path, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    """Files of about SHARD_BYTES, named as Hugging Face names them once their number is known."""
    shards: list[Path] = []
    for first in tables:
        shards.append(folder / f"{len(shards)}.partial")
        with shards[-1].open("wb") as file:
            _write_tables(file, _until_full(file, first, tables), schema)
            file.flush()
            os.fsync(file.fileno())
    for index, shard in enumerate(shards):
        shard.rename(folder / f"train-{index:05d}-of-{len(shards):05d}.parquet")


def _until_full(file: BinaryIO, first: pa.Table, others: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    while file.tell() < SHARD_BYTES and (table := next(others, None)) is not None:
        yield table


@contextmanager
def _replacing_folder(path: Path) -> Iterator[Path]:
    """A folder that takes the name `path` when the block ends, and is gone when it raises."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
