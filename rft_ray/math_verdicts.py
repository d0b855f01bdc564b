"""Verdicts on equality in three values: True and False are proved, None is not known."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Truth = bool | None
Item = TypeVar("Item")


def every(verdicts: Sequence[Truth]) -> Truth:
    """All of them: False beats unknown, unknown beats True."""
    if False in verdicts:
        return False
    return None if None in verdicts else True


def all_paired(
    gold: Sequence[Item], other: Sequence[Item], same: Callable[[Item, Item], Truth]
) -> Truth:
    """Whether the items pair up, in any order; equality is transitive, so greedily."""
    if len(gold) != len(other):
        return False
    candidates, unknown = list(other), False
    for item in gold:
        verdicts = []
        for candidate in candidates:
            verdicts.append(same(item, candidate))
            if verdicts[-1]:
                break
        if verdicts[-1:] == [True]:
            del candidates[len(verdicts) - 1]
        elif None in verdicts:
            unknown = True
        else:
            return False
    return None if unknown else True
