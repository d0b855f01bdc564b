"""Which of a problem's accepted rollouts teach the target something: pure functions of one group.

A rule (`SelectionConfig`) orders the accepted rollouts of all policies, or the few it keeps; caps
then cut. The gold solution takes no part. The result depends on the group alone, so it is the same
however groups are batched and wherever they are selected. The paper's rule is `paper_rule.py`, the
others are `selection_rules.py`, what makes two rollouts one path is `equations.py`.
"""

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

from rft_ray import selection_rules as rules
from rft_ray.config_sections import SelectionConfig
from rft_ray.decontamination import TestText, count_overlap
from rft_ray.equations import equation_set_key, normalised_key, path_key
from rft_ray.paper_rule import Key, choose_by_paper
from rft_ray.types import VERDICTS, Group, Rollout

KEYS: dict[str, Key] = {
    "paper": path_key,
    "equation_set": equation_set_key,
    "equations": normalised_key,
}
PAPER = SelectionConfig()
EVERYTHING = SelectionConfig(rule="none")


def select_group(
    group: Group, config: SelectionConfig = PAPER, left_out: frozenset[int] = frozenset()
) -> Group:
    """The group with `selected` set on every rollout, to True only on accepted ones.

    Rollouts at the positions `left_out` are as if they were not there.
    """
    accepted = [
        index
        for index, rollout in enumerate(group.rollouts)
        if rollout.is_accepted and index not in left_out
    ]
    rollouts = [group.rollouts[index] for index in accepted]
    chosen = {accepted[position] for position in choose(rollouts, group.problem.id, config)}
    return Group(
        group.problem,
        [replace(rollout, selected=i in chosen) for i, rollout in enumerate(group.rollouts)],
    )


def choose(rollouts: list[Rollout], problem_id: str, config: SelectionConfig) -> list[int]:
    """The positions of the accepted rollouts that are kept, in the rule's order of preference."""
    policies = [rollout.policy for rollout in rollouts]
    most = _most(rollouts, config)
    positions = _by_rule(rollouts, problem_id, config, most)
    if config.cap_per_policy is not None:
        positions = rules.within_share(positions, policies, config.cap_per_policy)
    if config.balance_policies:
        positions = rules.in_turn(positions, policies)
    return positions[:most]


def _by_rule(
    rollouts: list[Rollout], problem_id: str, config: SelectionConfig, most: int | None
) -> list[int]:
    texts = [rollout.completion for rollout in rollouts]
    match config.rule:
        case "paper" | "equation_set" | "equations":
            return choose_by_paper(texts, _key(config))
        case "text":
            return rules.different_texts(texts)
        case "random":
            return rules.random_order(len(texts), problem_id, config.seed)
        case "shortest":
            return rules.shortest_first(texts)
        case "longest":
            return rules.longest_first(texts)
        case "reward":
            return rules.best_reward_first(rollouts)
        case "max_min":
            if most is None or config.cap_per_policy is not None or config.balance_policies:
                most = len(texts)  # policies may need what comes later in the order
            return rules.furthest_first(texts, most)
    return list(range(len(texts)))


def _most(rollouts: list[Rollout], config: SelectionConfig) -> int | None:
    """How many rollouts are kept at most; None: as many as the rule gives.

    A rule that orders all rollouts keeps as many as the paper's would, where there is no cap.
    """
    if config.cap is None and config.rule in ("random", "shortest", "longest", "reward", "max_min"):
        key = _key(config)
        return len({key(rollout.completion) for rollout in rollouts})
    return config.cap


def _key(config: SelectionConfig) -> Key:
    """What makes two rollouts one path."""
    key = KEYS.get(config.rule, path_key)
    return key if config.without_calculations == "one_path" else partial(_key_or_text, key)


def _key_or_text(key: Key, text: str) -> str:
    """The key, or the text itself, marked so that it is no key, where the key is empty."""
    return key(text) or f"\0{text}"


def group_statistics(group: Group) -> dict[str, Any]:
    """Counts for a group, all policies pooled and each alone: {"pooled": {...}, "policies": {...}}.

    Each holds `rollouts`, one count for every verdict, `refused` (correct, but not fit to be read,
    see `readability.py`), `accepted`, `selected`, `distinct_texts` and `distinct_paths` (among
    accepted rollouts), `distinct_paths_with_gold`, which adds the gold solution's path as the
    paper's Table 2 does, `exclusive_paths` (that no other policy found; pooled: that one policy
    alone found) and `covered` (1 where there is an accepted rollout). The two countings of paths
    are never mixed.
    """
    by_policy: dict[str, list[Rollout]] = {}
    for rollout in group.rollouts:
        by_policy.setdefault(rollout.policy, []).append(rollout)
    gold = group.problem.solution
    gold_keys = set() if gold is None else {path_key(gold)}
    # A text that several rollouts share is looked through once.
    key_of = {text: path_key(text) for text in {rollout.completion for rollout in group.accepted}}
    finders = Counter(
        key
        for own in by_policy.values()
        for key in {key_of[rollout.completion] for rollout in own if rollout.is_accepted}
    )
    exclusive = {key for key, count in finders.items() if count == 1}
    return {
        "pooled": _count(group.rollouts, key_of, gold_keys, exclusive),
        "policies": {
            name: _count(own, key_of, gold_keys, exclusive) for name, own in by_policy.items()
        },
    }


def round_statistics(group: Group, round: int, test: TestText | None = None) -> dict[str, Any]:
    """`group_statistics` of one round's own rollouts, and `all_rounds`: of everything so far.

    In round 0 that is the same and left out. With `test` each also holds `contaminated`: those of
    the refused that share words with test problems.
    """
    if round == 0:
        return _with_overlap(group, group_statistics(group), test)
    own = Group(group.problem, [rollout for rollout in group.rollouts if rollout.round == round])
    statistics = _with_overlap(own, group_statistics(own), test)
    pool = _with_overlap(group, group_statistics(group), test)
    return {**statistics, "all_rounds": pool["pooled"]}


def _with_overlap(
    group: Group, statistics: dict[str, Any], test: TestText | None
) -> dict[str, Any]:
    if test is not None:
        statistics["pooled"]["contaminated"] = count_overlap(group.rollouts, test)
        for name, counts in statistics["policies"].items():
            own = [rollout for rollout in group.rollouts if rollout.policy == name]
            counts["contaminated"] = count_overlap(own, test)
    return statistics


def _count(
    rollouts: list[Rollout], key_of: dict[str, str], gold_keys: set[str], exclusive: set[str]
) -> dict[str, int]:
    texts = {rollout.completion for rollout in rollouts if rollout.is_accepted}
    keys = {key_of[text] for text in texts}
    verdicts = [rollout.verdict for rollout in rollouts]
    return {
        "rollouts": len(rollouts),
        **{verdict: verdicts.count(verdict) for verdict in VERDICTS},
        "refused": sum(r.verdict == "correct" and r.reward == 0.0 for r in rollouts),
        "accepted": sum(rollout.is_accepted for rollout in rollouts),
        "covered": int(bool(texts)),
        "distinct_texts": len(texts),
        "distinct_paths": len(keys),
        "distinct_paths_with_gold": len(keys | gold_keys),
        "exclusive_paths": len(keys & exclusive),
        "selected": sum(bool(rollout.selected) for rollout in rollouts),
    }
