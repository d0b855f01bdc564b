"""The paper's rule equals its literal form; what it chooses has the properties the method needs."""

import json
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.selection import literal_algorithm
from rft_ray.edit_distance import KeptTexts
from rft_ray.equations import path_key
from rft_ray.paper_rule import FewTexts, choose_by_paper, choose_with, open_kept
from rft_ray.records import read_groups
from rft_ray.selection import EVERYTHING, group_statistics, select_group
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


literal_choice = partial(literal_algorithm, distance=levenshtein)
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
    assert [completions[position] for position in positions] == literal_choice(completions)


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


def test_a_later_text_needs_a_strictly_larger_sum() -> None:
    other = "x<<2+2=4>>x"
    assert choose_by_paper([other, "a<<1+1=2>>", "b<<1+1=2>>"]) == [0, 1]
    assert choose_by_paper([other, "a<<1+1=2>>", "aa<<1+1=2>>bbb"]) == [0, 2]
    assert choose_by_paper(["<<1+1=2>>", "far away <<1+1=2>> from it"]) == [0]


def test_the_example_of_four_rollouts() -> None:
    """r1 and r2 share a path; r2 takes it over once it is further from what is kept beside it."""
    r1 = "Ann has 3 apples and 4 pears: <<3+4=7>>7. Doubled: <<7*2=14>>14"
    r2 = "In all there were <<3+4=7>>7 pieces of fruit, and twice as many are <<7*2=14>>14"
    r3 = "Ann has 3 apples and 4 pears: <<4+3=7>>7. Doubled: <<7*2=14>>14"
    r4 = "Ann has <<3*2=6>>6 apples, <<4*2=8>>8 pears: <<6+8=14>>14"
    # two paths are the fewest between which there is a distance: r2 alone cannot replace r1
    assert choose_by_paper([r1, r2]) == [0]
    assert choose_by_paper([r1, r2, r3, r4]) == [0, 2, 3]
    assert choose_by_paper([r1, r3, r4, r2]) == [3, 1, 2]
    assert levenshtein(r2, r3) + levenshtein(r2, r4) > levenshtein(r1, r3) + levenshtein(r1, r4)
    assert choose_by_paper([r2, r3, r4, r1]) == [0, 1, 2]
    assert choose_by_paper([r1, r3, r1, r4, r1]) == [0, 1, 3]


@settings(deadline=None, max_examples=4)
@given(
    st.lists(
        st.builds(
            "{}<<{}+1={}>>{}".format,
            st.text("abc ", max_size=90),
            st.integers(0, 20),
            st.just(""),
            st.sampled_from(["", "x", "\u00e9" * 70]),
        ),
        min_size=40,
        max_size=60,
    )
)
def test_many_rollouts_are_chosen_as_few_are(completions: list[str]) -> None:
    """The compiled distances and the library's give one choice, that of the published algorithm."""
    few, lanes = FewTexts(), KeptTexts()
    path_of = {text: path_key(text) for text in completions}
    chosen = choose_with(completions, path_of, lanes)
    assert chosen == choose_with(completions, path_of, few) == choose_by_paper(completions)
    assert [completions[position] for position in chosen] == literal_choice(completions)


def test_a_large_group_uses_the_compiled_distances() -> None:
    assert isinstance(open_kept(num_texts=400, num_paths=12), KeptTexts)
    assert isinstance(open_kept(num_texts=400, num_paths=3), FewTexts)
    assert isinstance(open_kept(num_texts=30, num_paths=12), FewTexts)


@settings(deadline=None)
@given(st.lists(texts, max_size=10), st.lists(texts, max_size=10))
def test_a_merged_pool_has_the_paths_of_both(first: list[str], second: list[str]) -> None:
    def paths(completions: list[str]) -> set[str]:
        return {path_key(completions[position]) for position in choose_by_paper(completions)}

    assert paths(first + second) == paths(first) | paths(second)


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
    paper, none = select_group(group), select_group(group, EVERYTHING)
    assert [r.selected for r in paper.rollouts] == [False, False, True, False, False, False]
    assert [r.selected for r in none.rollouts] == [False, False, True, False, True, False]
    assert select_group(Group(group.problem)) == Group(group.problem)


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
    policies = statistics["policies"]
    assert [policies[name]["exclusive_paths"] for name in "ab"] == [1, 0]
    assert [statistics["pooled"][name] for name in ("exclusive_paths", "distinct_texts")] == [1, 3]
    assert [row["covered"] for row in [statistics["pooled"], *policies.values()]] == [1, 1, 1]


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
            assert {r.completion for r in selected} == set(literal_choice(completions))
            compared += 1
    assert compared == 12
