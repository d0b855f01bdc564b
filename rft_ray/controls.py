"""Controls: what the target is trained on instead, to see what pooling and selection are worth.

Pure functions of a selected group. own: the run's rule over the rollouts of the target's own base
(Yuan et al. 2023, RFT without U); no_dedup: every accepted rollout (their Table 5); random: as many
of each problem's accepted rollouts as were selected, so only diversity differs, not the amount.
"""

from collections.abc import Collection
from dataclasses import replace

from rft_ray.config_sections import SelectionConfig
from rft_ray.selection import EVERYTHING, select_group
from rft_ray.selection_rules import seeded
from rft_ray.types import Group


def own_rollouts(
    group: Group, policies: Collection[str], selection: SelectionConfig
) -> Group:
    """The group with the rollouts of some policies only, selected among themselves."""
    own = [rollout for rollout in group.rollouts if rollout.policy in policies]
    return select_group(Group(group.problem, own), selection)


def random_rollouts(group: Group, seed: int) -> Group:
    """The group with as many of its accepted rollouts selected, drawn without replacement.

    The draw depends on the seed and the problem's id alone.
    """
    accepted = [index for index, rollout in enumerate(group.rollouts) if rollout.is_accepted]
    chosen = set(seeded(group.problem.id, seed).sample(accepted, len(group.selected)))
    rollouts = [replace(r, selected=index in chosen) for index, r in enumerate(group.rollouts)]
    return Group(group.problem, rollouts)


def all_accepted(group: Group) -> Group:
    """The group with every accepted rollout selected."""
    return select_group(group, EVERYTHING)
