"""Other ways to choose among a problem's accepted rollouts than the paper's, as pure functions.

Each gives positions in order of preference; how many of them are kept is `selection.py`'s. Every
tie goes to the earlier rollout, so the order of the group decides and nothing else. Left out: rules
over several problems, since a cap per problem balances them in a stream.
"""

import hashlib
import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence

from rapidfuzz.distance.Levenshtein import distance

from rft_ray.types import Rollout


def different_texts(texts: Sequence[str]) -> list[int]:
    """The first rollout of every text, in order: ["a", "b", "a"] -> [0, 1]."""
    first: dict[str, int] = {}
    for position, text in enumerate(texts):
        first.setdefault(text, position)
    return list(first.values())


def shortest_first(texts: Sequence[str]) -> list[int]:
    """Different texts, the shortest first (characters)."""
    return sorted(different_texts(texts), key=lambda position: len(texts[position]))


def longest_first(texts: Sequence[str]) -> list[int]:
    """Different texts, the longest first (characters)."""
    return sorted(different_texts(texts), key=lambda position: -len(texts[position]))


def best_reward_first(rollouts: Sequence[Rollout]) -> list[int]:
    """Different texts, the highest reward first; one without a reward goes last."""

    def loss(position: int) -> float:
        reward = rollouts[position].reward
        return math.inf if reward is None else -reward

    best: dict[str, int] = {}
    for position in sorted(range(len(rollouts)), key=loss):
        best.setdefault(rollouts[position].completion, position)
    return list(best.values())


def random_order(count: int, problem_id: str, seed: int) -> list[int]:
    """All positions in an order that the seed and the problem's id decide, on any machine."""
    return seeded(problem_id, seed).sample(range(count), count)


def seeded(problem_id: str, seed: int) -> random.Random:
    """A generator of its own for a problem."""
    identity = f"{seed}\x1f{problem_id}".encode("utf-8", "surrogatepass")
    return random.Random(hashlib.sha256(identity).digest())


def furthest_first(texts: Sequence[str], most: int) -> list[int]:
    """The first text, then each time the one furthest from the nearest chosen, at most `most`.

    Distances are character Levenshtein (Gonzalez 1985, greedy k-centre: at least half of the best
    possible smallest distance).
    """
    chosen = list(range(min(1, most, len(texts))))
    nearest = [math.inf] * len(texts)
    while chosen and len(chosen) < most:
        newest = texts[chosen[-1]]
        nearest = [
            near and min(near, distance(newest, text))
            for near, text in zip(nearest, texts, strict=True)
        ]
        furthest = max(range(len(texts)), key=nearest.__getitem__)
        if not nearest[furthest]:
            break
        chosen.append(furthest)
    return chosen


def in_turn(positions: Iterable[int], policies: Sequence[str]) -> list[int]:
    """The same positions, one of each policy in turn, each policy's in the order they had."""
    queues: defaultdict[str, deque[int]] = defaultdict(deque)
    for position in positions:
        queues[policies[position]].append(position)
    turns = []
    while queues:
        for name in list(queues):
            turns.append(queues[name].popleft())
            if not queues[name]:
                del queues[name]
    return turns


def within_share(positions: Iterable[int], policies: Sequence[str], share: int) -> list[int]:
    """The same positions without those that go beyond `share` of their policy."""
    taken: Counter[str] = Counter()
    kept = []
    for position in positions:
        taken[policies[position]] += 1
        if taken[policies[position]] <= share:
            kept.append(position)
    return kept
