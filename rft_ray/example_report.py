"""Section of the report with a few problems to read: kept and rejected rollouts side by side.

Each rollout has the reason of its fate in words, which is `reasons.py`'s.
"""

from collections import Counter
from typing import Any

from rft_ray.page import Html, join, tag
from rft_ray.reasons import reason
from rft_ray.rollout_summary import RolloutSummary
from rft_ray.types import Group

NUM_ROLLOUTS = 3
MAX_CHARS = 2_000


def example_problems(summary: RolloutSummary | None) -> Html:
    """Kept and rejected rollouts of a few problems, side by side."""
    if not summary or not summary.examples:
        return Html("")
    groups = [group for _, group in summary.examples]
    note = (
        f"{len(groups)} of {summary.pool.num_problems:,} problems, drawn by a hash of their id "
        "among those that have both a selected and a rejected rollout, as far as there are any."
    )
    return join([tag("p", note, class_="note"), *map(_example, groups)])


def _example(group: Group) -> Html:
    problem = group.problem
    kept = [i for i, rollout in enumerate(group.rollouts) if rollout.selected]
    others = [i for i, rollout in enumerate(group.rollouts) if not rollout.selected]
    gold = tag("details", tag("summary", "Gold solution"), tag("pre", _shorten(problem.solution)))
    return tag(
        "div",
        tag("h3", f"Problem {problem.id}"),
        tag("pre", _shorten(problem.prompt)),
        tag("p", f"Answer: {_shorten(problem.answer)}"),
        gold if problem.solution is not None else "",
        tag("div", _column("Selected", group, kept),
            _column("Not selected", group, _varied(group, others)), class_="pair"),
        class_="problem",
    )  # fmt: skip


def _varied(group: Group, indices: list[int]) -> list[int]:
    """The same rollouts, the first of each verdict in front."""
    seen: Counter[Any] = Counter()
    front, back = [], []
    for index in indices:
        rollout = group.rollouts[index]
        kind = (rollout.verdict, rollout.is_accepted)
        (back if seen[kind] else front).append(index)
        seen[kind] += 1
    return front + back


def _column(title: str, group: Group, indices: list[int]) -> Html:
    count = f"{title}: {len(indices)}"
    if len(indices) > NUM_ROLLOUTS:
        count += f", of which {NUM_ROLLOUTS} are shown"
    has_rounds = any(rollout.round for rollout in group.rollouts)
    shown = [
        join([_fate(group, i, has_rounds), tag("pre", _shorten(group.rollouts[i].completion))])
        for i in indices[:NUM_ROLLOUTS]
    ]
    return tag("div", tag("h3", count), *shown)


def _fate(group: Group, index: int, has_rounds: bool) -> Html:
    """A line above the text: who wrote it, the verdict, and why it was selected or not."""
    rollout = group.rollouts[index]
    verdict, text = rollout.verdict or "not graded", reason(group, index)
    colour = "good" if verdict == "correct" else "bad"
    # The reason of a rejected rollout opens with its verdict.
    rest = text.removeprefix(verdict) if text.startswith(verdict) else f", {text}"
    where = f"{rollout.policy}, {f'round {rollout.round}, ' if has_rounds else ''}"
    line = f"{where}sample {rollout.sample}: "
    return tag("p", line, tag("b", verdict, class_=colour), rest, class_="meta")


def _shorten(text: Any) -> str:
    text = str(text)
    left_out = len(text) - MAX_CHARS
    return text if left_out <= 0 else f"{text[:MAX_CHARS]}\n\u2026 and {left_out:,} characters more"
