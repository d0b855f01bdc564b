"""Every rollout's fate is told in one safe line that follows from what the group records."""

import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_ray.reasons import MAX_CHARS, reason, reason_class, reasons
from rft_ray.selection import EVERYTHING, select_group
from rft_ray.stated_answers import final_answer
from rft_ray.types import VERDICTS, Group, Problem, Rollout

PROBLEM = Problem("p", "2+2?", "18")


def one(completion: str = "", **fields: object) -> str:
    """The reason of a rollout that is alone in its group."""
    return reason(Group(PROBLEM, [Rollout("small", completion, **fields)]), 0)


def test_selected_same_text_and_same_path() -> None:
    texts = {
        ("small", 4): "<<9*2=18>>#### 18",
        ("large", 0): "<<9+9=18>>#### 18",
        ("large", 1): "so <<9+9=18>>#### 18",
        ("small", 5): "<<9+9=18>>#### 18",
    }
    rollouts = [
        Rollout(policy, text, sample=sample, verdict="correct")
        for (policy, sample), text in texts.items()
    ]
    group = select_group(Group(PROBLEM, rollouts))
    assert [rollout.selected for rollout in group.rollouts] == [True, False, True, False]
    assert reasons(group) == [
        "selected: stands for its path (1 of 3 accepted texts shares it)",
        "another text stands for its path: sample 1 of large",
        "selected: stands for its path (2 of 3 accepted texts share it)",
        "another text stands for its path: sample 1 of large",
    ]
    again = replace(group.rollouts[2], policy="small", sample=7, selected=False, round=2)
    known = Group(PROBLEM, [*group.rollouts, again])
    assert reason(known, 4) == "same text as sample 1 of large in round 0"
    assert reason_class(reason(known, 4)) == "same text as another"
    assert reason_class(reason(known, 0)) == "selected"


def test_a_rule_that_keeps_all_says_so() -> None:
    rollouts = [Rollout("a", f"{i} #### 18", sample=i, verdict="correct") for i in range(2)]
    group = select_group(Group(PROBLEM, rollouts), EVERYTHING)
    assert reason(group, 1) == "selected: as is sample 0 of a, which has its path"


@pytest.mark.parametrize(
    ("completion", "fields", "expected"),
    [
        ("#### 18", {}, "not graded yet"),
        ("#### 18", {"verdict": "correct"}, "not selected yet"),
        ("#### 18", {"verdict": "correct", "selected": False}, "accepted, not selected"),
        ("x", {"verdict": "correct", "finish_reason": "length"}, "cut off by the token limit"),
        ("x", {"verdict": "unparsable", "finish_reason": "length"}, "cut off by the token limit"),
        ("#### 17\n", {"verdict": "wrong"}, "wrong: final answer 17, expected 18"),
        (r"\boxed{17}", {"verdict": "wrong"}, "wrong: final answer 17, expected 18"),
        ("#### 18", {"verdict": "wrong", "reward": 0.25}, "wrong: reward 0.25"),
        ("<<1+1=2>><<2+2=5>>", {"verdict": "miscalculated"}, "miscalculated: <<2+2=5>>"),
        ("<<1+1=2>>", {"verdict": "miscalculated"}, "miscalculated"),
        ("18", {"verdict": "unparsable"}, "unparsable: no final answer"),
        ("#### ", {"verdict": "unparsable"}, "unparsable: no final answer"),
        ("#### 18 ####", {"verdict": "unparsable"}, "unparsable: nothing after ####"),
        ("#### 4 or 5", {"verdict": "unparsable"}, "unparsable: '4 or 5' after ####"),
        ("#### 4 #### 5", {"verdict": "unparsable"}, "unparsable: final answers differ: 4 and 5"),
        ("#### 18", {"verdict": "unparsable"}, "unparsable: '18' after ####, in 7 characters"),
        ("", {"verdict": "timeout"}, "timeout"),
        ("", {"verdict": "error"}, "error"),
        ("", {"verdict": "wrong", "selected": True}, "selected: although wrong"),
    ],
)
def test_the_reason_of_a_rollout_alone(
    completion: str, fields: dict[str, object], expected: str
) -> None:
    assert one(completion, **fields) == expected


def test_a_final_answer_is_what_follows_the_last_mark() -> None:
    assert final_answer("#### 1 #### 2 \n") == "2"
    assert final_answer("####") == ""
    assert final_answer("# 1") is None


rollouts = st.builds(
    Rollout,
    policy=st.text(min_size=1),
    completion=st.text() | st.sampled_from(["<<1+1=2>>#### 2", "<<1+1=\x1b>>#### \n\u202e" * 9]),
    round=st.integers(0, 1),
    finish_reason=st.sampled_from([None, "stop", "length"]),
    verdict=st.sampled_from([None, *VERDICTS]),
    selected=st.sampled_from([None, False, True]),
)


@given(st.lists(rollouts, max_size=8), st.text())
def test_every_reason_is_one_short_line_that_no_text_can_break(
    group_rollouts: list[Rollout], answer: str
) -> None:
    group = Group(Problem("p", "", answer), group_rollouts)
    found = reasons(group)
    assert found == [reason(group, index) for index in range(len(group_rollouts))]
    for text in found:
        assert 0 < len(text) <= MAX_CHARS
        assert len(text.splitlines()) == 1
        assert not any(unicodedata.category(char) in ("Cc", "Cs") for char in text)
        assert "\u202e" not in text
