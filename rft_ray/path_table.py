"""What a pool of rollouts holds, as tables on a terminal: any groups file with verdicts will do.

The numbers are `path_sums.py`'s; `path_report.py` has them as parts of the HTML report.
"""

from collections.abc import Iterable, Iterator

from rft_ray.equations import path_key
from rft_ray.errors import InputError, first_words
from rft_ray.path_sums import Curves, PathSums
from rft_ray.selection import group_statistics
from rft_ray.tally import POOLED, Tally
from rft_ray.types import Group

COLUMNS = (
    ("correct", "correct"), ("distinct_texts", "texts"), ("distinct_paths", "paths"),
    ("distinct_paths_with_gold", "with gold"), ("exclusive_paths", "exclusive"),
    ("covered", "coverage"),
)  # fmt: skip
WIDTH = 12
MAX_SETS = 20


def add_group(sums: PathSums, group: Group, rollouts: list[tuple[str, str | None]]) -> None:
    """Count a group's rollouts, given as their policies and paths, beside its gold solution."""
    gold = group.problem.solution
    sums.add(rollouts, None if gold is None else path_key(gold))


def rollout_paths(group: Group) -> list[tuple[str, str | None]]:
    """The policy of every rollout and, where it is accepted, its path."""
    return [
        (r.policy, path_key(r.completion) if r.is_accepted else None) for r in group.rollouts
    ]


def path_tables(groups: Iterable[Group]) -> Iterator[str]:
    """Lines of all tables; InputError where no rollout has a verdict."""
    sums, tally = PathSums(), Tally()
    has_verdicts = False
    for group in groups:
        has_verdicts = has_verdicts or any(r.verdict is not None for r in group.rollouts)
        add_group(sums, group, rollout_paths(group))
        tally.add(group_statistics(group))
    if not has_verdicts:
        raise InputError("no rollout has a verdict: grade the file with `rft-ray verify` first")
    yield f"per problem, means of {sums.num_problems:,} problems"
    yield from _means(tally)
    yield from ["", "distinct paths of accepted rollouts against k, rollouts a policy"]
    yield from _curve_table(sums.curves())
    yield from ["", "the same with the gold solution's path (the paper's Table 2)"]
    yield from _curve_table(sums.curves(sums.with_gold))
    yield from ["", "paths by the policies that found them"]
    yield from _finders(sums)
    if rows := sums.marginal():
        yield from ["", "a policy more against more samples of the others, paths per problem"]
        yield _row("policy", ["k", "pool", "without it", "as many", "its worth"])
        for name, k, pool, less, more in rows:
            values = [pool, less, more, pool - more]
            yield _row(name, [str(k), *(f"{value:.2f}" for value in values)])


def _means(tally: Tally) -> Iterator[str]:
    yield _row("policy", [header for _, header in COLUMNS])
    for name in tally.names():
        yield _row(name, [f"{tally.per_problem(name, key):.2f}" for key, _ in COLUMNS])


def _curve_table(curves: Curves) -> Iterator[str]:
    ks = sorted({k for points in curves.values() for k, _ in points})
    yield _row("k", [f"{k:.0f}" for k in ks])
    for name, points in curves.items():
        means = dict(points)
        yield _row(name, [f"{means[k]:.2f}" if k in means else "" for k in ks])


def _finders(sums: PathSums) -> Iterator[str]:
    total = max(1, sums.finders.total())
    for names, count in sums.finders.most_common(MAX_SETS):
        yield f"{count:10,} {count / total:7.1%}  {first_words(', '.join(names), 80)}"
    if len(sums.finders) > MAX_SETS:
        yield f"{'':18}  and {len(sums.finders) - MAX_SETS} other sets of policies"


def _row(name: str, cells: list[str]) -> str:
    label = "all policies" if name == POOLED else first_words(name, 24)
    return f"{label:24}" + "".join(f"{cell:>{WIDTH}}" for cell in cells)
