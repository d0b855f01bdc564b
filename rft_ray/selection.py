"""Which of a problem's accepted rollouts teach the target something: pure functions of one group.

The paper's rule (Yuan et al. 2023, Algorithm 1) keeps one rollout per list of calculations: the one
whose text is furthest from the others kept. The list is ordered and literal, so 3+4=7 and 4+3=7 are
two paths. Rollouts of all policies compete in the order of the group, the gold solution takes no
part, and all rollouts without calculations share one path. How many are kept does not depend on
the order; which text stands for a path does.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from rapidfuzz.distance.Levenshtein import distance

from rft_ray.grading import find_calculations
from rft_ray.types import VERDICTS, Group, Rollout

Rule = Literal["paper", "none"]


def select_group(group: Group, rule: Rule = "paper") -> Group:
    """The group with `selected` set on every rollout, to True only on accepted ones."""
    accepted = [index for index, rollout in enumerate(group.rollouts) if rollout.is_accepted]
    if rule == "paper":
        texts = [group.rollouts[index].completion for index in accepted]
        chosen = {accepted[position] for position in choose_by_paper(texts)}
    else:
        chosen = set(accepted)
    rollouts = [
        replace(rollout, selected=index in chosen) for index, rollout in enumerate(group.rollouts)
    ]
    return Group(group.problem, rollouts)


def choose_by_paper(texts: list[str]) -> list[int]:
    """The positions of the texts that Algorithm 1 keeps, one per path, in order of the paths.

    A later text takes a path over when the sum of its distances (character Levenshtein, whole text)
    to the texts kept for the other paths is strictly larger.
    """
    kept: list[int] = []
    slot_of: dict[str, int] = {}
    # between[i][j] is the distance of the texts kept for paths i and j, so that an incumbent's sum
    # costs no distance to compute
    between: list[list[int]] = []
    for position, text in enumerate(texts):
        slot = slot_of.setdefault(path_key(text), len(kept))
        if slot < len(kept) and texts[kept[slot]] == text:
            continue
        distances = [distance(text, texts[other]) for other in kept]
        if slot == len(kept):
            kept.append(position)
            between.append(distances)
            for row, value in zip(between, [*distances, 0], strict=True):
                row.append(value)
        elif sum(distances) - distances[slot] > sum(between[slot]):
            kept[slot] = position
            distances[slot] = 0
            between[slot] = distances
            for row, value in zip(between, distances, strict=True):
                row[slot] = value
    return kept


def path_key(text: str) -> str:
    """The calculations of a text, in order, without spaces: what makes two rollouts one path.

    "3+4=<<3+4=7>>7, <<7 *2=14>>" -> "3+4=7|7*2=14"
    """
    return "|".join(find_calculations(text)).replace(" ", "")


def group_statistics(group: Group) -> dict[str, Any]:
    """Counts for a group, all policies pooled and each alone: {"pooled": {...}, "policies": {...}}.

    Each holds `rollouts`, one count for every verdict, `refused` (correct, but not fit to be read,
    see `readability.py`), `accepted`, `selected`, `distinct_paths` (among accepted rollouts) and
    `distinct_paths_with_gold`, which adds the gold solution's path as the paper's Table 2 does. The
    two are never mixed.
    """
    by_policy: dict[str, list[Rollout]] = {}
    for rollout in group.rollouts:
        by_policy.setdefault(rollout.policy, []).append(rollout)
    gold = group.problem.solution
    gold_keys = set() if gold is None else {path_key(gold)}
    return {
        "pooled": _count(group.rollouts, gold_keys),
        "policies": {name: _count(own, gold_keys) for name, own in by_policy.items()},
    }


def round_statistics(group: Group, round: int) -> dict[str, Any]:
    """`group_statistics` of one round's own rollouts, and `all_rounds`: of everything so far.

    In round 0 that is the same and left out.
    """
    if round == 0:
        return group_statistics(group)
    own = Group(group.problem, [rollout for rollout in group.rollouts if rollout.round == round])
    return {**group_statistics(own), "all_rounds": group_statistics(group)["pooled"]}


def _count(rollouts: Iterable[Rollout], gold_keys: set[str]) -> dict[str, int]:
    rollouts = list(rollouts)
    keys = {path_key(rollout.completion) for rollout in rollouts if rollout.is_accepted}
    verdicts = [rollout.verdict for rollout in rollouts]
    return {
        "rollouts": len(rollouts),
        **{verdict: verdicts.count(verdict) for verdict in VERDICTS},
        "refused": sum(r.verdict == "correct" and r.reward == 0.0 for r in rollouts),
        "accepted": sum(rollout.is_accepted for rollout in rollouts),
        "distinct_paths": len(keys),
        "distinct_paths_with_gold": len(keys | gold_keys),
        "selected": sum(bool(rollout.selected) for rollout in rollouts),
    }
