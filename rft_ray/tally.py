"""Counting what became of the rollouts, per policy and pooled, as the stream delivers groups.

Memory is a few counters per policy however many groups pass. The two ways of counting distinct
paths (among rollouts; with the gold solution, as the paper's Table 2) stay apart by name.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rft_ray.types import VERDICTS

POOLED = "pooled"
ALL_ROUNDS = "all_rounds"


@dataclass(slots=True)
class Tally:
    """Sums over problems of the per-group counts of `selection.round_statistics`.

    `pooled` is what all policies found in the round, `all_rounds` what they have found so far.
    """

    num_problems: int = 0
    num_solved: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    num_sampled: Counter[str] = field(default_factory=Counter)
    """Problems with rollouts; a policy without any found the problem too long, if it was asked."""
    num_unasked: int = 0
    """Problems that a round's budget asked nothing of, as they had enough."""

    @classmethod
    def of(cls, policies: Iterable[str]) -> "Tally":
        """A tally that names these policies whatever they sampled."""
        return cls(counts={name: Counter() for name in policies})

    def add(self, statistics: dict[str, Any]) -> None:
        """Count one group; a policy without rollouts is null in it, or not there."""
        self.num_problems += 1
        everything = statistics.get(ALL_ROUNDS, statistics[POOLED])
        self.num_solved += everything["accepted"] > 0
        sums = {key: statistics[key] for key in (POOLED, ALL_ROUNDS) if key in statistics}
        for name, counts in {**statistics["policies"], **sums}.items():
            total = self.counts.setdefault(name, Counter())
            if counts is not None and counts["rollouts"]:
                self.num_sampled[name] += 1
                total.update(counts)

    @property
    def selected(self) -> int:
        """Rollouts that the target will be trained on."""
        sums = self.counts.get(ALL_ROUNDS) or self.counts.get(POOLED) or Counter()
        return sums["selected"]

    def too_long(self, name: str) -> int:
        """Problems that a policy has no rollouts of, as they exceed its context."""
        num_unasked = 0 if name == ALL_ROUNDS else self.num_unasked
        return self.num_problems - num_unasked - self.num_sampled[name]

    def per_problem(self, name: str, count: str) -> float:
        """Mean of a count over all problems, the unsolved ones included."""
        return self.counts[name][count] / max(1, self.num_problems)

    def row(self, name: str) -> dict[str, Any]:
        """Everything counted for one policy, or for `pooled`."""
        counts = self.counts[name]
        return {
            **dict.fromkeys(self.counts.get(POOLED, ()), 0),
            **counts,
            "problems": self.num_problems,
            "solved": self.num_solved,
            "too_long": self.too_long(name),
            "correct_per_problem": self.per_problem(name, "correct"),
            "distinct_paths_per_problem": self.per_problem(name, "distinct_paths"),
            "distinct_paths_with_gold_per_problem": self.per_problem(
                name, "distinct_paths_with_gold"
            ),
        }

    def verdicts(self, name: str) -> dict[str, int]:
        """Rollouts by verdict, and those of the correct that a filter refused."""
        return {verdict: self.counts[name][verdict] for verdict in (*VERDICTS, "refused")}

    def names(self) -> list[str]:
        """The policies in order of appearance, then `pooled` and, after round 0, `all_rounds`."""
        sums = [name for name in (POOLED, ALL_ROUNDS) if name in self.counts]
        return [name for name in self.counts if name not in sums] + sums


def counts_table(rows: list[dict[str, Any]]) -> str:
    """Rollouts, correct, distinct paths and selected per problem, from lines of kind `select`.

    Per policy and pooled, for every round, and over all rounds from the second on.
    """
    columns = ("rollouts", "correct", "distinct_paths", "selected")
    names = [row["policy"] for row in rows if row["policy"] != ALL_ROUNDS]
    width = max(16, *(len(name) for name in names))
    header = f"{'policy':{width}} {'round':>5} {'rollouts':>9} {'correct':>9} {'distinct':>9}"
    lines = [f"{header} {'selected':>9}   (per problem)"]
    for row in rows:
        name = "all rounds" if row["policy"] == ALL_ROUNDS else row["policy"]
        means = [row.get(column, 0) / max(1, row["problems"]) for column in columns]
        shown = " ".join(f"{mean:9.2f}" for mean in means)
        lines.append(f"{name:{width}} {row['round']:5d} {shown}")
    last = rows[-1]
    solved = f"{last['solved']} of {last['problems']}"
    return "\n".join([*lines, f"problems with at least one accepted rollout: {solved}"])
