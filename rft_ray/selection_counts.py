"""`rft-ray select` as a stream: choose group by group, count per policy and pooled, and print.

Memory is a few counters per policy, besides the words of the test problems where there are any.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rft_ray.config_sections import SelectionConfig
from rft_ray.decontamination import TestText, contaminated_rollouts
from rft_ray.errors import InputError, one_line
from rft_ray.selection import group_statistics, select_group
from rft_ray.types import VERDICTS, Group

COLUMNS = (
    "rollouts", "correct", "accepted", "distinct_texts", "distinct_paths",
    "distinct_paths_with_gold", "exclusive_paths", "covered", "selected",
)  # fmt: skip
WIDTH = 14
HEADERS = {"distinct_paths_with_gold": "with_gold"}


@dataclass(slots=True)
class SelectionCounts:
    """Sums over the groups that were selected so far."""

    pooled: Counter[str] = field(default_factory=Counter)
    policies: dict[str, Counter[str]] = field(default_factory=dict)
    contaminated: Counter[str] = field(default_factory=Counter)

    def add(self, group: Group) -> None:
        """Count a selected group."""
        statistics = group_statistics(group)
        self.pooled.update(statistics["pooled"])
        for name, row in statistics["policies"].items():
            self.policies.setdefault(name, Counter()).update(row)

    def table(self) -> Iterator[str]:
        """Lines with a row for each policy and one for all of them."""
        yield " ".join(f"{HEADERS.get(column, column):>{WIDTH}}" for column in COLUMNS)
        for name, row in [*self.policies.items(), ("(all)", self.pooled)]:
            yield " ".join([*(f"{row[column]:{WIDTH}d}" for column in COLUMNS), "", one_line(name)])


def select_each(
    groups: Iterable[Group],
    config: SelectionConfig,
    counts: SelectionCounts,
    test: TestText | None = None,
) -> Iterator[Group]:
    """Each group with `selected` filled in, counted in `counts`.

    What overlaps with `test` is not selected. Raises InputError at the end where no rollout had a
    verdict, so that nothing is written.
    """
    for group in groups:
        left_out: frozenset[int] = frozenset()
        if test is not None:
            left_out = contaminated_rollouts(group, test, counts.contaminated)
        chosen = select_group(group, config, left_out)
        counts.add(chosen)
        yield chosen
    if not any(counts.pooled[verdict] for verdict in VERDICTS):
        raise InputError("no rollout has a verdict: grade the file with `rft-ray verify` first")
