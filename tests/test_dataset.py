"""Exports hold the gold solution and the selected rollouts in order, whole or not at all."""

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rft_ray import dataset
from rft_ray.dataset import FORMATS, check_dataset_output, export_dataset, preference_pairs
from rft_ray.errors import InputError
from rft_ray.records import write_groups
from rft_ray.types import VERDICTS, Group, Problem, Rollout


def rollout(text: str, verdict: str = "correct", policy: str = "a", **fields: object) -> Rollout:
    return Rollout(policy, text, verdict=verdict, **{"selected": False, **fields})


SOLVED = Group(
    Problem("p", "2+2?", "4", solution="gold #### 4"),
    [
        rollout("kept 1", selected=True),
        rollout("dropped"),
        rollout("bad a", "wrong"),
        rollout("bad b", "unparsable", policy="b"),
        rollout("kept 2", policy="b", selected=True, round=1),
        rollout("bad a", "wrong"),
        rollout("cut", "wrong", finish_reason="length"),
        rollout("late", "timeout"),
        rollout("kept 3 \ud800\u2028", selected=True),
        rollout("bad a 2", "miscalculated"),
    ],
)
UNSOLVED = Group(Problem("q", "3+3?", "6"), [rollout("bad", "wrong")])
GROUPS = [SOLVED, UNSOLVED]


def read_back(path: Path) -> list[dict[str, object]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    files = [path] if path.suffix else sorted((path / "data").iterdir())
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out"])
def test_gold_first_then_the_selected_in_order(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    counts = export_dataset(iter(GROUPS), out, "query-response")
    expected = ["gold #### 4", "kept 1", "kept 2", "kept 3 \ufffd\u2028"]
    assert read_back(out) == [{"query": "2+2?", "response": text} for text in expected]
    assert (counts.problems, counts.rows, counts.gold, counts.left_out) == (2, 4, 1, 1)
    assert counts.selected == {("a", 0): 2, ("b", 1): 1}
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out"])
def test_messages_hold_the_same_texts(tmp_path: Path, name: str) -> None:
    export_dataset(GROUPS, tmp_path / name, "messages")
    rows = read_back(tmp_path / name)
    assert rows[0] == {
        "messages": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "gold #### 4"},
        ]
    }
    assert len(rows) == 4


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out"])
def test_pairs_go_round_the_rejected_texts_of_the_same_policy(tmp_path: Path, name: str) -> None:
    counts = export_dataset(GROUPS, tmp_path / name, "preference")
    pairs = [("kept 1", "bad a"), ("kept 2", "bad b"), ("kept 3 \ufffd\u2028", "bad a 2")]
    assert read_back(tmp_path / name) == [
        {"prompt": "2+2?", "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs
    ]
    assert (counts.problems, counts.left_out, counts.gold) == (2, 1, 0)


@given(
    st.lists(
        st.builds(
            Rollout,
            policy=st.sampled_from("ab"),
            completion=st.sampled_from("uvwxyz"),
            verdict=st.sampled_from(VERDICTS),
            finish_reason=st.sampled_from(["stop", "length"]),
            selected=st.booleans(),
        )
    )
)
def test_pairs_use_only_rejected_texts_and_use_them_evenly(rollouts: list[Rollout]) -> None:
    pairs = preference_pairs(Group(Problem("p", "", ""), rollouts))
    chosen_texts = {r.completion for r in rollouts if r.selected}
    rejected = {
        r.completion
        for r in rollouts
        if r.verdict in dataset.REJECTED_VERDICTS and r.finish_reason == "stop" and not r.selected
    } - chosen_texts
    assert [chosen for chosen, _ in pairs] == ([r for r in rollouts if r.selected and rejected])
    assert {text for _, text in pairs} <= rejected
    if len({r.policy for r in rollouts}) == 1 and pairs:
        uses = [[t for _, t in pairs].count(text) for text in rejected]
        assert max(uses) - min(uses) <= 1


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out"])
def test_the_same_groups_give_the_same_bytes(tmp_path: Path, name: str, format: str) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        export_dataset(GROUPS, tmp_path / folder / name, format)
    first, second = (contents(tmp_path / folder) for folder in ("first", "second"))
    assert first == second


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out"])
def test_nothing_is_left_where_it_fails(tmp_path: Path, name: str) -> None:
    unselected = Group(Problem("r", "", ""), [rollout("x"), rollout("y", selected=None)])
    out = tmp_path / name
    message = r"s\.jsonl: problem 'r': rollouts\[1\]\.selected: not filled; run `rft-ray select`"
    with pytest.raises(InputError, match=message):
        export_dataset([SOLVED, unselected], out, "messages", "s.jsonl")
    with pytest.raises(InputError, match="nothing to export: no problem of 1 has a gold or"):
        export_dataset([UNSOLVED], out, "messages")
    with pytest.raises(InputError, match=r"nothing to export: .* a selected and a rejected"):
        export_dataset([UNSOLVED], out, "preference")

    def interrupted() -> Iterable[Group]:
        yield SOLVED
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_dataset(interrupted(), out, "messages")
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_groups(source / "a.parquet", GROUPS)
    (tmp_path / "file").write_text("")
    refusals = {
        tmp_path / "x.txt": "must end in .* or have no ending",
        tmp_path / "file": "is a file",
        source: "not empty",
        source / "inside": "would overwrite or add to the input",
        source / "b.jsonl": "would overwrite or add to the input",
        tmp_path / "no" / "x": "there is no folder",
        Path("/proc/x"): "cannot write there",
        Path("."): "in use or not empty",
    }
    for out, message in refusals.items():
        with pytest.raises(InputError, match=message):
            check_dataset_output(out, source)
    assert sorted(path.name for path in source.iterdir()) == ["a.parquet"]
    (tmp_path / "empty").mkdir()
    export_dataset(GROUPS, tmp_path / "empty", "messages")
    assert (tmp_path / "empty/README.md").is_file()
    with pytest.raises(InputError, match="not empty"):
        export_dataset(GROUPS, tmp_path / "empty", "messages")


def test_a_large_dataset_is_cut_into_numbered_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "SHARD_BYTES", 1)
    monkeypatch.setattr(dataset, "ROW_GROUP_ROWS", 2)
    groups = [Group(Problem(str(i), "q", "1", solution=str(i))) for i in range(5)]
    export_dataset(groups, tmp_path / "out", "query-response")
    names = sorted(path.name for path in (tmp_path / "out/data").iterdir())
    assert names == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    assert [row["response"] for row in read_back(tmp_path / "out")] == list("01234")


HOSTILE = "`|<b>x</b>\n---\n# Head\n[a](http://b)`"


def test_the_card_says_what_was_written_and_survives_hostile_names(tmp_path: Path) -> None:
    group = Group(Problem("p", "q", "1"), [rollout("t", policy=HOSTILE, selected=True)])
    export_dataset([group], tmp_path / "out", "messages", tmp_path / "groups.jsonl")
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["tags"] == ["rft", "rejection-sampling"] and "license" not in card
    (line,) = [line for line in body.splitlines() if "<b>" in line]
    assert line == "| `'\u00a6<b>x</b> --- # Head [a](http://b)'` | 0 | 1 |"
    assert "Format `messages`" in body and "Models" not in body
    assert [line for line in body.splitlines() if line.startswith("#")] == [
        "# Rejection-sampled solutions",
        "## Selected rollouts",
    ]


def write_run(path: Path) -> Path:
    """A run directory as far as an export looks at it; its selected folder."""
    selected = path / "round-000/selected"
    selected.mkdir(parents=True)
    write_groups(selected / "0.parquet", GROUPS)
    policy = {"name": "a", "model": "/home/me/tiny", "sampling": {"k": 4, "temperature": 0.0}}
    rounds = [{"temperature": 0.7}]
    config = {"policies": [policy, "odd"], "rounds": rounds, "selection": {"rule": "paper"}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "versions.json").write_text(json.dumps({"vllm": "1.2|3"}))
    return selected


def test_the_card_tells_of_the_run_that_the_groups_lie_in(tmp_path: Path) -> None:
    selected = write_run(tmp_path / "run")
    export_dataset(GROUPS, tmp_path / "out", "messages", selected)
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "| `a` | `tiny` | k `4`, temperature `0.0` |" in text
    assert "round 0: temperature `0.7`" in text and "Selection rule: `paper`" in text
    assert "| `vllm` | `1.2\u00a63` |" in text
    (tmp_path / "run/config.yaml").write_text("{")
    with pytest.raises(InputError, match=r"cannot read config\.yaml"):
        export_dataset(GROUPS, tmp_path / "again", "messages", selected)


@pytest.mark.parametrize("format", FORMATS)
def test_hugging_face_datasets_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    for name in ("folder", "file.parquet", "lines.jsonl"):
        export_dataset(GROUPS, tmp_path / name, format)
    cache = {"cache_dir": str(tmp_path / "cache"), "split": "train"}
    loaded = [
        datasets.load_dataset(str(tmp_path / "folder"), **cache),
        datasets.load_dataset("parquet", data_files=str(tmp_path / "file.parquet"), **cache),
        datasets.load_dataset("json", data_files=str(tmp_path / "lines.jsonl"), **cache),
    ]
    expected = read_back(tmp_path / "file.parquet")
    assert [each.to_list() for each in loaded] == [expected] * 3
