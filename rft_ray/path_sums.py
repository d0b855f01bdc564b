"""Distinct paths against samples from one pool: exact expectations, no sampling again.

Every value is the expectation over which k of each policy's rollouts are taken of all it has,
summed over problems, so neither the order of rollouts nor a draw decides it. A policy with fewer
than k gives all it has. Memory is some sums a policy, and a count for each set of policies.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from math import comb

import numpy as np

from rft_ray.tally import POOLED

KS = (1, 3, 6, 12, 25, 50, 100, 200, 400, 800, 1600, 3200)
"""Those of the paper's Table 2, and on."""
ALL = 1_000_000_000

Curves = dict[str, list[tuple[float, ...]]]


@dataclass(slots=True)
class PathSums:
    """Sums over problems, at each k of KS and at all rollouts, by policy and pooled.

    `alone` counts the paths of accepted rollouts, `with_gold` those and the gold solution's (the
    paper's Table 2). `without` has the pool less one policy, `matched` the same with as many
    samples as the whole pool: k * P / (P - 1) of each other policy, where there are P. `finders`
    counts paths by the set of policies that found them (the paper's Venn diagram).
    """

    num_problems: int = 0
    alone: dict[str, np.ndarray] = field(default_factory=dict)
    with_gold: dict[str, np.ndarray] = field(default_factory=dict)
    without: dict[str, np.ndarray] = field(default_factory=dict)
    matched: dict[str, np.ndarray] = field(default_factory=dict)
    finders: Counter[tuple[str, ...]] = field(default_factory=Counter)
    most_rollouts: Counter[str] = field(default_factory=Counter)

    def add(self, rollouts: list[tuple[str, str | None]], gold: str | None = None) -> None:
        """Count a problem's rollouts, each as its policy and, where it is accepted, its path.

        `gold` is the gold solution's path, where there is one.
        """
        self.num_problems += 1
        sizes = Counter(policy for policy, _ in rollouts)
        self.most_rollouts |= sizes
        if not sizes:
            return
        hits: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for policy, path in rollouts:
            if path is not None:
                hits[path][policy] += 1
        self.finders.update(tuple(sorted(found)) for found in hits.values())
        missed = missing_chances(hits.values(), sizes, (*KS, ALL))
        others = [row for row, path in enumerate(hits) if path != gold]
        for index, name in enumerate(sizes):
            _add(self.alone, name, found_paths(missed[:, [index]]))
            own = found_paths(missed[others][:, [index]])
            _add(self.with_gold, name, own + (gold is not None))
        _add(self.alone, POOLED, found_paths(missed))
        _add(self.with_gold, POOLED, found_paths(missed[others]) + (gold is not None))
        if len(sizes) > 1:
            self._add_without(hits.values(), sizes, missed)

    def _add_without(
        self, hits: Iterable[Counter[str]], sizes: Counter[str], missed: np.ndarray
    ) -> None:
        wholes, rests = zip(*(divmod(k * len(sizes), len(sizes) - 1) for k in KS), strict=True)
        fewer = missing_chances(hits, sizes, (*wholes, ALL))
        more = missing_chances(hits, sizes, (*(whole + 1 for whole in wholes), ALL))
        # Samples are whole: a share of the draws takes one more, so that the mean is right.
        part = np.array([*rests, 0]) / (len(sizes) - 1)
        for index, name in enumerate(sizes):
            _add(self.without, name, found_paths(np.delete(missed, index, axis=1)))
            low, high = (found_paths(np.delete(m, index, axis=1)) for m in (fewer, more))
            _add(self.matched, name, (1 - part) * low + part * high)

    def curves(self, sums: dict[str, np.ndarray] | None = None) -> Curves:
        """By policy and pooled: (k, mean of a problem at k rollouts a policy).

        Of `alone`, or of the sums that are given. The last point is at all rollouts.
        """
        sums = self.alone if sums is None else sums
        largest = max(self.most_rollouts.values(), default=0)
        curves: Curves = {}
        for name in [*(name for name in sums if name != POOLED), POOLED]:
            most = largest if name == POOLED else self.most_rollouts[name]
            if name in sums and most:
                means = (sums[name] / self.num_problems).tolist()
                points = [(k, mean) for k, mean in zip(KS, means, strict=False) if k < most]
                curves[name] = [*points, (most, means[-1])]
        return curves

    def marginal(self) -> list[tuple[str, int, float, float, float]]:
        """(policy, k, pool, pool without it, that with as many samples as the pool), per problem.

        At each k that leaves the other policies enough rollouts to be given more.
        """
        rows = []
        for name, sums in self.without.items():
            rest = [count for other, count in self.most_rollouts.items() if other != name]
            for index, k in enumerate(KS):
                if k * (len(rest) + 1) <= min(rest) * len(rest) and k <= self.most_rollouts[name]:
                    values = (self.alone[POOLED], sums, self.matched[name])
                    pool, less, more = (float(v[index]) / self.num_problems for v in values)
                    rows.append((name, k, pool, less, more))
        return rows

    def exclusive(self, name: str) -> int:
        """Paths that one policy alone found."""
        return self.finders[(name,)]


def _add(sums: dict[str, np.ndarray], name: str, values: np.ndarray) -> None:
    sums[name] = sums[name] + values if name in sums else values


def found_paths(missed: np.ndarray) -> np.ndarray:
    """Expected number of paths found, from each policy's chance to miss each: (paths, P, ks)."""
    return (1.0 - missed.prod(axis=1)).sum(axis=0)


def missing_chances(
    hits: Iterable[Counter[str]], sizes: Counter[str], ks: tuple[int, ...]
) -> np.ndarray:
    """Chance that k rollouts of a policy hold none of a path's: (paths, policies, ks).

    A path is given as its number of accepted rollouts by policy; `sizes` has all rollouts.
    """
    chances = [[missing_curve(sizes[name], path[name], ks) for name in sizes] for path in hits]
    return np.array(chances).reshape(len(chances), len(sizes), len(ks))


@lru_cache(maxsize=65_536)
def missing_curve(total: int, hits: int, ks: tuple[int, ...]) -> tuple[float, ...]:
    """Chance that k of `total` rollouts, drawn at random, hold none of `hits`, for each k.

    (4, 1, (1, 2, 9)) -> (0.75, 0.5, 0.0)
    """
    sizes = [min(k, total) for k in ks]
    return tuple(comb(total - hits, size) / comb(total, size) for size in sizes)
