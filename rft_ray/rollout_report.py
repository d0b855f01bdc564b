"""Sections of the report about rollouts: counts, paths against samples, and six problems to read.

The selected groups are streamed through once, without token ids; memory is a few groups and some
sums. Distinct paths against k are exact expectations over which k of a policy's rollouts are
taken, so the curve does not depend on the order they were sampled in.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq

from rft_ray.errors import InputError
from rft_ray.plots import (
    Html,
    Line,
    Series,
    bar_panel,
    join,
    legend,
    line_plot,
    number,
    show,
    stacked_bar,
    table,
    tag,
)
from rft_ray.records import row_to_group
from rft_ray.selection import path_key
from rft_ray.tally import POOLED
from rft_ray.types import VERDICTS, Group, Rollout

READ_ROWS = 16
# Colours of the page's palette: green for correct, reds and browns for what the policy got wrong.
VERDICT_COLOURS = {"correct": 2, "wrong": 4, "miscalculated": 1, "unparsable": 3, "timeout": 5,
                   "error": 6}  # fmt: skip
UNREAD = {"token_ids", "logprobs"}
DOUBLINGS = 16
NUM_EXAMPLES = 6
NUM_ROLLOUTS = 3
MAX_CHARS = 2_000


@dataclass(slots=True)
class RolloutSummary:
    """What is kept of a round's groups: sums for the path curves, and a few whole groups."""

    num_problems: int = 0
    # By policy: distinct paths among 1, 2, 4, ... rollouts, summed over problems.
    path_sums: dict[str, list[float]] = field(default_factory=dict)
    most_rollouts: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[tuple[bool, int, str], Group]] = field(default_factory=list)

    def add(self, group: Group) -> None:
        """Count a group; it is kept as an example while no better one is known."""
        self.num_problems += 1
        sizes = Counter(rollout.policy for rollout in group.rollouts)
        self.most_rollouts |= sizes
        paths: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for rollout in group.accepted:
            paths[path_key(rollout.completion)][rollout.policy] += 1
        for name in [*sizes, POOLED]:
            of = sizes if name == POOLED else Counter({name: sizes[name]})
            sums = self.path_sums.setdefault(name, [0.0] * DOUBLINGS)
            expected = 0.0
            for power in range(DOUBLINGS):
                # From all of a policy's rollouts on, the number of paths stays what it is.
                if power == 0 or 2 ** (power - 1) < max(of.values(), default=0):
                    expected = expected_paths(paths.values(), of, 2**power)
                sums[power] += expected
        # Problems that show both outcomes first, then by a hash: the same six whatever the order
        # in which the stream delivered them.
        has_both = bool(group.selected) and len(group.accepted) < len(group.rollouts)
        rank = (not has_both, crc32(group.problem.id.encode("utf-8", "replace")), group.problem.id)
        if len(self.examples) < NUM_EXAMPLES or rank < self.examples[-1][0]:
            self.examples.append((rank, group))
            self.examples.sort(key=lambda example: example[0])
            del self.examples[NUM_EXAMPLES:]

    def curves(self) -> Series:
        """By policy and pooled: (k, mean distinct paths of a problem among k rollouts a policy)."""
        largest = max(self.most_rollouts.values(), default=0)
        curves: Series = {}
        for name in [*(name for name in self.path_sums if name != POOLED), POOLED]:
            most = largest if name == POOLED else self.most_rollouts[name]
            if name in self.path_sums and most:
                means = [total / self.num_problems for total in self.path_sums[name]]
                # Beyond the number of rollouts the sums are those of all rollouts.
                powers = [power for power in range(DOUBLINGS) if 2**power <= 0.75 * most]
                last = min(DOUBLINGS - 1, math.ceil(math.log2(most)))
                curves[name] = [(2**p, means[p]) for p in powers] + [(most, means[last])]
        return curves


def expected_paths(paths: Iterable[Counter[str]], sizes: Counter[str], k: int) -> float:
    """Expected number of distinct paths among k rollouts drawn from each policy of `sizes`.

    A path is given as its number of accepted rollouts by policy; `sizes` has all rollouts. A policy
    that has fewer than k gives all it has.
    """
    return sum(
        1.0 - math.prod(missing_chance(sizes[name], path[name], k) for name in sizes)
        for path in paths
    )


@lru_cache(maxsize=65_536)
def missing_chance(total: int, hits: int, k: int) -> float:
    """Chance that k of `total` rollouts, drawn at random, hold none of `hits`: (4, 1, 2) -> 0.5."""
    k = min(k, total)
    return math.comb(total - hits, k) / math.comb(total, k)


def read_rollouts(folder: Path) -> RolloutSummary:
    """Stream the groups of a folder of Parquet files; InputError names a file that is torn."""
    summary = RolloutSummary()
    for file in sorted(folder.glob("*.parquet")):
        for group in _read_file(file):
            summary.add(group)
    return summary


def _read_file(path: Path) -> Iterator[Group]:
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            leaves = [file.schema.column(i).path for i in range(len(file.schema.names))]
            columns = [leaf for leaf in leaves if not UNREAD & set(leaf.split("."))]
            for batch in file.iter_batches(READ_ROWS, columns=columns):
                for row in batch.to_pylist():
                    yield row_to_group(row)
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: not a readable groups file: {reason}") from None


def rollout_statistics(rows: list[Line]) -> Html:
    """Means per problem for each policy and pooled, and what the verifier said."""
    names = [str(row.get("policy")) for row in rows]
    panels = [
        bar_panel(title, dict(zip(names, (_per_problem(row, key) for row in rows), strict=True)))
        for title, key in (("Rollouts", "rollouts"), ("Correct", "correct"),
                           ("Distinct paths", "distinct_paths"), ("Selected", "selected"))
    ]  # fmt: skip
    note = (
        "Means over all problems, the unsolved ones included. A path is the ordered list of "
        "calculations of an accepted rollout: right, and not cut off by the token limit. Pooled, "
        "a path counts once, whichever policies found it."
    )
    return join(
        [
            tag("p", note, class_="note"),
            tag("div", *panels, class_="panels"),
            _rollout_table(rows),
            tag("h3", "By verdict"),
            _verdicts(rows),
        ]
    )


def path_curves(summary: RolloutSummary | None) -> Html:
    """The number of paths found against rollouts per policy, the paper's case for sampling more."""
    curves = summary.curves() if summary else {}
    if not curves:
        return Html("")
    note = (
        f"Mean over {summary.num_problems:,} problems of the distinct paths among k rollouts of "
        "each policy: the expectation over which k are taken. Pooled takes k from every policy."
    )
    plot = line_plot("Distinct paths per problem", "k, rollouts per policy", curves, log_x=True)
    ks = sorted({k for points in curves.values() for k, _ in points})
    rows = [
        (name, *(f"{dict(points)[k]:.2f}" if k in dict(points) else "" for k in ks))
        for name, points in curves.items()
    ]
    return join(
        [
            tag("p", note, class_="note"),
            tag("div", plot, table(("k", *(f"{k:.0f}" for k in ks)), rows), class_="pair"),
        ]
    )


def example_problems(summary: RolloutSummary | None) -> Html:
    """Kept and rejected rollouts of a few problems, side by side."""
    if not summary or not summary.examples:
        return Html("")
    groups = [group for _, group in summary.examples]
    note = (
        f"{len(groups)} of {summary.num_problems:,} problems, drawn by a hash of their id among "
        "those that have both a selected and a rejected rollout, as far as there are any."
    )
    return join([tag("p", note, class_="note"), *map(_example, groups)])


def _example(group: Group) -> Html:
    kept = group.selected
    others = [rollout for rollout in group.rollouts if not rollout.selected]
    problem = group.problem
    gold = tag("details", tag("summary", "Gold solution"), tag("pre", _shorten(problem.solution)))
    return tag(
        "div",
        tag("h3", f"Problem {problem.id}"),
        tag("pre", _shorten(problem.prompt)),
        tag("p", f"Answer: {_shorten(problem.answer)}"),
        gold if problem.solution is not None else "",
        tag("div", _column("Selected", kept), _column("Not selected", _varied(others)),
            class_="pair"),
        class_="problem",
    )  # fmt: skip


def _varied(rollouts: list[Rollout]) -> list[Rollout]:
    """The same rollouts, the first of each verdict in front."""
    seen: Counter[str | None] = Counter()
    front, back = [], []
    for rollout in rollouts:
        (back if seen[rollout.verdict] else front).append(rollout)
        seen[rollout.verdict] += 1
    return front + back


def _column(title: str, rollouts: list[Rollout]) -> Html:
    count = f"{title}: {len(rollouts)}"
    if len(rollouts) > NUM_ROLLOUTS:
        count += f", of which {NUM_ROLLOUTS} are shown"
    shown = [
        join([_fate(rollout), tag("pre", _shorten(rollout.completion))])
        for rollout in rollouts[:NUM_ROLLOUTS]
    ]
    return tag("div", tag("h3", count), *shown)


def _fate(rollout: Rollout) -> Html:
    """A line above the text: who wrote it, the verdict, and whether it was selected."""
    if rollout.selected:
        outcome = "selected"
    elif rollout.is_accepted:
        outcome = "not selected: another text stands for its path"
    elif rollout.verdict == "correct":
        outcome = "not selected: cut off by the token limit"
    else:
        outcome = "not selected"
    colour = "good" if rollout.verdict == "correct" else "bad"
    verdict = tag("b", rollout.verdict or "not graded", class_=colour)
    where = f"{rollout.policy}, sample {rollout.sample}: "
    return tag("p", where, verdict, f", {outcome}", class_="meta")


def _shorten(text: Any) -> str:
    text = str(text)
    left_out = len(text) - MAX_CHARS
    return text if left_out <= 0 else f"{text[:MAX_CHARS]}\n\u2026 and {left_out:,} characters more"


def _rollout_table(rows: list[Line]) -> Html:
    keys = ("rollouts", "correct", "distinct_paths", "distinct_paths_with_gold", "selected")
    headers = ("per problem", "rollouts", "correct", "distinct paths", "with gold", "selected",
               "correct share", "selected in all", "problems", "too long")  # fmt: skip
    cells = []
    for row in rows:
        share = number(row, "correct") / (number(row, "rollouts") or math.nan)
        cells.append(
            (
                row.get("policy"),
                *(_two_digits(_per_problem(row, key)) for key in keys),
                f"{share:.1%}" if math.isfinite(share) else "\u2013",
                *(show(row, key, "{:,.0f}") for key in ("selected", "problems", "too_long")),
            )
        )
    return table(headers, cells)


def _verdicts(rows: list[Line]) -> Html:
    counts = {str(row.get("policy")): [_verdict_count(row, v) for v in VERDICTS] for row in rows}
    if not any(map(any, counts.values())):
        return tag("p", "The metrics have no counts by verdict.", class_="note")
    bars = []
    for name, numbers in counts.items():
        parts = [
            (f"{verdict}: {count:,.0f}", count, VERDICT_COLOURS[verdict])
            for verdict, count in zip(VERDICTS, numbers, strict=True)
        ]
        bars.append(tag("div", tag("span", name, class_="name"), stacked_bar(parts), class_="bar"))
    cells = [(name, *(f"{count:,.0f}" for count in numbers)) for name, numbers in counts.items()]
    key = legend(VERDICTS, VERDICT_COLOURS.values())
    return join([key, *bars, table(("rollouts", *VERDICTS), cells)])


def _verdict_count(row: Line, verdict: str) -> float:
    """A count under the verdict's own name or `verdict_NAME`; 0 where there is none."""
    counts = [number(row, key) for key in (f"verdict_{verdict}", verdict)]
    return next((count for count in counts if math.isfinite(count)), 0.0)


def _per_problem(row: Line, key: str) -> float:
    return number(row, key) / (number(row, "problems") or math.nan)


def _two_digits(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "\u2013"
