"""Problem sets are read in order, and malformed lines are named with file, line and field."""

import json
import logging
from pathlib import Path

import pytest

from rft_ray.config import ProblemSetConfig
from rft_ray.errors import InputError
from rft_ray.problem_formats import find_last_box
from rft_ray.problems import load_problems
from rft_ray.types import Problem

DATA = Path(__file__).parents[2] / "shared/data"
GSM8K = DATA / "gsm8k"


def write_lines(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def gsm8k(path: str, **settings: object) -> list[Problem]:
    return load_problems(ProblemSetConfig(format="gsm8k", path=path, **settings))


def columns(path: str, **settings: object) -> list[Problem]:
    return load_problems(ProblemSetConfig(format="jsonl", path=path, **settings))


def load(form: str, path: Path | str, **settings: object) -> list[Problem]:
    return load_problems(ProblemSetConfig(format=form, path=str(path), **settings))


def refusal(form: str, path: Path | str, **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        load(form, path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


def test_screl_takes_the_first_line_of_each_query(tmp_path: Path) -> None:
    rows = [("a", "gold #### 1,000"), ("a", "sample, no mark"), ("b", "#### 2"), ("a", "#### 3")]
    lines = [{"query": query, "response": response} for query, response in rows]
    path = write_lines(tmp_path / "rft.jsonl", *lines)
    assert load("gsm8k_screl", path) == [
        Problem("gsm8k-rft-0", "a", "1000", "gsm8k/rft", "gold #### 1,000"),
        Problem("gsm8k-rft-2", "b", "2", "gsm8k/rft", "#### 2"),
    ]
    assert len(load("gsm8k_screl", path, count=2)) == 2


def test_screl_never_takes_a_sample_for_a_bad_gold_line(tmp_path: Path) -> None:
    rows = [("a", "gold"), ("a", "#### 1"), (7, "#### 1"), ("b", "#### 2")]
    lines = [{"query": query, "response": response} for query, response in rows]
    path = write_lines(tmp_path / "rft.jsonl", *lines)
    assert refusal("gsm8k_screl", path) == f"{path}:1: response: has no ####"
    assert [problem.id for problem in load("gsm8k_screl", path, skip_bad=True)] == ["gsm8k-rft-3"]


def test_math_lines_take_the_answer_or_the_last_box(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "m.jsonl",
        {"problem": "p", "solution": "s", "answer": "x", "unique_id": "a/1", "subject": "Algebra"},
        {"problem": "q", "solution": r"$\boxed{1}$ or $\boxed{\frac{1}{2}}$", "level": 3},
    )
    assert load("math", path) == [
        Problem("a/1", "p", "x", "math/m/Algebra", "s"),
        Problem("math-m-1", "q", r"\frac{1}{2}", "math/m", r"$\boxed{1}$ or $\boxed{\frac{1}{2}}$"),
    ]
    path = write_lines(tmp_path / "bad.jsonl", {"problem": "p", "solution": "s"})
    assert refusal("math", path).startswith(f"{path}:1: solution: has no \\boxed")
    assert "every record is bad: " in refusal("math", path, skip_bad=True)


def test_a_math_folder_is_read_by_subject_then_number(tmp_path: Path) -> None:
    for name in ("train/geometry/1", "train/algebra/10", "train/algebra/9", "train/algebra/._9"):
        file = tmp_path / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"problem": name, "solution": r"$\boxed 5$"}, indent=1))
    problems = load("math", tmp_path)
    names = ["train/algebra/9.json", "train/algebra/10.json", "train/geometry/1.json"]
    assert [problem.id for problem in problems] == names
    assert {problem.answer for problem in problems} == {"5"}
    assert [problem.id for problem in load("math", tmp_path / "train/algebra")] == [
        "9.json",
        "10.json",
    ]
    (tmp_path / "train/algebra/9.json").write_text('{"problem": "p",\n "solution": }')
    where = f"{tmp_path}/train/algebra/9.json"
    assert refusal("math", tmp_path) == (
        f"{where}: not valid JSON: Expecting value (line 2, column 14)"
    )
    assert len(load("math", tmp_path, skip_bad=True)) == 2


SVAMP_RECORD = {"ID": "c-1", "Body": "I had 3 ", "Question": "How many?", "Answer": 145.0}


def test_svamp_bodies_get_a_full_stop_where_they_have_none(tmp_path: Path) -> None:
    path = tmp_path / "S.json"
    second = SVAMP_RECORD | {"ID": 2, "Body": "I had 3.", "Answer": 2.5, "Equation": "( 1 + 1.5 )"}
    path.write_text(json.dumps([SVAMP_RECORD, second], indent=1))
    assert load("svamp", path) == [
        Problem("c-1", "I had 3. How many?", "145", "svamp/S"),
        Problem("2", "I had 3. How many?", "2.5", "svamp/S"),
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (7, "expected an object, found the number 7"),
        ({**SVAMP_RECORD, "Answer": "many"}, "Answer: not a number: 'many'"),
        ({**SVAMP_RECORD, "Answer": True}, "Answer: expected text, found the boolean True"),
        ({"ID": 1, "Body": "b", "Question": "q"}, "Answer: missing"),
        ({**SVAMP_RECORD, "Body": " "}, "Body: expected text, found the text ' '"),
        (SVAMP_RECORD, "the id 'c-1' is also at"),
    ],
)
def test_bad_svamp_records_are_named(tmp_path: Path, record: object, message: str) -> None:
    path = tmp_path / "SVAMP.json"
    path.write_text(json.dumps([SVAMP_RECORD, record]))
    assert refusal("svamp", path).startswith(f"{path}: record 2: {message}")
    assert len(load("svamp", path, skip_bad=True)) == 1


def test_an_svamp_file_is_one_list(tmp_path: Path) -> None:
    path = tmp_path / "SVAMP.json"
    path.write_text("{}")
    assert refusal("svamp", path) == f"{path}: expected a list, found an object"
    path.write_text("[]")
    assert refusal("svamp", path) == f"{path}: no problems"
    assert (
        refusal("svamp", tmp_path / "no")
        == f"{tmp_path}/no: cannot read: No such file or directory"
    )


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


@pytest.mark.skipif(not DATA.exists(), reason="shared data is not here")
def test_published_math_and_svamp_are_read_whole() -> None:
    problems = load("math", DATA / "math/math500.jsonl")
    assert len(problems) == 500
    assert [find_last_box(str(problem.solution)) for problem in problems] == [
        problem.answer for problem in problems
    ]
    problems = load("svamp", DATA / "svamp/SVAMP.json")
    assert (len(problems), problems[2].id, problems[2].answer) == (1000, "chal-3", "17")
