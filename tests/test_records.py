"""What is written is what is read, in both formats; what is wrong is named: file, line, field."""

import json
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_ray.errors import InputError
from rft_ray.records import (
    GROUP_SCHEMA,
    check_output,
    count_groups,
    group_to_row,
    read_groups,
    row_to_group,
    write_groups,
)
from rft_ray.types import VERDICTS, Group, Problem, Rollout

GSM8K = Path(__file__).parents[2] / "shared/data/gsm8k"
MINIMAL = {
    "problem": {"id": "p", "prompt": "2+2?", "answer": "4"},
    "rollouts": [{"policy": policy, "completion": "#### 4"} for policy in "aba"],
}

counts = st.integers(0, 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
rollouts = st.builds(
    Rollout,
    policy=st.text(min_size=1),
    completion=st.text(),
    policy_version=counts,
    round=counts,
    sample=counts,
    token_ids=st.none() | st.lists(counts, min_size=2, max_size=2),
    logprobs=st.none() | st.lists(floats, min_size=2, max_size=2),
    finish_reason=st.sampled_from([None, "stop", "length"]),
    verdict=st.sampled_from([None, *VERDICTS]),
    reward=st.none() | floats,
    selected=st.none() | st.booleans(),
)
problems = st.builds(
    Problem,
    id=st.text(min_size=1),
    prompt=st.text(),
    answer=st.text(),
    source=st.text(),
    solution=st.none() | st.text(),
)
groups = st.builds(Group, problems, st.lists(rollouts, max_size=3))


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def changed(path: str, value: object) -> dict:
    """The minimal record with one field changed, "rollouts.1.policy"; None deletes it."""
    record = json.loads(json.dumps(MINIMAL))
    *parents, last = path.split(".")
    node = record
    for part in parents:
        node = node[int(part) if isinstance(node, list) else part]
    node[int(last) if isinstance(node, list) else last] = value
    return record


@settings(max_examples=15, deadline=None)
@given(st.lists(groups, min_size=1, max_size=3, unique_by=lambda group: group.problem.id))
def test_every_group_survives_both_formats(
    tmp_path_factory: pytest.TempPathFactory, many: list[Group]
) -> None:
    folder = tmp_path_factory.mktemp("groups")
    for suffix in (".jsonl", ".parquet"):
        path = folder / f"groups{suffix}"
        assert write_groups(path, many) == len(many)
        assert list(read_groups(path)) == many
        assert count_groups(path) == len(many)
        assert list(folder.glob(".*")) == []


@settings(max_examples=40, deadline=None)
@given(groups)
def test_rows_are_the_inverse_of_groups(group: Group) -> None:
    row = group_to_row(group)
    assert row["problem_id"] == group.problem.id
    assert row_to_group(row) == group
    assert row_to_group(pa.Table.from_pylist([row], GROUP_SCHEMA).to_pylist()[0]) == group


def test_missing_fields_are_filled(tmp_path: Path) -> None:
    (group,) = read_groups(write_lines(tmp_path / "g.jsonl", MINIMAL))
    assert group.problem == Problem("p", "2+2?", "4", "", None)
    assert [(r.policy, r.sample) for r in group.rollouts] == [("a", 0), ("b", 0), ("a", 1)]
    assert group.rollouts[1] == Rollout("b", "#### 4")


def test_null_is_missing_and_unknown_fields_are_ignored(tmp_path: Path) -> None:
    record = changed("rollouts.0.round", None)
    record["problem"] |= {"source": None, "level": 3}
    (group,) = read_groups(write_lines(tmp_path / "g.jsonl", record))
    assert (group.rollouts[0].round, group.problem.source) == (0, "")


def test_jsonl_is_ascii_and_keeps_lone_surrogates_that_parquet_replaces(tmp_path: Path) -> None:
    group = Group(Problem("é", "\ud800", "\0"), [Rollout("p", "a\udfffb\u2028é")])
    write_groups(tmp_path / "g.jsonl", [group])
    assert (tmp_path / "g.jsonl").read_bytes().isascii()
    assert list(read_groups(tmp_path / "g.jsonl")) == [group]
    write_groups(tmp_path / "g.parquet", [group])
    (read,) = read_groups(tmp_path / "g.parquet")
    assert (read.problem.prompt, read.rollouts[0].completion) == ("\ufffd", "a\ufffdb\u2028é")


def test_the_parquet_schema_is_the_same_whatever_is_null(tmp_path: Path) -> None:
    write_groups(tmp_path / "g.parquet", [Group(Problem("p", "", ""))])
    schema = pq.read_schema(tmp_path / "g.parquet")
    assert schema.equals(GROUP_SCHEMA)
    assert schema.names[0] == "problem_id"
    assert {field.name for field in schema.field("rollouts").type.value_type} == set(
        Rollout.__dataclass_fields__
    )


def test_a_folder_of_parquet_files_is_read_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_groups(tmp_path / f"{name}.parquet", [Group(Problem(name, "", ""))])
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".d.parquet.1.tmp").touch()
    assert [group.problem.id for group in read_groups(tmp_path)] == ["a", "b", "c"]
    assert count_groups(tmp_path) == 3
    (tmp_path / "g.jsonl").write_bytes(b"1\n2")
    assert count_groups(tmp_path / "g.jsonl") == 2


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("problem", None, "problem: expected an object, found nothing"),
        ("problem.id", 7, "problem.id: expected a string that is not empty, found the number 7"),
        ("problem.id", "", "problem.id: expected a string that is not empty, found the text ''"),
        ("problem.answer", 18, "problem.answer: expected a string, found the number 18"),
        ("problem.answer", 10**30, "problem.answer: expected a string, found the number"),
        ("problem.prompt", None, "problem.prompt: missing (expected a string)"),
        ("problem.solution", ["x"], "problem.solution: expected a string, found a list"),
        ("rollouts", None, "rollouts: expected a list, found nothing"),
        ("rollouts", {}, "rollouts: expected a list, found an object"),
        ("rollouts.2", "x", "rollouts[2]: expected an object, found the text 'x'"),
        ("rollouts.1.policy", 7, "rollouts[1].policy: expected a string that is not empty"),
        ("rollouts.0.completion", None, "rollouts[0].completion: missing (expected a string)"),
        ("rollouts.0.round", 1.5, "rollouts[0].round: expected a whole number, found the number"),
        ("rollouts.0.round", True, "rollouts[0].round: expected a whole number, found the boolean"),
        ("rollouts.0.sample", -1, "rollouts[0].sample: expected a whole number"),
        ("rollouts.0.sample", 2**63, "rollouts[0].sample: expected a whole number"),
        ("rollouts.0.token_ids", [1, "2"], "token_ids: expected a list of whole numbers, found"),
        ("rollouts.0.logprobs", [None], "logprobs: expected a list of numbers, found nothing at"),
        ("rollouts.0.verdict", "right", "rollouts[0].verdict: expected correct | wrong | "),
        ("rollouts.0.finish_reason", "eos", "finish_reason: expected stop | length, found"),
        ("rollouts.0.reward", "1", "rollouts[0].reward: expected a number, found the text '1'"),
        ("rollouts.0.selected", 1, "rollouts[0].selected: expected true or false, found"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, path: str, value: object, message: str) -> None:
    file = write_lines(tmp_path / "g.jsonl", changed("problem.id", "first"), changed(path, value))
    with pytest.raises(InputError) as caught:
        list(read_groups(file))
    assert str(caught.value).startswith(f"{file}:2: ")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not valid JSON: Expecting property name"),
        (b"[]", "expected an object, found a list"),
        (b"\xff", "not UTF-8 text"),
        (b"[" * 100_000, "not valid JSON: nested too deeply"),
        (b'{"a":' * 100_000, "not valid JSON: nested too deeply"),
        (b'{"problem": NaN}', "not valid JSON: NaN is not a JSON number"),
        (b"9" * 10_000, "not valid JSON: Exceeds the limit"),
        (
            json.dumps(changed("rollouts.0.reward", 7)).replace("7", "1e999").encode(),
            "the number inf",
        ),
        (json.dumps(MINIMAL).replace("4", "4\x01").encode(), "Invalid control character"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "g.jsonl"
    path.write_bytes(b"\n" + line + b"\n")
    with pytest.raises(InputError) as caught:
        list(read_groups(path))
    assert str(caught.value).startswith(f"{path}:2: {message}") or message in str(caught.value)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_line_that_is_cut_is_said_to_be_wrong_where_it_is_cut(tmp_path: Path, end: bytes) -> None:
    line, path = json.dumps(MINIMAL).encode(), tmp_path / "g.jsonl"
    for length in range(2, len(line)):
        if not line[:length].endswith(b" "):
            path.write_bytes(line[:length] + end)
            with pytest.raises(InputError) as caught:
                list(read_groups(path))
            (column,) = re.findall(r"\(column ([0-9]+)\)$", str(caught.value))
            begun = "starting at" in str(caught.value)  # a string: its beginning is named
            assert int(column) <= length if begun else int(column) in (length, length + 1)


def test_logprobs_must_match_token_ids(tmp_path: Path) -> None:
    record = changed("rollouts.0.token_ids", [1, 2])
    record["rollouts"][0]["logprobs"] = [-0.5]
    with pytest.raises(InputError, match=r"rollouts\[0\].logprobs: 1 for 2 token_ids"):
        list(read_groups(write_lines(tmp_path / "g.jsonl", record)))


def test_two_records_of_one_problem_are_both_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "g.jsonl", MINIMAL, changed("problem.id", "q"), MINIMAL)
    with pytest.raises(InputError, match=r"g.jsonl:3: problem.id: 'p' is also at .*g.jsonl:1$"):
        list(read_groups(path))


def test_bad_records_are_skipped_and_counted_on_request(tmp_path: Path) -> None:
    bad = changed("problem.answer", 18)
    path = write_lines(tmp_path / "g.jsonl", bad, MINIMAL, MINIMAL, 7)
    reader = read_groups(path, skip_bad=True)
    assert [group.problem.id for group in reader] == ["p"]
    assert reader.skipped == 3
    assert reader.first_skipped.startswith(f"{path}:1: problem.answer")
    with pytest.raises(InputError, match=r"every record is bad: .*:1: problem.answer"):
        list(read_groups(write_lines(path, bad), skip_bad=True))


def test_parquet_errors_name_the_row(tmp_path: Path) -> None:
    path = tmp_path / "g.parquet"
    good, bad = changed("problem.id", "q"), changed("rollouts.1.verdict", "right")
    pq.write_table(pa.Table.from_pylist([good] * 20 + [bad]), path)
    with pytest.raises(InputError, match=r"g.parquet: row 2: problem.id: 'q' is also at .*row 1$"):
        list(read_groups(path))
    pq.write_table(pa.Table.from_pylist([bad]), path)
    with pytest.raises(InputError, match=r"g.parquet: row 1: rollouts\[1\].verdict: expected"):
        list(read_groups(path))


def test_parquet_of_other_writers_is_read(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([MINIMAL])
    pq.write_table(table.append_column("extra", [[1]]), tmp_path / "g.parquet")
    (group,) = read_groups(tmp_path / "g.parquet")
    assert [r.sample for r in group.rollouts] == [0, 0, 1]


def test_files_that_are_no_groups_files_give_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "text.parquet").write_text("text")
    (tmp_path / "g.csv").touch()
    (tmp_path / "folder").mkdir()
    write_groups(tmp_path / "none.parquet", [])
    pq.write_table(pa.table({"problem": ["x"]}), tmp_path / "columns.parquet")
    for name, message in [
        ("missing.jsonl", "no such file"),
        ("empty.jsonl", "no groups"),
        ("none.parquet", "no groups"),
        ("text.parquet", "not a readable Parquet file"),
        ("columns.parquet", "no column 'rollouts'"),
        ("g.csv", "not a .jsonl or .parquet file"),
        ("folder", "no .parquet files in this folder"),
        ("x" * 300, "no such file"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            list(read_groups(tmp_path / name))
        assert len(str(caught.value).splitlines()) == 1


def test_a_cut_parquet_file_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "g.parquet"
    write_groups(path, [Group(Problem(str(i), "x" * 100, "")) for i in range(1000)])
    whole = path.read_bytes()
    for cut in (whole[:-20], whole[: len(whole) // 2], whole[:100] + b"\xff" * 500 + whole[600:]):
        path.write_bytes(cut)
        with pytest.raises(InputError, match=r"g\.parquet"):
            list(read_groups(path))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_nothing_half_written_remains_when_writing_fails(tmp_path: Path, suffix: str) -> None:
    def failing() -> Iterator[Group]:
        yield Group(Problem("p", "", ""))
        raise ZeroDivisionError

    path = tmp_path / f"g{suffix}"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError):
        write_groups(path, failing())
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "g.jsonl", MINIMAL)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "link.jsonl").symlink_to(source)
    for out, message in [
        (tmp_path / "out.csv", "must end in .jsonl or .parquet"),
        (tmp_path / "no" / "out.jsonl", "there is no folder"),
        (tmp_path / "folder.jsonl", "is a folder"),
        (source, "would overwrite"),
        (tmp_path / "link.jsonl", "would overwrite"),
        (Path("/proc/out.jsonl"), "cannot write there"),
        (tmp_path / ("x" * 300 + ".jsonl"), "cannot write there"),
    ]:
        with pytest.raises(InputError, match=message):
            check_output(out, source)
    with pytest.raises(InputError, match="add to the input"):
        check_output(tmp_path / "out.parquet", source=tmp_path)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    def many(count: int) -> Iterator[Group]:
        for index in range(count):
            yield Group(Problem(str(index), "", ""), [Rollout("p", "x" * 20_000)])

    peaks = []
    for count in (300, 900):
        tracemalloc.start()
        pa.default_memory_pool().release_unused()
        write_groups(tmp_path / f"g{suffix}", many(count))
        assert sum(1 for _ in read_groups(tmp_path / f"g{suffix}")) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # what grows is one short string per problem, kept to find problems that come twice
    assert peaks[1] < peaks[0] + 1_000_000


@pytest.mark.skipif(not GSM8K.exists(), reason="shared data is not here")
def test_the_shipped_example_is_read() -> None:
    read = list(read_groups(GSM8K / "example_groups.jsonl"))
    assert len(read) == 1319
    assert all(len(group.rollouts) == 4 for group in read)
