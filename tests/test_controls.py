"""What the controls train on instead. Run: pytest tests/test_controls.py"""

from hypothesis import given
from hypothesis import strategies as st

from rft_ray.config_sections import SelectionConfig
from rft_ray.controls import all_accepted, own_rollouts, random_rollouts
from rft_ray.selection import select_group
from rft_ray.types import Group, Problem, Rollout

TEXTS = ["<<2+2=4>>4", "<<2+2=4>> is 4", "<<1+3=4>>4", "<<3+1=4>>4", "no"]


@st.composite
def groups(draw: st.DrawFn) -> Group:
    """A selected group of two policies."""
    chosen = draw(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(TEXTS)), max_size=12))
    rollouts = [
        Rollout(policy, text, sample=i, verdict="correct" if "4" in text else "wrong",
                finish_reason=draw(st.sampled_from(["stop", "length"])))
        for i, (policy, text) in enumerate(chosen)
    ]  # fmt: skip
    return select_group(Group(Problem(draw(st.text(max_size=3)), "2+2?", "4"), rollouts))


@given(groups(), st.integers(0, 5))
def test_random_takes_as_many_accepted_ones_and_depends_on_the_seed_alone(
    group: Group, seed: int
) -> None:
    drawn = random_rollouts(group, seed)
    assert len(drawn.selected) == len(group.selected)
    assert all(rollout.is_accepted for rollout in drawn.selected)
    assert drawn == random_rollouts(group, seed)


def test_random_draws_differ_between_seeds_and_reach_every_accepted_rollout() -> None:
    rollouts = [Rollout("a", f"<<{i}+0={i}>>", verdict="correct") for i in (1, 1, 1, 1)]
    group = select_group(Group(Problem("p", "q", "1"), rollouts))
    draws = [random_rollouts(group, seed) for seed in range(40)]
    chosen = [[r.selected for r in draw.rollouts].index(True) for draw in draws]
    assert set(chosen) == {0, 1, 2, 3}


@given(groups())
def test_own_is_the_papers_rule_over_its_own_bases_rollouts(group: Group) -> None:
    own = own_rollouts(group, ["a"], SelectionConfig())
    alone = Group(group.problem, [r for r in group.rollouts if r.policy == "a"])
    assert own == select_group(alone)
    # two policies may share the target's base
    assert own_rollouts(group, ["a", "b"], SelectionConfig()) == select_group(group)


@given(groups())
def test_no_dedup_is_everything_that_was_accepted(group: Group) -> None:
    assert all_accepted(group).selected == all_accepted(group).accepted
    assert len(all_accepted(group).selected) == len(group.accepted)
