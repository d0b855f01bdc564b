"""Why a rollout was kept or dropped, in plain words: a pure function of one group."""

from rft_ray.types import Group


def reason(group: Group, index: int) -> str:
    """Why rollout `index` of a group was kept or dropped."""
    rollout = group.rollouts[index]
    if rollout.selected:
        return "selected: stands for its path"
    if rollout.is_accepted:
        return "another text stands for its path"
    if rollout.finish_reason == "length":
        return "cut off by the token limit"
    return rollout.verdict or "not graded yet"
