"""Problems without a gold answer: the answer that most rollouts give stands in for it.

A candidate is a final answer as a rollout wrote it; the grader itself says which rollouts agree
with it, so "1/2" and "0.5" vote together wherever it takes them for equal. Without a majority
nothing is known about any rollout. Left out: votes weighted by reward.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rft_ray.stated_answers import final_answer
from rft_ray.types import Group, Verdict

MAX_CANDIDATES = 8
MAX_CANDIDATE_CHARS = 200
VOTES = ("correct", "miscalculated")

Grade = Callable[[Sequence[tuple[str, str]]], list[Verdict]]


def elect_answers(
    groups: Sequence[Group], grade: Grade, share: float, max_chars: int
) -> list[str | None]:
    """The answer to grade every group against: its own, or where that is blank the elected one.

    More than `share` of all its rollouts must give an answer, else it is None. Rollouts longer
    than `max_chars` have no vote.
    """
    candidates = [
        [] if group.problem.answer.strip() else find_candidates(group, max_chars)
        for group in groups
    ]
    pairs = [
        (rollout.completion, candidate)
        for group, own in zip(groups, candidates, strict=True)
        for candidate in own
        for rollout in group.rollouts
    ]
    verdicts = iter(grade(pairs))
    return [
        group.problem.answer
        if group.problem.answer.strip()
        else _elect(own, len(group.rollouts), verdicts, share)
        for group, own in zip(groups, candidates, strict=True)
    ]


def find_candidates(group: Group, max_chars: int) -> list[str]:
    """The final answers that the group's rollouts wrote, the commonest first, at most eight."""
    finals = Counter[str]()
    for rollout in group.rollouts:
        if len(rollout.completion) <= max_chars and (final := final_answer(rollout.completion)):
            finals[final] += len(final) <= MAX_CANDIDATE_CHARS
    return [final for final, count in finals.most_common(MAX_CANDIDATES) if count]


def _elect(
    candidates: list[str], voters: int, verdicts: Iterator[Verdict], share: float
) -> str | None:
    votes = [
        sum(next(verdicts) in VOTES for _ in range(voters))
        for _ in candidates
    ]
    if not votes or max(votes) <= share * voters:
        return None
    return candidates[votes.index(max(votes))]
