"""What inspect shows follows from the groups, stays readable, and finds the right files."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_ray.errors import InputError
from rft_ray.inspection import (
    MAX_PROBLEMS,
    describe_problem,
    find_problem,
    problem_table,
)
from rft_ray.records import read_groups, write_groups
from rft_ray.types import Group, Problem, Rollout


def group_of(problem_id: str, num_accepted: int, **fields: object) -> Group:
    good = [
        Rollout("a", f"<<{i}+0={i}>>#### 1", sample=i, verdict="correct", selected=True)
        for i in range(num_accepted)
    ]
    bad = Rollout("b", "#### 2", verdict="wrong", selected=False)
    return Group(Problem(problem_id, "What is\n one?", "1", **fields), [*good, bad])


def test_the_table_begins_with_the_problems_that_have_fewest_accepted() -> None:
    groups = [group_of(f"p{i}", num_accepted=3 - i) for i in range(4)]
    header, *lines = problem_table(groups)
    assert header.split() == [
        "problem",
        "rollouts",
        "correct",
        "distinct",
        "paths",
        "selected",
        "prompt",
    ]
    assert [line.split() for line in lines[:4]] == [
        [f"p{i}", str(4 - i), *[str(3 - i)] * 3, "What", "is", "one?"] for i in (3, 2, 1, 0)
    ]
    assert lines[4:] == [
        "",
        "3 of 4 problems have an accepted rollout",
        "10 rollouts:",
        "         6  selected",
        "         4  wrong",
    ]


def test_a_long_table_is_cut_and_says_how_to_see_the_others() -> None:
    groups = (group_of(f"p{i:03d}", num_accepted=i % 2) for i in range(100))
    lines = list(problem_table(groups))
    shown = [line.split()[0] for line in lines[1 : MAX_PROBLEMS + 1]]
    assert shown == [f"p{i:03d}" for i in range(0, 80, 2)]
    assert lines[MAX_PROBLEMS + 1 : MAX_PROBLEMS + 3] == [
        "",
        "the 40 of 100 problems with the fewest accepted rollouts; any other: --problem ID",
    ]


def test_a_problem_is_shown_with_every_rollout_and_its_reason() -> None:
    group = group_of("p", 1, source="tests", solution="first\n#### 1")
    assert list(describe_problem(group)) == [
        "problem p",
        "source: tests",
        "prompt:",
        "    What is",
        "     one?",
        "answer: 1",
        "gold solution:",
        "    first",
        "    #### 1",
        "2 rollouts, 1 selected",
        "",
        "a, round 0, sample 0, correct: "
        "selected: stands for its path (1 of 1 accepted texts shares it)",
        "    <<0+0=0>>#### 1",
        "",
        "b, round 0, sample 0: wrong: final answer 2, expected 1",
        "    #### 2",
    ]


def test_long_texts_are_cut() -> None:
    group = Group(Problem("p", "", "1"), [Rollout("a", "x" * 2_100)])
    *_, text, note = describe_problem(group)
    assert text == "    " + "x" * 2_000
    assert note == "    \u2026 and 100 characters more"


@given(st.text(min_size=1), st.text(), st.text())
def test_no_text_can_drive_the_terminal(name: str, text: str, escape: str) -> None:
    hostile = f"{text}\x1b]0;{escape}\x07\u202e\x9b2J\r"
    rollout = Rollout(name, hostile, verdict="wrong", selected=False)
    group = Group(Problem(name + hostile, hostile, hostile, hostile, hostile), [rollout])
    for line in [*problem_table([group]), *describe_problem(group)]:
        assert not any(unicodedata.category(char) in ("Cc", "Cs") for char in line)
        assert "\u202e" not in line and len(line.splitlines()) <= 1


def test_an_unknown_problem_comes_with_the_nearest_ids() -> None:
    groups = [group_of(name, 0) for name in ("train-12", "train-13", "other")]
    assert find_problem(iter(groups), "other", "x") is groups[2]
    with pytest.raises(InputError, match=r"x: no problem 'train-1'; nearest: 'train-1\d', 'train"):
        find_problem(groups, "train-1", "x")
    with pytest.raises(InputError, match=r"no problem '\?'; there are: 'train-12', 'train-13'"):
        find_problem(groups, "?", "x")


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl"])
def test_groups_are_read_without_their_tokens(tmp_path: Path, name: str) -> None:
    rollout = Rollout("a", "t", token_ids=[1, 2], logprobs=[-1.0, -2.0], verdict="correct")
    group = Group(Problem("p", "q", "1", solution="s"), [rollout])
    write_groups(tmp_path / name, [group])
    (read,) = read_groups(tmp_path / name, with_tokens=False)
    assert read.problem == group.problem
    assert (read.rollouts[0].completion, read.rollouts[0].verdict) == ("t", "correct")
    if name == "x.parquet":
        assert read.rollouts[0].token_ids is None and read.rollouts[0].logprobs is None
