"""Problems out of Parquet files and Hugging Face data sets: named columns, row by row."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rft_ray.config import ProblemSetConfig
from rft_ray.errors import InputError
from rft_ray.problems import load_problems
from rft_ray.types import Problem

ROWS = [{"id": i, "prompt": f"p{i}", "answer": i / 2, "solution": None} for i in range(600)]


def load(form: str, path: Path | str, **settings: object) -> list[Problem]:
    return load_problems(ProblemSetConfig(format=form, path=str(path), **settings))


def refusal(form: str, path: Path | str, **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        load(form, path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, with its cache in a temporary folder and the hub out of reach."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return library


def test_parquet_columns_are_read_by_name(tmp_path: Path) -> None:
    file = write_parquet(
        tmp_path / "set.parquet",
        {
            "n": pa.array([7, None], pa.int32()),
            "q": pa.array(["a", "b"], pa.large_string()),
            "target": pa.array([0.1, 18.0], pa.float32()),
            "why": ["s", None],
            "prompt": [[1], [2]],
        },
    )
    names = {"id": "n", "prompt": "q", "answer": "target", "solution": "why"}
    renamed = {f"{ours}_column": theirs for ours, theirs in names.items()}
    expected = [Problem("7", "a", "0.1", "set", "s"), Problem("2", "b", "18", "set")]
    assert load("parquet", file, **renamed) == expected


def test_parquet_files_of_a_folder_follow_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    for name in ("b", "a"):
        write_parquet(folder / f"{name}.parquet", {"prompt": [name] * 300, "answer": [1] * 300})
    problems = load("parquet", folder)
    assert [problem.id for problem in problems] == [str(number) for number in range(1, 601)]
    assert [problems[299].prompt, problems[300].prompt, problems[0].source] == ["a", "b", "many"]
    assert len(load("parquet", folder, count=301)) == 301


def test_bad_parquet_rows_are_named_or_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken_text = pa.array([b"a", b"\xff", b"c", b"d"]).cast(pa.binary()).view(pa.string())
    folder = tmp_path / "many"
    write_parquet(folder / "a.parquet", {"prompt": ["q"], "answer": ["0"]})
    columns = {"prompt": broken_text, "answer": pa.array(["1", "2", None, "4"])}
    file = write_parquet(folder / "b.parquet", columns)
    assert refusal("parquet", folder) == f"{file}: row 2: prompt: not UTF-8 text"
    with caplog.at_level(logging.WARNING):
        problems = load("parquet", folder, skip_bad=True)
    assert [problem.id for problem in problems] == ["1", "2", "5"]
    assert f"{folder}: skipped 2 bad records, the first: {file}: row 2: " in caplog.text


def test_what_is_no_parquet_of_problems_is_refused(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "set.parquet", {"prompt": ["q"], "target": ["1"]})
    assert refusal("parquet", file) == f"{file}: no column 'answer'; there are: prompt, target"
    empty = write_parquet(tmp_path / "empty.parquet", {"prompt": [], "answer": []})
    assert refusal("parquet", empty) == f"{empty}: no problems"
    file.write_bytes(file.read_bytes()[:-9])
    assert refusal("parquet", file).startswith(f"{file}: cannot read as Parquet: ")
    assert refusal("parquet", tmp_path / "no.parquet").endswith("no such file or folder")
    (tmp_path / "folder").mkdir()
    assert "no .parquet files" in refusal("parquet", tmp_path / "folder")


def test_a_saved_data_set_is_loaded(tmp_path: Path, datasets: Any) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "rows")
    problems = load("huggingface", tmp_path / "rows")
    assert (len(problems), problems[-1]) == (600, Problem("599", "p599", "299.5", "rows"))
    splits = datasets.DatasetDict({"train": rows, "test": rows.select(range(2))})
    splits.save_to_disk(tmp_path / "splits")
    assert len(load("huggingface", tmp_path / "splits", split="test")) == 2
    assert refusal("huggingface", tmp_path / "splits", split="dev") == (
        f"{tmp_path}/splits: no split 'dev'; there are: train, test"
    )
    assert "saved data set has none" in refusal("huggingface", tmp_path / "rows", subset="main")


def test_a_saved_split_is_not_taken_for_another(tmp_path: Path, datasets: Any) -> None:
    datasets.Dataset.from_list(ROWS, split="test").save_to_disk(tmp_path / "test")
    assert "no split 'train'; there are: test" in refusal("huggingface", tmp_path / "test")
    assert len(load("huggingface", tmp_path / "test", split="test")) == 600


def write_data_files(folder: Path) -> Path:
    folder.mkdir()
    lines = [
        json.dumps({"prompt": f"p{i}", "answer": answer}) for i, answer in enumerate((1, None, 3))
    ]
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder


def test_a_folder_of_data_files_is_loaded(tmp_path: Path, datasets: Any) -> None:
    folder = write_data_files(tmp_path / "files")
    assert refusal("huggingface", folder) == (
        f"{folder}: row 2: answer: expected text, found nothing"
    )
    problems = load("huggingface", folder, skip_bad=True)
    assert problems == [Problem("1", "p0", "1", "files"), Problem("3", "p2", "3", "files")]
    assert refusal("huggingface", folder, answer_column="target") == (
        f"{folder}: no column 'target'; there are: prompt, answer"
    )


def test_what_the_library_refuses_becomes_one_line(tmp_path: Path, datasets: Any) -> None:
    folder = write_data_files(tmp_path / "files")
    assert 'Unknown split "dev"' in refusal("huggingface", folder, split="dev")
    assert "'main' not found" in refusal("huggingface", folder, subset="main")
    card = "---\nconfigs:\n{}---\n".format(
        "".join(f"- config_name: {name}\n  data_files: train.jsonl\n" for name in ("one", "two"))
    )
    (folder / "README.md").write_text(card)
    assert "['one', 'two']" in refusal("huggingface", folder)
    (folder / "README.md").unlink()
    (folder / "train.jsonl").write_text('{"prompt":')
    assert f"{folder}: cannot load: An error occurred" in refusal("huggingface", folder)
    for path in (tmp_path / "no", "nobody/nothing"):
        assert refusal("huggingface", path).startswith(f"{path}: cannot load: Couldn't ")
