"""What shares words with test problems is not trained on, and is counted."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from rft_ray.cli import main
from rft_ray.decontamination import TestText, contaminated_rollouts, without_overlap
from rft_ray.errors import InputError
from rft_ray.records import read_groups, write_groups
from rft_ray.study import decontaminate
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
