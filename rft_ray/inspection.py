"""Looking at rollouts on a terminal: a table of problems, or one problem with all it got.

Groups are streamed; the table keeps a few lines and counters. What models and
users wrote cannot drive the terminal: control characters are replaced and a name stays on its line.
Left out: colours and paging, which `less` does.
"""

import difflib
import heapq
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rft_ray.errors import InputError, first_words, one_line
from rft_ray.reasons import reason_class, reasons
from rft_ray.selection import group_statistics
from rft_ray.types import Group, Rollout

MAX_PROBLEMS = 40
MAX_TEXT_CHARS = 2_000
MAX_ID_CHARS = 40
MAX_PROMPT_CHARS = 48
NUM_NEAREST = 3
COLUMNS = ("rollouts", "correct", "distinct_paths", "selected")
INDENT = "    "


@dataclass(frozen=True, slots=True)
class ProblemLine:
    """A problem as the table shows it."""

    id: str
    prompt: str
    accepted: int
    counts: dict[str, int]


def problem_table(groups: Iterable[Group]) -> Iterator[str]:
    """Lines of a table of problems, those with the fewest accepted rollouts first, and totals."""
    classes: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    lines = heapq.nsmallest(
        MAX_PROBLEMS, _problem_lines(groups, classes, totals), key=lambda line: line.accepted
    )
    width = max([len("problem"), *(len(line.id) for line in lines)])
    headers = "".join(f"{column.replace('_', ' '):>16}" for column in COLUMNS)
    yield f"{'problem':{width}}{headers}  prompt"
    for line in lines:
        numbers = "".join(f"{line.counts[column]:16d}" for column in COLUMNS)
        yield f"{line.id:{width}}{numbers}  {line.prompt}"
    yield ""
    if totals["problems"] > len(lines):
        yield (
            f"the {len(lines)} of {totals['problems']:,} problems with the fewest accepted "
            "rollouts; any other: --problem ID"
        )
    solved = totals["solved"]
    yield f"{solved:,} of {totals['problems']:,} problems have an accepted rollout"
    yield f"{classes.total():,} rollouts:"
    for name, count in classes.most_common():
        yield f"{count:10,}  {name}"


def describe_problem(group: Group) -> Iterator[str]:
    """Lines on one problem: prompt, answer and gold solution, then every rollout and its reason."""
    problem = group.problem
    yield f"problem {one_line(problem.id)}"
    if problem.source:
        yield f"source: {one_line(problem.source)}"
    yield from ["prompt:", *_indented(problem.prompt)]
    yield f"answer: {first_words(problem.answer, MAX_TEXT_CHARS)}"
    if problem.solution is None:
        yield "gold solution: none"
    else:
        yield from ["gold solution:", *_indented(problem.solution)]
    yield f"{len(group.rollouts)} rollouts, {len(group.selected)} selected"
    for rollout, why in zip(group.rollouts, reasons(group), strict=True):
        yield from ["", f"{_title(rollout, why)}: {why}", *_indented(rollout.completion)]


def find_problem(groups: Iterable[Group], problem_id: str, source: str | Path) -> Group:
    """The group of a problem; InputError with the nearest ids where there is none of that id."""
    ids = []
    for group in groups:
        if group.problem.id == problem_id:
            return group
        ids.append(group.problem.id[:MAX_TEXT_CHARS])
    near = difflib.get_close_matches(problem_id[:MAX_TEXT_CHARS], ids, NUM_NEAREST, cutoff=0.4)
    names = ", ".join(repr(first_words(name, MAX_ID_CHARS)) for name in near or ids[:NUM_NEAREST])
    hint = f"nearest: {names}" if near else f"there are: {names}"
    raise InputError(f"{source}: no problem {problem_id[:MAX_ID_CHARS]!r}; {hint}")


def show(lines: Iterable[str]) -> None:
    """Print lines as they come, whatever standard output can encode."""
    encoding = sys.stdout.encoding or "utf-8"
    for line in lines:
        print(line.encode(encoding, "replace").decode(encoding))


def _problem_lines(
    groups: Iterable[Group], classes: Counter[str], totals: Counter[str]
) -> Iterator[ProblemLine]:
    for group in groups:
        counts = group_statistics(group)["pooled"]
        classes.update(map(reason_class, reasons(group)))
        totals.update(problems=1, solved=counts["accepted"] > 0)
        yield ProblemLine(
            id=one_line(group.problem.id, MAX_ID_CHARS),
            prompt=first_words(group.problem.prompt, MAX_PROMPT_CHARS),
            accepted=counts["accepted"],
            counts={column: counts[column] for column in COLUMNS},
        )


def _title(rollout: Rollout, why: str) -> str:
    """Whose rollout it is and its verdict, unless the reason begins with that."""
    name = first_words(rollout.policy, MAX_ID_CHARS)
    title = f"{name}, round {rollout.round}, sample {rollout.sample}"
    if rollout.verdict is None or why.startswith(rollout.verdict):
        return title
    return f"{title}, {rollout.verdict}"


def _indented(text: str) -> Iterator[str]:
    """The lines of a text, each safe to show; a long text is cut, and says so."""
    left_out = len(text) - MAX_TEXT_CHARS
    for line in text[:MAX_TEXT_CHARS].replace("\r\n", "\n").split("\n"):
        yield (INDENT + one_line(line.expandtabs(4))).rstrip()
    if left_out > 0:
        yield f"{INDENT}\u2026 and {left_out:,} characters more"
