"""Problem sets are read in order, and malformed lines are named with file, line and field."""

import json
import logging
from pathlib import Path

import pytest

from rft_ray.config import ProblemSetConfig
from rft_ray.errors import InputError
from rft_ray.problems import load_problems
from rft_ray.types import Problem

GSM8K = Path(__file__).parents[2] / "shared/data/gsm8k"


def write_lines(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def gsm8k(path: str, **settings: object) -> list[Problem]:
    return load_problems(ProblemSetConfig(format="gsm8k", path=path, **settings))


def columns(path: str, **settings: object) -> list[Problem]:
    return load_problems(ProblemSetConfig(format="jsonl", path=path, **settings))


def test_gsm8k_lines_become_problems(tmp_path: Path) -> None:
    solution = "1 + 1 = <<1+1=2>>2\n#### 10,800 "
    path = write_lines(tmp_path / "train.jsonl", {"question": "How many?", "answer": solution})
    expected = Problem("gsm8k-train-0", "How many?", "10800", "gsm8k/train", solution)
    assert gsm8k(path) == [expected]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "q"}, "answer: missing"),
        ({"answer": "#### 1"}, "question: missing"),
        ({"question": 1, "answer": "#### 1"}, "question: expected text, found the number 1"),
        ({"question": " ", "answer": "#### 1"}, "question: expected text, found the text ' '"),
        ({"question": "q", "answer": "1"}, "answer: has no ####"),
        ({"question": "q", "answer": "#### x"}, "answer: not a number after ####: 'x'"),
        ([], "expected an object, found a list"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, record: object, message: str) -> None:
    good = {"question": "q", "answer": "#### 1"}
    path = write_lines(tmp_path / "train.jsonl", good, record)
    with pytest.raises(InputError) as caught:
        gsm8k(path)
    assert str(caught.value) == f"{path}:2: {message}"


def test_malformed_lines_are_skipped_and_counted_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(3)]
    path = write_lines(tmp_path / "t.jsonl", {}, good[0], 7, *good[1:])
    with caplog.at_level(logging.WARNING):
        problems = gsm8k(path, skip_bad=True, count=2)
    assert [problem.answer for problem in problems] == ["0", "1"]
    assert f"{path}: skipped 2 bad records, the first: {path}:1: question: missing" in caplog.text


def test_count_takes_the_first_and_demands_them(tmp_path: Path) -> None:
    lines = [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(3)]
    path = write_lines(tmp_path / "t.jsonl", *lines)
    assert [problem.answer for problem in gsm8k(path, count=2)] == ["0", "1"]
    with pytest.raises(InputError, match="count is 4, found 3 problems"):
        gsm8k(path, count=4)


def test_columns_are_read_by_name(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "set.jsonl",
        {"id": "a", "prompt": "p", "answer": "1", "solution": "s"},
        {"id": 7, "prompt": "p", "answer": 18},
        {"prompt": "p", "answer": 2.5, "solution": None},
    )
    assert columns(path) == [
        Problem("a", "p", "1", "set", "s"),
        Problem("7", "p", "18", "set"),
        Problem("3", "p", "2.5", "set"),
    ]
    path = write_lines(
        tmp_path / "other.jsonl", {"n": "a", "query": "p", "target": "1", "why": "s"}
    )
    names = {"id": "n", "prompt": "query", "answer": "target", "solution": "why"}
    renamed = {f"{ours}_column": theirs for ours, theirs in names.items()}
    assert columns(path, **renamed) == [Problem("a", "p", "1", "other", "s")]
    with pytest.raises(InputError, match="1: prompt: missing"):
        columns(path)


@pytest.mark.parametrize("answer", [True, None, [1], "", float("inf")])
def test_an_answer_is_text_or_a_number(tmp_path: Path, answer: object) -> None:
    line = json.dumps({"prompt": "p", "answer": answer}).replace("Infinity", "1e999")
    path = tmp_path / "set.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match="1: answer: expected text"):
        columns(str(path))


def test_one_id_on_two_lines_names_both(tmp_path: Path) -> None:
    same = {"id": "a", "prompt": "p", "answer": "1"}
    path = write_lines(tmp_path / "set.jsonl", same, same)
    with pytest.raises(InputError, match=r"set.jsonl:2: the id 'a' is also at .*set.jsonl:1"):
        columns(path)


def test_missing_and_empty_files_give_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read: No such file"):
        gsm8k(str(tmp_path / "no.jsonl"))
    with pytest.raises(InputError, match="cannot read: Is a directory"):
        gsm8k(str(tmp_path))
    with pytest.raises(InputError, match="no problems"):
        gsm8k(write_lines(tmp_path / "t.jsonl"))


def test_word_problems_come_from_the_generator() -> None:
    config = ProblemSetConfig(format="word_problems", count=5, seed=1, split="heldout")
    problems = load_problems(config)
    assert len(problems) == 5
    assert problems == load_problems(config)


@pytest.mark.skipif(not GSM8K.exists(), reason="shared data is not here")
def test_the_published_files_are_read_whole() -> None:
    assert len(gsm8k(str(GSM8K / "train.jsonl"))) == 7473
    test = gsm8k(str(GSM8K / "test.jsonl"))
    assert (test[0].id, test[-1].id, test[0].answer) == ("gsm8k-test-0", "gsm8k-test-1318", "18")
