"""Which groups an online step leaves out: pure functions from a graded group to a reason or None.

With I(o) in {0, 1} a group without accepted rollouts adds nothing but its share of the mean, and
one without rejected ones teaches what the policy already does (Reinforce-Rej drops both). What is
dropped is counted by reason, never silently. Left out: filters of single rollouts, which is
`selection.py`'s part, and staleness, which is `buffer.py`'s.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal

from rft_ray.errors import InputError
from rft_ray.types import Group

FilterName = Literal["all_wrong", "all_right", "too_long"]
NO_ROLLOUTS = "no_rollouts"


def all_wrong(group: Group) -> str | None:
    """Not one rollout is accepted."""
    if not group.rollouts:
        return NO_ROLLOUTS
    return None if group.accepted else "all_wrong"


def all_right(group: Group) -> str | None:
    """Every rollout is accepted."""
    if not group.rollouts:
        return NO_ROLLOUTS
    return "all_right" if len(group.accepted) == len(group.rollouts) else None


def too_long(group: Group) -> str | None:
    """Every rollout was cut off by the token limit."""
    if not group.rollouts:
        return NO_ROLLOUTS
    is_cut_off = all(rollout.finish_reason == "length" for rollout in group.rollouts)
    return "too_long" if is_cut_off else None


FILTERS: dict[str, Callable[[Group], str | None]] = {
    "all_wrong": all_wrong,
    "all_right": all_right,
    "too_long": too_long,
}


def filter_groups(
    groups: Iterable[Group], names: Iterable[str]
) -> tuple[list[Group], Counter[str]]:
    """The groups that no filter drops, in order, and how many were dropped for each reason.

    Filters apply in the order of `names`, and the first one to object gives the reason: so put
    `too_long` before `all_wrong`, which covers it. Raises InputError for a name that there is not.
    """
    names = list(names)
    unknown = [name for name in names if name not in FILTERS]
    if unknown:
        raise InputError(f"filters: unknown filter {unknown[0]!r}; valid: {', '.join(FILTERS)}")
    kept, dropped = [], Counter[str]()
    for group in groups:
        reasons = (FILTERS[name](group) for name in names)
        reason = next((reason for reason in reasons if reason), None)
        if reason is None:
            kept.append(group)
        else:
            dropped[reason] += 1
    return kept, dropped
