"""Rewards of other origin: a user's function, a column of the file, a vote, and filters on top."""

from collections.abc import Sequence

import pytest
from pydantic import ValidationError

from rft_ray.types import Group, Problem, Rollout
from rft_ray.verifier import Verifier
from rft_ray.verifier_config import VerifierConfig


def make_group(
    completions: list[str], answer: str = "4", rewards: Sequence[float | None] = ()
) -> Group:
    """A group of rollouts with these texts, and these rewards where there are any."""
    known = [*rewards, *[None] * (len(completions) - len(rewards))]
    rollouts = [Rollout("a", text, reward=r) for text, r in zip(completions, known, strict=True)]
    return Group(Problem("p", "2+2?", answer), rollouts)


def verdicts_and_rewards(group: Group, **options: object) -> list[tuple[str | None, float | None]]:
    """What a verifier with these options makes of a group."""
    with Verifier(VerifierConfig(**options)) as verifier:
        return [(r.verdict, r.reward) for r in verifier.verify_groups([group])[0].rollouts]


def test_a_function_gives_verdicts_or_rewards() -> None:
    group = make_group(["0.2", "1", "0.7", "-3", "0", "wrong", "nan", "nothing"])
    options = {"function": "hostile_graders:score"}
    assert verdicts_and_rewards(group, **options) == [
        ("wrong", 0.2),
        ("correct", 1.0),
        ("wrong", 0.7),
        ("wrong", -3.0),
        ("wrong", 0.0),
        ("wrong", 0.0),
        ("error", 0.0),
        ("error", 0.0),
    ]
    accepted = verdicts_and_rewards(group, **options, accept_at=0.7)
    assert [verdict for verdict, _ in accepted[:3]] == ["wrong", "correct", "correct"]


def test_best_of_n_keeps_the_highest_rewards() -> None:
    group = make_group(["a", "b", "c", "d", "e"], rewards=[-2.0, 0.5, None, 0.5, 3.0])
    best = verdicts_and_rewards(group, style="reward", best_of=2)
    assert [verdict for verdict, _ in best] == ["wrong", "correct", "error", "wrong", "correct"]
    assert [reward for _, reward in best] == [-2.0, 0.5, 0.0, 0.5, 3.0]
    few = verdicts_and_rewards(group, style="reward", best_of=2, accept_at=1.0)
    assert [verdict for verdict, _ in few] == ["wrong", "wrong", "error", "wrong", "correct"]
    plain = verdicts_and_rewards(group, style="reward", accept_at=0.5)
    assert [verdict for verdict, _ in plain] == ["wrong", "correct", "error", "correct", "correct"]


def test_a_majority_stands_in_for_a_gold_answer() -> None:
    texts = ["#### 0.5", "#### 1/2", r"\boxed{\frac{1}{2}}", "#### 3", "no idea"]
    voted = verdicts_and_rewards(make_group(texts, answer=""), majority=0.5)
    assert [verdict for verdict, _ in voted] == [*["correct"] * 3, "wrong", "unparsable"]
    split = verdicts_and_rewards(make_group(texts, answer=" "), majority=0.6)
    assert split == [("error", 0.0)] * 5
    known = verdicts_and_rewards(make_group(texts, answer="3"), majority=0.5)
    assert [verdict for verdict, _ in known] == [*["wrong"] * 3, "correct", "unparsable"]
    assert verdicts_and_rewards(make_group(texts, answer="")) == [("error", 0.0)] * 5
    assert verdicts_and_rewards(make_group([], answer=""), majority=0.5) == []
    assert verdicts_and_rewards(make_group(["x"], answer=""), majority=0.5) == [("error", 0.0)]


def test_a_filter_refuses_what_stays_right_and_counts_it() -> None:
    loop = "and so on and so on and so on " * 20
    group = make_group(["#### 4", f"{loop}#### 4", f"{loop}#### 5"])
    with Verifier(VerifierConfig(filters=["repetition"])) as verifier:
        (graded,) = verifier.verify_groups([group])
        assert [r.verdict for r in graded.rollouts] == ["correct", "correct", "wrong"]
        assert graded.accepted == [graded.rollouts[0]]
        assert verifier.notes == {"repetition": 1}
        verifier.verify_groups([group])
        assert verifier.notes == {"repetition": 2}


def test_what_only_a_leniency_accepts_is_counted() -> None:
    group = make_group(["#### 4", "#### 4 eggs", "#### 4%", "#### 5"])
    with Verifier(VerifierConfig(leniencies={"units": True})) as verifier:
        verdicts = [r.verdict for r in verifier.verify_groups([group])[0].rollouts]
        assert verdicts == ["correct", "correct", "unparsable", "wrong"]
        assert verifier.notes == {"lenient": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"best_of": 2},
        {"accept_at": 0.5},
        {"style": "reward", "majority": 0.5},
        {"style": "reward", "leniencies": {"units": True}},
        {"function": "a:b", "leniencies": {"percent": True}},
        {"style": "math", "compat": "paper"},
        {"function": "a:b", "compat": "paper"},
        {"leniencies": {"spelling": True}},
        {"filters": ["politeness"]},
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VerifierConfig(**options)
