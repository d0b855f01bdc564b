"""The paper's rule equals its literal form; what it chooses has the properties the method needs."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_ray.records import read_groups
from rft_ray.selection import choose_by_paper, group_statistics, path_key, select_group
from rft_ray.types import Group, Problem, Rollout

GSM8K = Path(__file__).parents[2] / "shared/data/gsm8k"


def levenshtein(a: str, b: str) -> int:
    """Textbook dynamic programming."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def literal_algorithm(texts: list[str]) -> list[str]:
    """Algorithm 1 as published: every sum from scratch."""
    kept: list[str] = []
    keys: list[str] = []
    for text in texts:
        key = path_key(text)
        if key not in keys:
            kept.append(text)
            keys.append(key)
            continue
        slot = keys.index(key)
        others = [other for other in kept if other != kept[slot]]
        candidate = sum(levenshtein(text, other) for other in others)
        if candidate > sum(levenshtein(kept[slot], other) for other in others):
            kept[slot] = text
    return kept


texts = st.builds(
    "{}<<{}>>{}".format,
    st.text("abc ", max_size=6),
    st.sampled_from(["1+1=2", "1+2=3", "2+1=3", " 1+1 = 2"]),
    st.text("abc ", max_size=6),
) | st.text("abc", max_size=8)


def as_group(completions: list[str], **fields: object) -> Group:
    rollouts = [Rollout("p", text, verdict="correct", **fields) for text in completions]
    return Group(Problem("q", "", ""), rollouts)


@settings(deadline=None)
@given(st.lists(texts, max_size=14))
def test_the_choice_is_that_of_the_published_algorithm(completions: list[str]) -> None:
    positions = choose_by_paper(completions)
    assert [completions[position] for position in positions] == literal_algorithm(completions)


@settings(deadline=None)
@given(st.lists(texts, max_size=14))
def test_one_rollout_is_kept_for_every_path(completions: list[str]) -> None:
    selected = select_group(as_group(completions)).selected
    keys = [path_key(rollout.completion) for rollout in selected]
    assert sorted(keys) == sorted({path_key(text) for text in completions})


@settings(deadline=None)
@given(st.lists(texts, max_size=14))
def test_selection_is_idempotent(completions: list[str]) -> None:
    once = select_group(as_group(completions))
    assert select_group(once) == once
    of_selected = select_group(Group(once.problem, once.selected))
    assert of_selected.selected == once.selected


@settings(deadline=None)
@given(st.lists(texts, max_size=14), st.randoms())
def test_the_number_kept_does_not_depend_on_the_order(completions: list[str], random) -> None:
    shuffled = random.sample(completions, len(completions))
    assert len(choose_by_paper(shuffled)) == len(choose_by_paper(completions))


@settings(deadline=None)
@given(st.lists(texts, max_size=10))
def test_repeating_a_text_at_once_changes_nothing(completions: list[str]) -> None:
    doubled = [text for text in completions for _ in range(2)]
    kept = [doubled[position] for position in choose_by_paper(doubled)]
    assert kept == [completions[position] for position in choose_by_paper(completions)]


def test_the_key_is_the_ordered_literal_list_of_calculations() -> None:
    assert path_key("3 + 4 = <<3+4=7>>7, <<7 * 2 = 14>>14") == "3+4=7|7*2=14"
    assert path_key("<<3+4=7>>") != path_key("<<4+3=7>>")
    assert path_key("<<1+2=3>><<3+4=7>>") != path_key("<<3+4=7>><<1+2=3>>")
    assert path_key("no calculations") == path_key("none here either") == ""


def test_a_later_text_needs_a_strictly_larger_sum() -> None:
    other = "x<<2+2=4>>x"
    assert choose_by_paper([other, "a<<1+1=2>>", "b<<1+1=2>>"]) == [0, 1]
    assert choose_by_paper([other, "a<<1+1=2>>", "aa<<1+1=2>>bbb"]) == [0, 2]
    assert choose_by_paper(["<<1+1=2>>", "far away <<1+1=2>> from it"]) == [0]


def test_only_accepted_rollouts_are_selected() -> None:
    rollouts = [
        Rollout("a", "<<1+1=2>>", verdict="wrong"),
        Rollout("a", "<<1+1=2>>", verdict="correct", finish_reason="length"),
        Rollout("b", "<<1+1=2>>", verdict="correct", finish_reason="stop"),
        Rollout("b", "<<1+1=2>>", verdict="timeout", selected=True),
        Rollout("a", "<<1+1=2>>", verdict="correct"),
        Rollout("a", "<<2=2>>"),
    ]
    group = Group(Problem("q", "", "", solution="<<1+1=2>>"), rollouts)
    paper, none = select_group(group, "paper"), select_group(group, "none")
    assert [r.selected for r in paper.rollouts] == [False, False, True, False, False, False]
    assert [r.selected for r in none.rollouts] == [False, False, True, False, True, False]
    assert select_group(Group(group.problem), "paper") == Group(group.problem)


def test_both_countings_of_paths_are_given_per_policy_and_pooled() -> None:
    group = Group(
        Problem("q", "", "", solution="<<1+1=2>>"),
        [
            Rollout("a", "<<1+1=2>>", verdict="correct"),
            Rollout("a", "<<2=2>>", verdict="correct"),
            Rollout("b", "<<2=2>> ", verdict="correct"),
            Rollout("b", "<<3=3>>", verdict="wrong"),
        ],
    )
    statistics = group_statistics(select_group(group))
    counts = {
        name: [
            row[count]
            for count in (
                "rollouts",
                "correct",
                "wrong",
                "refused",
                "accepted",
                "distinct_paths",
                "distinct_paths_with_gold",
                "selected",
            )
        ]
        for name, row in [("pooled", statistics["pooled"]), *statistics["policies"].items()]
    }
    assert counts["pooled"] == [4, 3, 1, 0, 3, 2, 2, 2]
    assert counts["a"] == [2, 2, 0, 0, 2, 2, 2, 1]
    assert counts["b"] == [2, 1, 1, 0, 1, 1, 2, 1]


@pytest.mark.skipif(not GSM8K.exists(), reason="shared data is not here")
def test_published_solutions_are_chosen_as_by_the_published_algorithm() -> None:
    labels = (GSM8K / "example_model_solutions.jsonl").read_text().splitlines()
    groups = zip(read_groups(GSM8K / "example_groups.jsonl"), map(json.loads, labels), strict=True)
    compared = 0
    for group, labelled in groups:
        completions = [r.completion for r in group.rollouts if labelled[r.policy]["is_correct"]]
        # a replacement needs a path twice and another path
        keys = [path_key(text) for text in completions]
        if 1 < len(set(keys)) < len(keys) and compared < 12:
            selected = select_group(as_group(completions)).selected
            assert {r.completion for r in selected} == set(literal_algorithm(completions))
            compared += 1
    assert compared == 12
