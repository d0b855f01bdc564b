"""Text that training data shares with test problems, found by word n-grams.

A training text overlaps with a test text when they have `num_words` words in a row in common,
whatever the case, punctuation and white space; a test text that is shorter counts as a whole, from
MIN_WORDS words on (Guo et al. and Shao et al. do the same with 10). Memory is that of the test
problems. Left out: paraphrases and translations, which no n-gram sees.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

from rft_ray.errors import InputError
from rft_ray.types import Group, Problem, Rollout

MIN_WORDS = 5
WORD = re.compile(r"\w+")


class TestText:
    """The n-grams of test problems: their prompts and gold solutions."""

    __test__ = False  # not a test of pytest's

    def __init__(self, problems: Iterable[Problem], num_words: int) -> None:
        self._grams: defaultdict[int, set[str]] = defaultdict(set)
        for problem in problems:
            for text in (problem.prompt, problem.solution or ""):
                words = split_words(text)
                size = min(num_words, len(words))
                if size >= min(MIN_WORDS, num_words):
                    self._grams[size].update(ngrams(words, size))

    def overlaps(self, text: str) -> bool:
        """Whether a text has a test problem's words in it."""
        words = split_words(text)
        return any(
            not known.isdisjoint(ngrams(words, size)) for size, known in self._grams.items()
        )

    def overlaps_problem(self, problem: Problem) -> bool:
        """Whether a problem's prompt or gold solution has."""
        return self.overlaps(problem.prompt) or self.overlaps(problem.solution or "")


def split_words(text: str) -> list[str]:
    """Lower-case words and numbers: "It's $1,000." -> ["it", "s", "1", "000"]."""
    return WORD.findall(text.casefold())


def ngrams(words: list[str], size: int) -> Iterable[str]:
    """Every run of `size` words; none where there are fewer."""
    return (" ".join(words[i : i + size]) for i in range(len(words) - size + 1))


def without_overlap(
    problems: list[Problem], test: list[Problem], num_words: int
) -> list[Problem]:
    """The problems that share no n-gram with the test problems, in order."""
    text = TestText(test, num_words)
    return [problem for problem in problems if not text.overlaps_problem(problem)]


def decontaminate(problems: dict[str, list[Problem]], num_words: int | None) -> int:
    """Drop the training problems that overlap with any other set's; how many those were.

    Raises InputError where none would be left.
    """
    if num_words is None:
        return 0
    train = problems["train"]
    test = [problem for name, own in problems.items() if name != "train" for problem in own]
    problems["train"] = without_overlap(train, test, num_words)
    if not problems["train"]:
        raise InputError(
            f"problems.decontaminate_words: every training problem shares {num_words} words in a "
            "row with another set"
        )
    return len(train) - len(problems["train"])


def text_of_tests(problems: dict[str, list[Problem]], num_words: int | None) -> TestText | None:
    """What rollouts are compared with: all sets but `train`; none where they are not compared."""
    if num_words is None:
        return None
    test = [problem for name, own in problems.items() if name != "train" for problem in own]
    return TestText(test, num_words)


def refuse_overlap(group: Group, test: TestText | None) -> Group:
    """The graded group, its accepted rollouts that share words with test problems refused.

    As what a readability filter refuses they stay `correct` and get a reward of 0, so that nothing
    that trains, selects or counts accepts them.
    """
    if test is None:
        return group
    return Group(
        group.problem,
        [
            replace(rollout, reward=0.0)
            if rollout.is_accepted and test.overlaps(rollout.completion)
            else rollout
            for rollout in group.rollouts
        ],
    )


def count_overlap(rollouts: Iterable[Rollout], test: TestText | None) -> int:
    """How many rollouts were refused since they overlap."""
    if test is None:
        return 0
    refused = (r for r in rollouts if r.verdict == "correct" and r.reward == 0.0)
    return sum(test.overlaps(rollout.completion) for rollout in refused)


def contaminated_rollouts(group: Group, test: TestText, counts: Counter[str]) -> frozenset[int]:
    """Positions of the rollouts that must not be selected, counted in `counts`.

    All of a problem that overlaps (`problems`), else those whose text does; `rollouts` are the
    accepted ones among them.
    """
    if test.overlaps_problem(group.problem):
        counts["problems"] += 1
        found = frozenset(range(len(group.rollouts)))
    else:
        found = frozenset(
            index
            for index, rollout in enumerate(group.rollouts)
            if rollout.is_accepted and test.overlaps(rollout.completion)
        )
    counts["rollouts"] += sum(group.rollouts[index].is_accepted for index in found)
    return found
