"""Counting what became of the rollouts, per policy and pooled, as the stream delivers groups.

Memory is a few counters per policy however many groups pass. The two ways of counting distinct
paths (among rollouts; with the gold solution, as the paper's Table 2) stay apart by name.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rft_ray.types import VERDICTS

POOLED = "pooled"


@dataclass(slots=True)
class Tally:
    """Sums over problems of the per-group counts of `selection.group_statistics`."""

    num_problems: int = 0
    num_solved: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    too_long: Counter[str] = field(default_factory=Counter)

    def add(self, statistics: dict[str, Any]) -> None:
        """Count one group; a policy without rollouts found the problem too long."""
        self.num_problems += 1
        self.num_solved += statistics[POOLED]["accepted"] > 0
        for name, counts in [(POOLED, statistics[POOLED]), *statistics["policies"].items()]:
            total = self.counts.setdefault(name, Counter())
            if counts is None or counts["rollouts"] == 0:
                self.too_long[name] += 1
            else:
                total.update(counts)

    @property
    def selected(self) -> int:
        """Rollouts that the target will be trained on."""
        return self.counts.get(POOLED, Counter())["selected"]

    def per_problem(self, name: str, count: str) -> float:
        """Mean of a count over all problems, the unsolved ones included."""
        return self.counts[name][count] / max(1, self.num_problems)

    def row(self, name: str) -> dict[str, Any]:
        """Everything counted for one policy, or for `pooled`."""
        counts = self.counts[name]
        return {
            **counts,
            "problems": self.num_problems,
            "too_long": self.too_long[name],
            "correct_per_problem": self.per_problem(name, "correct"),
            "distinct_paths_per_problem": self.per_problem(name, "distinct_paths"),
            "distinct_paths_with_gold_per_problem": self.per_problem(
                name, "distinct_paths_with_gold"
            ),
        }

    def verdicts(self, name: str) -> dict[str, int]:
        """Rollouts by verdict."""
        return {verdict: self.counts[name][verdict] for verdict in VERDICTS}

    def names(self) -> list[str]:
        """The policies in order of appearance, then `pooled`."""
        return [name for name in self.counts if name != POOLED] + [POOLED]

    def table(self) -> str:
        """Rollouts, correct and distinct paths per problem, per policy and pooled."""
        lines = [
            f"{'':16} {'rollouts':>9} {'correct':>9} {'distinct':>9} {'selected':>9}"
            "   (per problem)"
        ]
        for name in self.names():
            values = [
                self.per_problem(name, count)
                for count in ("rollouts", "correct", "distinct_paths", "selected")
            ]
            lines.append(f"{name:16} " + " ".join(f"{value:9.2f}" for value in values))
        lines.append(f"problems with at least one accepted rollout: {self.num_solved}"
                     f" of {self.num_problems}")
        return "\n".join(lines)
