"""Acceptance by rank: the best of a group's rollouts by their reward (RAFT's best-of-n).

For rewards that are no claim of being right, such as a reward model's. Left out: ranking across
problems, which lets easy ones crowd out the rest.
"""

from dataclasses import replace

from rft_ray.types import Group


def keep_best(group: Group, count: int) -> Group:
    """The group with only the `count` highest rewards of its accepted rollouts still `correct`.

    Ties go to the earlier rollout; the others become `wrong` and keep their reward.
    """
    ranked = sorted(group.accepted, key=lambda rollout: rollout.reward or 0.0, reverse=True)
    beaten = {id(rollout) for rollout in ranked[count:]}
    rollouts = [
        replace(rollout, verdict="wrong") if id(rollout) in beaten else rollout
        for rollout in group.rollouts
    ]
    return Group(group.problem, rollouts)
