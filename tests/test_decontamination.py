"""What shares words with test problems is not trained on, and is counted."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from rft_ray.cli import main
from rft_ray.config_sections import SelectionConfig
from rft_ray.controls import all_accepted
from rft_ray.decontamination import (
    TestText,
    contaminated_rollouts,
    decontaminate,
    refuse_overlap,
    text_of_tests,
    without_overlap,
)
from rft_ray.errors import InputError
from rft_ray.records import read_groups, write_groups
from rft_ray.selection import round_statistics, select_group
from rft_ray.tally import Tally
from rft_ray.types import Group, Problem, Rollout

TEST = [
    Problem("t1", "A shop sells 12 red apples, and 7 green ones. How many apples are sold?", "19",
            solution="It sells 12+7=<<12+7=19>>19 apples.\n#### 19"),
    Problem("t2", "What is the half of 84?", "42"),
    Problem("t3", "How?", "1"),
]  # fmt: skip


def test_words_in_a_row_are_found_whatever_their_form() -> None:
    text = TestText(TEST, num_words=6)
    assert text.overlaps("Once a SHOP sells:\n12 red apples!")
    assert not text.overlaps("A shop sells 12 apples, and 7 green pears. How many are there?")
    # a test text of fewer words than that counts as a whole, but not one of a single word
    assert TestText(TEST, num_words=13).overlaps("So what is the half of 84? It is 42.")
    assert not TestText(TEST, num_words=13).overlaps("what is the half of 82")
    assert not text.overlaps("How? How? How? How?")
    assert text.overlaps("It sells 12+7=<<12+7=19>>19 apples")
    assert not TestText([], 13).overlaps("anything")


def test_a_problem_that_overlaps_loses_all_its_rollouts() -> None:
    text, counts = TestText(TEST, num_words=6), Counter[str]()
    rollouts = [
        Rollout("a", "four", verdict="correct"),
        Rollout("a", "It sells 12+7=<<12+7=19>>19 apples, so four", verdict="correct"),
        Rollout("a", "it sells 12 7 12 7 19 19 apples", verdict="wrong"),
    ]
    clean = Group(Problem("p", "What is 2+2?", "4"), rollouts)
    assert contaminated_rollouts(clean, text, counts) == {1}
    assert counts == {"rollouts": 1}
    copied = Group(Problem("q", "What is the half of 84 ?", "42"), rollouts)
    assert contaminated_rollouts(copied, text, counts) == {0, 1, 2}
    assert counts == {"rollouts": 3, "problems": 1}
    problems = [clean.problem, copied.problem]
    assert without_overlap(problems, TEST, num_words=6) == [clean.problem]


def test_the_command_counts_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, groups = tmp_path / "test.jsonl", tmp_path / "groups.jsonl"
    test.write_text(json.dumps({"question": TEST[0].prompt, "answer": TEST[0].solution}) + "\n")
    rollouts = [
        Rollout("a", "<<2+2=4>>4\n#### 4", verdict="correct"),
        Rollout("a", "It sells 12+7=<<12+7=19>>19 apples", verdict="correct"),
    ]
    write_groups(groups, [Group(Problem(name, "2+2?", "4"), rollouts) for name in "pq"])
    out = tmp_path / "out.jsonl"
    options = ["--decontaminate", str(test), "--words", "6"]
    assert main(["select", str(groups), "-o", str(out), *options]) == 0
    printed = capsys.readouterr().out
    assert "overlapping with test problems: 0 problems, 2 accepted rollouts left out" in printed
    assert [[r.selected for r in g.rollouts] for g in read_groups(out)] == [[True, False]] * 2
    assert main(["select", str(groups), "-o", str(out), "--decontaminate", "none.jsonl"]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_a_run_leaves_overlapping_problems_out_of_training() -> None:
    train = [Problem("p", "What is 2+2?", "4"), replace(TEST[1], id="copy")]
    problems = {"train": train, "heldout": TEST}
    assert decontaminate(problems, None) == 0
    assert decontaminate(problems, 13) == 1
    assert [problem.id for problem in problems["train"]] == ["p"]
    with pytest.raises(InputError, match="decontaminate_words"):
        decontaminate({"train": TEST[1:2], "heldout": TEST}, 13)


def test_a_run_refuses_rollouts_that_overlap_and_counts_them_by_policy_and_round() -> None:
    text = text_of_tests({"train": TEST[1:], "heldout": TEST[:1]}, 6)
    assert text is not None and text_of_tests({"heldout": TEST}, None) is None
    assert not text.overlaps(TEST[1].prompt)  # a training problem's own words are no matter
    copied, own = "It sells 12+7=<<12+7=19>>19 apples", "<<2+2=4>>4\n#### 4"
    rollouts = [
        Rollout("a", own, verdict="correct", reward=1.0),
        Rollout("a", copied, verdict="correct", reward=1.0, sample=1),
        Rollout("b", copied, verdict="wrong", reward=0.0),
        Rollout("b", copied, verdict="correct", reward=1.0, sample=1, round=1),
        Rollout("b", "x " * 5000, verdict="correct", reward=0.0, sample=2, round=1),
    ]
    group = refuse_overlap(Group(Problem("p", "2+2?", "4"), rollouts), text)
    assert [r.is_accepted for r in group.rollouts] == [True, False, False, False, False]
    assert [r.verdict for r in group.rollouts] == [r.verdict for r in rollouts]
    assert all_accepted(group).selected == select_group(group, SelectionConfig()).selected
    assert refuse_overlap(group, text) == group and refuse_overlap(group, None) is group

    tally = Tally()
    tally.add(round_statistics(group, 1, text))
    assert tally.row("b")["contaminated"] == tally.row("pooled")["contaminated"] == 1
    assert (tally.row("b")["refused"], tally.row("b")["correct"]) == (2, 2)
    assert tally.row("all_rounds")["contaminated"] == 2
    assert "contaminated" not in round_statistics(group, 1)["pooled"]
