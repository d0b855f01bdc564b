r"""Style math: is a completion's final answer mathematically the gold answer?

Both texts may be whole solutions (see `final_answers.py`), or bare answers in LaTeX or plain text.
All final answers of the completion must be right: two that differ are never correct, save that
several boxes may together be the list that the gold answer is. Nothing a model wrote is evaluated
by anything but our own parser; what cannot be read or decided is `unparsable`, never `correct`.
"""

import re
from collections.abc import Iterator

from rft_ray.final_answers import (
    MAX_BARE_CHARS,
    FinalAnswers,
    find_final_answers,
    readings,
)
from rft_ray.latex_answers import parse_answer
from rft_ray.latex_tokens import clean
from rft_ray.latex_tree import Answer, LatexError, Listing, Words
from rft_ray.leniencies import Leniencies
from rft_ray.math_equality import Comparison
from rft_ray.math_limits import Undecided, Undefined
from rft_ray.math_verdicts import every
from rft_ray.types import Verdict

EXACT = Leniencies()
MAX_BOXES = 20
TEXT_MARKUP = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|bf)\s?\{([^{}]*)\}")
# March 3, 7 remainder 2
PLAIN_WORDS = re.compile(r"(?=.*[A-Za-z]{3})[A-Za-z0-9][A-Za-z0-9 .,':-]*")
# Space is what tells 5 6 from 56, and behind a comma 1, 234 from 1,234.
NEEDLESS_SPACE = re.compile(r"\s+(?![0-9A-Za-z])|(?<![0-9A-Za-z,])\s+")
# The letter of a choice, and what the choice says: (B) 12, B. 12
CHOICE = re.compile(r"\(([A-J])\)\s*(.*)|([A-J])[.:)]\s+(.+)", re.DOTALL)
LONE_CHOICE = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?\(?([A-Ja-j])\)?\.?")
# (B) or (C), (B) is false: no choice of one
NO_CHOICE = re.compile(
    r"\W*(?:or|and)\b|\s*[,/&;]|.*\([A-J]\)|.*\b[A-J]\s*(?:[.:)]|$)"
    r"|.*\b(?:not|false|wrong|incorrect)\b",
    re.DOTALL,
)


def grade_math(completion: str, answer: str, leniencies: Leniencies = EXACT) -> Verdict:
    r"""Grade a solution or an answer against a gold solution or answer.

    `wrong` is proved to differ, or of another kind; `unparsable` has no final answer, one that
    cannot be read, or one whose equality cannot be decided; `error` says that the gold answer
    cannot be read, so nothing can be said about the completion.

    r"so $x=\boxed{\frac12}$", "0.5" -> correct;  "The answer is 3.", "4" -> wrong
    r"\boxed{3} or \boxed{4}", "3" -> wrong;      "hello", "4" -> unparsable
    """
    golds, finals = _read_gold(answer), find_final_answers(completion)
    if not golds[0].text:
        return "error"
    comparison = Comparison(leniencies)
    outcomes = [_outcome(list(_verdicts(gold, finals, comparison))) for gold in golds]
    if True in outcomes:
        return "correct"
    if outcomes[0] is False:
        return "wrong"
    return "error" if golds[0].tree is None and finals.texts else "unparsable"


def _outcome(verdicts: list[bool | None]) -> bool | None:
    """All final answers must be right, and there must be one."""
    return every(verdicts) if verdicts else None


class _Given:
    """A stated answer: its cleaned text, and its tree where it can be read."""

    def __init__(self, text: str, tree: Answer | None = None) -> None:
        self.text, self.tree, self.choice = "", tree, None
        for reading in readings(text):
            try:
                cleaned = clean(reading)
                self.text = NEEDLESS_SPACE.sub("", cleaned)
                self.choice = _find_choice(TEXT_MARKUP.sub(r"\1", cleaned).strip())
                self.tree = tree or parse_answer(reading)
            except LatexError:
                continue
            break


def _find_choice(text: str) -> re.Match[str] | None:
    """The letter of a choice with what it says, unless that names another choice."""
    match = CHOICE.fullmatch(text)
    if match is None or NO_CHOICE.match(match[2] or match[4] or ""):
        return None
    return match


def _read_gold(answer: str) -> list[_Given]:
    """The gold answer, and how else it may be read; beside its boxes nothing counts."""
    finals = find_final_answers(answer)
    if len(finals.boxes) > 1:
        return [_merged(finals.boxes)]
    # "not enough information" hedges in a completion, and is an answer here
    text = next(iter(finals.texts), "") or answer.strip()[:MAX_BARE_CHARS]
    return [_Given(text + behind) for behind in dict.fromkeys(("", *finals.behind))]


def _merged(texts: tuple[str, ...]) -> _Given:
    """Several boxes as one list; or as one answer, if they are the same one."""
    trees = tuple(_Given(text).tree for text in texts)
    if any(tree is None for tree in trees):
        return _Given("")
    return _Given(",".join(texts), Listing(trees))  # type: ignore[arg-type]


def _verdicts(gold: _Given, finals: FinalAnswers, comparison: Comparison) -> Iterator[bool | None]:
    """One verdict for the boxes together, and one for every other statement that has content."""
    if len(finals.boxes) > MAX_BOXES:
        yield None
    elif finals.boxes:
        boxes = zip(finals.boxes, finals.behind, strict=True)
        each = [_judge_box(gold, text, behind, comparison) for text, behind in boxes]
        is_right = all(each) or (len(each) > 1 and _judge(gold, _merged(finals.boxes), comparison))
        yield is_right or (None if None in each else False)
    others = [_Given(text) for text in finals.statements]
    said = [given for given in others if not _is_remark(given, gold)]
    if finals.boxes:
        # prose behind a box that is no answer: "the answer is what we expected"
        said = [given for given in said if given.tree is not None]
    for given in said:
        yield _judge(gold, given, comparison)


def _judge_box(gold: _Given, text: str, behind: str, comparison: Comparison) -> bool | None:
    """A box is right as it is, or with what stands behind it: the writer meant one of the two."""
    verdict = _judge(gold, _Given(text), comparison)
    if verdict or not behind:
        return verdict
    return _judge(gold, _Given(text + behind), comparison) or verdict


def _is_remark(given: _Given, gold: _Given) -> bool:
    """Words about an answer ("the answer is correct") where the gold answer is not in words."""
    is_remark = isinstance(given.tree, Words) and len(given.tree.text) > 1
    return is_remark and not isinstance(gold.tree, Words)


def _judge(gold: _Given, given: _Given, comparison: Comparison) -> bool | None:
    """Whether one stated answer is the gold answer; None where that is not known."""
    if given.text and given.text == gold.text:
        return True
    if gold.tree is None and given.tree is None and (words := _plain_words(gold.text)):
        return words == _plain_words(given.text) or None
    if gold.choice or given.choice:
        return _judge_choice(gold, given, comparison)
    return _judge_trees(gold, given, comparison)


def _plain_words(text: str) -> str:
    """What is neither mathematics nor a word alone, such as a date; "" for anything else."""
    unmarked = TEXT_MARKUP.sub(r"\1", text)
    return unmarked.lower() if PLAIN_WORDS.fullmatch(unmarked) else ""


def _judge_trees(gold: _Given, given: _Given, comparison: Comparison) -> bool | None:
    if gold.tree is None or given.tree is None:
        return None
    try:
        return comparison.same_answers(gold.tree, given.tree)
    except (Undecided, Undefined):
        return None


def _judge_choice(gold: _Given, given: _Given, comparison: Comparison) -> bool | None:
    """A choice is right by its letter; without a letter on one side, by what it says."""
    (letter, content), (other, said) = _split_choice(gold), _split_choice(given)
    if letter and other:
        return letter == other
    if not content and not said:
        return _judge_trees(gold, given, comparison)
    return _judge(_Given(content), _Given(said), comparison)


def _split_choice(given: _Given) -> tuple[str, str]:
    match = given.choice
    if match is not None:
        return (match[1] or match[3]).upper(), match[2] or match[4] or ""
    letter = LONE_CHOICE.fullmatch(TEXT_MARKUP.sub(r"\1", given.text))
    return (letter[1].upper(), "") if letter else ("", given.text)
