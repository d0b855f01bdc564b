"""Group filters: what each drops, and that nothing is lost without being counted."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_ray.errors import InputError
from rft_ray.filters import FILTERS, filter_groups
from rft_ray.types import Group, Problem, Rollout

RIGHT = Rollout("p", "a", verdict="correct", finish_reason="stop")
WRONG = Rollout("p", "b", verdict="wrong", finish_reason="stop")
CUT = Rollout("p", "c", verdict="unparsable", finish_reason="length")
# It holds the right answer, but went on for ever.
RIGHT_BUT_CUT = Rollout("p", "d", verdict="correct", finish_reason="length")


def group(*rollouts: Rollout) -> Group:
    return Group(Problem("x", "q", "1"), list(rollouts))


groups_st = st.lists(
    st.lists(st.sampled_from([RIGHT, WRONG, CUT, RIGHT_BUT_CUT]), max_size=4).map(
        lambda rollouts: group(*rollouts)
    )
)


@pytest.mark.parametrize(
    ("rollouts", "dropped_by"),
    [
        ([RIGHT, WRONG], set()),
        ([RIGHT, RIGHT], {"all_right"}),
        ([RIGHT, RIGHT_BUT_CUT], set()),
        ([WRONG, WRONG], {"all_wrong"}),
        ([WRONG, CUT], {"all_wrong"}),
        ([CUT, RIGHT_BUT_CUT], {"all_wrong", "too_long"}),
        ([RIGHT], {"all_right"}),
    ],
)
def test_each_filter(rollouts, dropped_by) -> None:
    reasons = {name: rule(group(*rollouts)) for name, rule in FILTERS.items()}
    assert {name for name, reason in reasons.items() if reason} == dropped_by
    assert all(reason in (None, name) for name, reason in reasons.items())


def test_the_first_filter_to_object_gives_the_reason() -> None:
    groups = [group(CUT), group(WRONG), group(RIGHT, WRONG), group(), group(RIGHT)]
    kept, dropped = filter_groups(groups, ["too_long", "all_wrong"])
    assert kept == [groups[2], groups[4]]
    assert dropped == {"too_long": 1, "all_wrong": 1, "no_rollouts": 1}
    assert filter_groups(groups, ["all_wrong", "too_long"])[1] == {
        "all_wrong": 2, "no_rollouts": 1,
    }  # fmt: skip
    assert filter_groups(iter(groups), []) == (groups, {})


def test_an_unknown_filter_is_named_with_the_valid_ones() -> None:
    with pytest.raises(InputError, match="'all_worng'; valid: all_wrong, all_right, too_long"):
        filter_groups([], ["all_wrong", "all_worng"])


@given(groups_st)
def test_what_is_kept_depends_on_no_order_and_all_else_is_counted(groups) -> None:
    results = [filter_groups(groups, names) for names in permutations(FILTERS)]
    for kept, dropped in results:
        assert kept == results[0][0]
        assert len(kept) + dropped.total() == len(groups)
    # What Reinforce-Rej leaves has something to prefer and something to prefer it to.
    assert all(0 < len(each.accepted) < len(each.rollouts) for each in results[0][0])
