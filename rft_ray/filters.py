"""Which groups an online step leaves out, by name: pure functions of a graded group.

all_wrong: no rollout is accepted, so there is nothing to learn (it would only count in the mean of
the loss); all_right: every rollout is accepted, so there is little to learn (with all_wrong, the
filter that Xiong et al. 2025 call Reinforce-Rej); too_long: every rollout was cut off.
"""

from collections import Counter
from collections.abc import Callable, Iterable

from rft_ray.types import Group


def is_all_wrong(group: Group) -> bool:
    """No rollout is accepted."""
    return not group.accepted


def is_all_right(group: Group) -> bool:
    """There are rollouts, and every one is accepted."""
    return bool(group.rollouts) and len(group.accepted) == len(group.rollouts)


def is_too_long(group: Group) -> bool:
    """Every rollout met the token limit, or the prompt left no room for any."""
    return all(rollout.finish_reason == "length" for rollout in group.rollouts)


FILTERS: dict[str, Callable[[Group], bool]] = {
    "all_wrong": is_all_wrong,
    "all_right": is_all_right,
    "too_long": is_too_long,
}


def filter_groups(groups: Iterable[Group], names: list[str]) -> tuple[list[Group], Counter[str]]:
    """The groups that no filter leaves out, and how many each of them did: the first that fits."""
    kept: list[Group] = []
    dropped: Counter[str] = Counter()
    for group in groups:
        reason = next((name for name in names if FILTERS[name](group)), None)
        if reason is None:
            kept.append(group)
        else:
            dropped[reason] += 1
    return kept, dropped
