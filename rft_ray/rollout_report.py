"""Sections of the report about rollouts: counts of every round, verdicts, paths against samples.

Counts are those of the metrics' select lines, curves those of `rollout_summary.py`.
"""

import math

from rft_ray.page import (
    Html,
    Line,
    bar_panel,
    join,
    legend,
    number,
    round_of,
    show,
    stacked_bar,
    table,
    tag,
)
from rft_ray.path_report import finders, worth
from rft_ray.path_sums import Curves, PathSums
from rft_ray.plots import line_plot
from rft_ray.rollout_summary import RolloutSummary
from rft_ray.types import VERDICTS

# Colours of the page's palette: green for correct, reds and browns for what the policy got wrong.
VERDICT_COLOURS = {"correct": 2, "wrong": 4, "miscalculated": 1, "unparsable": 3, "timeout": 5,
                   "error": 6}  # fmt: skip
NAMES = {"all_rounds": "all rounds"}


def rollout_statistics(rows: list[Line]) -> Html:
    """Means per problem for each policy and pooled, and what the verifier said, of every round."""
    last = max(map(round_of, rows))
    newest = {_name(row): row for row in rows if round_of(row) == last}
    panels = [
        bar_panel(title, {name: _per_problem(row, key) for name, row in newest.items()})
        for title, key in (("Rollouts", "rollouts"), ("Correct", "correct"),
                           ("Distinct paths", "distinct_paths"), ("Selected", "selected"))
    ]  # fmt: skip
    note = (
        "Means over all problems, the unsolved ones included. A path is the ordered list of "
        "calculations of an accepted rollout: right, and not cut off by the token limit. Pooled, "
        "a path counts once, whichever policies found it; exclusive are those that one policy "
        "alone found. Coverage is the share of problems with an accepted rollout."
    )
    if last:
        note += (
            f" Bars are of round {last}. A round's rows count what was sampled in it, and as "
            "selected those of its rollouts that were chosen when it ended, out of the rollouts of "
            "all rounds until then; all rounds is that pool."
        )
    rows = sorted(rows, key=round_of)
    return join(
        [
            tag("p", note, class_="note"),
            tag("div", *panels, class_="panels"),
            _rollout_table(rows),
            tag("h3", "By verdict" + (f", round {last}" if last else "")),
            _verdict_bars(newest),
            _verdict_table(rows),
        ]
    )


def path_curves(summary: RolloutSummary | None) -> Html:
    """The number of paths found against rollouts per policy, the paper's case for sampling more."""
    if summary is None or not summary.pool.curves():
        return Html("")
    own, rounds = summary.round, f"0 to {summary.round}"
    parts = [_curves(
        summary.pool,
        f"Rollouts of rounds {rounds} together" if own else "",
        f"whichever of rounds {rounds} they are from. " if own else "",
    )]  # fmt: skip
    if own:
        parts.insert(0, _curves(summary.own, f"Rollouts of round {own} alone", ""))
    return join(parts)


def _curves(sums: PathSums, title: str, origin: str) -> Html:
    curves = sums.curves()
    if not curves:
        return Html("")
    note = (
        f"Mean over {sums.num_problems:,} problems of the distinct paths among k rollouts of each "
        "policy: the expectation over which k are taken of all it has"
        f"{', ' + origin if origin else '. '}Pooled takes k from every policy."
    )
    plot = line_plot("Distinct paths per problem", "k, rollouts per policy", curves, log_x=True)
    heading = tag("h3", title) if title else ""
    pair = tag("div", plot, _curve_table(curves), class_="pair")
    with_gold = tag(
        "details",
        tag("summary", "The same with the gold solution's path (the paper's Table 2)"),
        _curve_table(sums.curves(sums.with_gold)),
    )
    note = tag("p", note, class_="note")
    return join([heading, note, pair, with_gold, finders(sums), worth(sums)])


def _curve_table(curves: Curves) -> Html:
    ks = sorted({k for points in curves.values() for k, _ in points})
    rows = [
        (f"{k:.0f}", *(f"{dict(points)[k]:.2f}" if k in dict(points) else ""
                       for points in curves.values()))
        for k in ks
    ]  # fmt: skip
    return table(("k", *curves), rows)


def _rollout_table(rows: list[Line]) -> Html:
    keys = ("rollouts", "correct", "distinct_paths", "distinct_paths_with_gold", "exclusive_paths",
            "covered", "selected")  # fmt: skip
    headers = ("per problem", "rollouts", "correct", "distinct paths", "with gold",
               "exclusive", "coverage", "selected",
               "correct share", "selected in all", "problems", "too long")  # fmt: skip
    cells = []
    for row in rows:
        share = number(row, "correct") / (number(row, "rollouts") or math.nan)
        cells.append(
            (
                _name(row),
                *(_two_digits(_per_problem(row, key)) for key in keys),
                f"{share:.1%}" if math.isfinite(share) else "\u2013",
                *(show(row, key, "{:,.0f}") for key in ("selected", "problems", "too_long")),
            )
        )
    return _table_by_round(headers, rows, cells)


def _verdict_bars(rows: dict[str, Line]) -> Html:
    counts = {name: [_verdict_count(row, v) for v in VERDICTS] for name, row in rows.items()}
    if not any(map(any, counts.values())):
        return tag("p", "The metrics have no counts by verdict.", class_="note")
    bars = []
    for name, numbers in counts.items():
        parts = [
            (f"{verdict}: {count:,.0f}", count, VERDICT_COLOURS[verdict])
            for verdict, count in zip(VERDICTS, numbers, strict=True)
        ]
        bars.append(tag("div", tag("span", name, class_="name"), stacked_bar(parts), class_="bar"))
    return join([legend(VERDICTS, VERDICT_COLOURS.values()), *bars])


def _verdict_table(rows: list[Line]) -> Html:
    # correct, but refused by a readability filter or, counted once more, for words of test problems
    names = ("refused", "contaminated")
    refused = [name for name in names if any(_verdict_count(row, name) for row in rows)]
    columns = (*VERDICTS, *refused)
    cells = [
        (_name(row), *(f"{_verdict_count(row, column):,.0f}" for column in columns)) for row in rows
    ]
    return _table_by_round(("rollouts", *columns), rows, cells)


def _table_by_round(
    headers: tuple[str, ...], rows: list[Line], cells: list[tuple[object, ...]]
) -> Html:
    """A table whose rows are named, after their round where there are several."""
    if not any(map(round_of, rows)):
        return table(headers, cells)
    pairs = zip(rows, cells, strict=True)
    with_rounds = [(round_of(row), *own) for row, own in pairs]
    return table(("round", *headers), with_rounds, num_labels=2)


def _name(row: Line) -> str:
    name = str(row.get("policy"))
    return NAMES.get(name, name)


def _verdict_count(row: Line, verdict: str) -> float:
    """A count by the verifier; 0 where the line has none."""
    count = number(row, verdict)
    return count if math.isfinite(count) else 0.0


def _per_problem(row: Line, key: str) -> float:
    return number(row, key) / (number(row, "problems") or math.nan)


def _two_digits(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "\u2013"
