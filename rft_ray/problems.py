"""Problem sets: published files, named columns of a file or data set, or generated word problems.

A problem set is small beside its rollouts, so it is a list; what it is read from is streamed. Here
are the files, the order, what is skipped and what is refused; `problem_formats.py` says how one
record becomes a problem. Left out: splitting (the sets of a study are separate files, splits of a
data set, or the generator's disjoint splits).
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rft_ray import problem_formats
from rft_ray.config import ProblemSetConfig
from rft_ray.errors import InputError
from rft_ray.record_checks import describe, parse_json
from rft_ray.records import parquet_files, read_lines
from rft_ray.types import Problem
from rft_ray.word_problems import generate_word_problems

logger = logging.getLogger(__name__)

BATCH_ROWS = 256
LONGEST_REASON = 400  # characters of a library's error


class Record(NamedTuple):
    """A problem to be: how errors call it, the id and source it gets by default, and its data."""

    place: str
    default_id: str
    source: str
    read: Callable[[], Any]


def load_problems(config: ProblemSetConfig) -> list[Problem]:
    """The problems of a set, in the order of its file.

    Raises InputError naming file, line (row, record) and field of the first malformed record (with
    `skip_bad` it is skipped, counted and logged), a second record with the same id, or fewer
    problems than `count`; also for what cannot be read at all, or lacks a column.
    """
    if config.format == "word_problems":
        assert config.count is not None  # ProblemSetConfig demands it
        return generate_word_problems(config.count, seed=config.seed, split=config.split)
    problems = _read_problems(config)
    if not problems:
        raise InputError(f"{config.path}: no problems")
    if config.count is not None and len(problems) < config.count:
        raise InputError(f"{config.path}: count is {config.count}, found {len(problems)} problems")
    return problems


def _read_problems(config: ProblemSetConfig) -> list[Problem]:
    problems: list[Problem] = []
    skipped: list[InputError] = []
    place_of: dict[str, str] = {}
    queries: set[str] = set()
    for record in _open_records(config):
        if len(problems) == config.count:
            break
        try:
            problem = _parse_record(record, config, queries)
            if problem is None:
                continue
            first = place_of.setdefault(problem.id, record.place)
            if first is not record.place:
                raise InputError(f"{record.place}: the id {problem.id!r} is also at {first}")
        except InputError as error:
            if not config.skip_bad:
                raise
            skipped.append(error)
            continue
        problems.append(problem)
    if skipped:
        _report_skipped(config, skipped, len(problems))
    return problems


def _report_skipped(config: ProblemSetConfig, skipped: list[InputError], kept: int) -> None:
    if not kept:
        raise InputError(f"{config.path}: every record is bad: {skipped[0]}")
    logger.warning(
        "%s: skipped %d bad records, the first: %s", config.path, len(skipped), skipped[0]
    )


def _parse_record(record: Record, config: ProblemSetConfig, queries: set[str]) -> Problem | None:
    """The problem of a record; None for a sample of a problem that was there before."""
    try:
        raw = record.read()
        if not isinstance(raw, dict):
            raise InputError(f"expected an object, found {describe(raw)}")
        if config.format == "gsm8k_screl" and _is_repeated(raw.get("query"), queries):
            return None
        return _parser(config)(raw, record.default_id, record.source)
    except InputError as error:
        raise InputError(f"{record.place}: {error}") from None


def _is_repeated(query: Any, queries: set[str]) -> bool:
    """Files of the RFT kind repeat a query: its gold line first (bad or not), then samples."""
    if not isinstance(query, str):
        return False
    is_repeated = query in queries
    queries.add(query)
    return is_repeated


def _parser(config: ProblemSetConfig) -> Callable[[dict[str, Any], str, str], Problem]:
    of_published_files = {
        "gsm8k": problem_formats.parse_gsm8k,
        "gsm8k_screl": problem_formats.parse_gsm8k_screl,
        "math": problem_formats.parse_math,
        "svamp": problem_formats.parse_svamp,
    }
    of_columns = partial(problem_formats.parse_columns, config=config)
    return of_published_files.get(config.format, of_columns)


def _open_records(config: ProblemSetConfig) -> Iterator[Record]:
    assert config.path is not None  # ProblemSetConfig demands it
    path = Path(config.path)
    match config.format:
        case "svamp":
            return _read_array(path)
        case "parquet":
            return _read_rows(_open_parquet(path, config), path.stem)
        case "huggingface":
            return _read_rows(
                _open_dataset(config), path.name if os.path.exists(path) else config.path
            )
        case "math" if os.path.isdir(path):
            return _read_tree(path)
    return _read_json_lines(path, config.format)


def _read_json_lines(path: Path, form: str) -> Iterator[Record]:
    """Ids of published files count from 0, as in the published lists of indices; others from 1."""
    family = form.removesuffix("_screl")
    for place, line in read_lines(path):
        number = int(place.rpartition(":")[2])
        if form == "jsonl":
            default_id, source = str(number), path.stem
        else:
            default_id, source = f"{family}-{path.stem}-{number - 1}", f"{family}/{path.stem}"
        yield Record(place, default_id, source, partial(parse_json, line))


def _read_tree(folder: Path) -> Iterator[Record]:
    """Hendrycks MATH as published: a file per problem, by subject and then by number."""

    def order(file: Path) -> tuple[Any, ...]:
        number = int(file.stem) if file.stem.isdecimal() else float("inf")
        return file.parent.parts, number, file.name

    names = (file.relative_to(folder) for file in folder.rglob("*.json"))
    for name in sorted((name for name in names if not name.name.startswith(".")), key=order):
        source = f"math/{name.parent.as_posix()}" if name.parent.parts else f"math/{folder.name}"
        file = folder / name
        yield Record(str(file), name.as_posix(), source, partial(_read_json_file, file))


def _read_array(path: Path) -> Iterator[Record]:
    try:
        items = _read_json_file(path)
        if not isinstance(items, list):
            raise InputError(f"expected a list, found {describe(items)}")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    source = f"svamp/{path.stem}"
    for index in range(len(items)):
        place = f"{path}: record {index + 1}"
        yield Record(place, "", source, partial(items.__getitem__, index))


def _read_json_file(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}") from None
    return parse_json(content.removeprefix(b"\xef\xbb\xbf"))


def _read_rows(tables: Iterable[tuple[str, Any]], source: str) -> Iterator[Record]:
    """The rows of (place, Arrow batch or table); places count within a file, ids over all."""
    rows_of: Counter[str] = Counter()
    rows = ((place, table, index) for place, table in tables for index in range(table.num_rows))
    for number, (place, table, index) in enumerate(rows, start=1):
        rows_of[place] += 1
        read = partial(problem_formats.read_row, table, index)
        yield Record(f"{place}: row {rows_of[place]}", str(number), source, read)


def _open_parquet(path: Path, config: ProblemSetConfig) -> Iterator[tuple[str, pa.RecordBatch]]:
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file or folder")
    for file in parquet_files(path):
        try:
            # Without pre_buffer a row group streams through the buffer, never read whole.
            parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            columns = _choose_columns(str(file), parquet.schema_arrow.names, config)
            for batch in parquet.iter_batches(BATCH_ROWS, columns=columns):
                yield str(file), batch
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{file}: cannot read as Parquet: {_in_one_line(error)}") from None


def _open_dataset(config: ProblemSetConfig) -> Iterator[tuple[str, pa.Table]]:
    """A data set of the hub, of a folder of data files, or of a folder that `datasets` saved."""
    import httpx2
    from datasets.exceptions import DatasetsError

    try:
        dataset = _load_dataset(config)
        columns = _choose_columns(str(config.path), dataset.column_names, config)
        rows = dataset.select_columns(columns).with_format("arrow")
        for table in rows.iter(BATCH_ROWS):
            yield str(config.path), table
    except (OSError, ValueError, RuntimeError, DatasetsError, httpx2.HTTPError) as error:
        raise InputError(f"{config.path}: cannot load: {_in_one_line(error)}") from None


def _load_dataset(config: ProblemSetConfig) -> Any:
    import datasets

    folder = Path(str(config.path))
    if not any(os.path.isfile(folder / name) for name in ("state.json", "dataset_dict.json")):
        return datasets.load_dataset(config.path, config.subset, split=config.split)
    if config.subset is not None:
        raise InputError(f"{folder}: subset: a saved data set has none")
    saved = datasets.load_from_disk(folder)
    splits = saved if isinstance(saved, dict) else {str(saved.split or config.split): saved}
    if config.split not in splits:
        raise InputError(f"{folder}: no split {config.split!r}; there are: {', '.join(splits)}")
    return splits[config.split]


def _choose_columns(place: str, names: list[str], config: ProblemSetConfig) -> list[str]:
    """The named columns that are there; InputError where prompt or answer is not."""
    for column in (config.prompt_column, config.answer_column):
        if column not in names:
            raise InputError(f"{place}: no column {column!r}; there are: {', '.join(names)}")
    wanted = (config.id_column, config.prompt_column, config.answer_column, config.solution_column)
    return [name for name in dict.fromkeys(wanted) if name in names]


def _in_one_line(error: BaseException) -> str:
    """The message of a library's error; where it only says that something failed, the cause too."""
    message = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
    return " ".join(message.split())[:LONGEST_REASON]
