"""Where a completion says its final answer: texts only, nothing is read as a number here.

Three forms, strongest first: all that follows `####` (to the next one, or to the end), what is in
`\\boxed{}`, and the sentence after "the answer is". Everything takes time linear in the text,
whatever braces are left open. Left out: the last number of a text, which is no claim of an answer.
"""

import re
from typing import Literal, NamedTuple

Form = Literal["mark", "box", "phrase"]

ANSWER_MARK = "####"
BOX = "\\boxed"
THOUGHT_END = "</think>"
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
PHRASE = re.compile(r"\bthe (?:final |correct )?answer is\b:?", re.IGNORECASE)
SENTENCE_END = re.compile(r"\.(?=\s|$)|[\n!?;]")
MAX_ANSWERS = 20
MAX_SENTENCE_CHARS = 300
MAX_BOX_CHARS = 2_000
MAX_BOX_DEPTH = 50


class StatedAnswer(NamedTuple):
    """A text given as the final answer, and the form it was given in."""

    form: Form
    text: str


def find_stated_answers(completion: str) -> list[StatedAnswer]:
    """Everything the completion gives as its final answer, the strongest form first.

    After MAX_ANSWERS of a form an unreadable one ends the list: such a text does not answer.
    """
    completion = after_thoughts(completion)
    finals: list[StatedAnswer] = []
    if ANSWER_MARK in completion:
        parts = completion.split(ANSWER_MARK, MAX_ANSWERS + 1)[1:]
        finals += [StatedAnswer("mark", part) for part in parts]
    if BOX in completion:
        finals += [StatedAnswer("box", text) for text in find_boxes(completion)]
    # a quick look first, since few completions of GSM8K's form have the phrase
    if "nswer" in completion or "NSWER" in completion:
        finals += [StatedAnswer("phrase", text) for text in _find_phrases(completion)]
    return finals


def after_thoughts(text: str) -> str:
    """What a reasoning model says when it has thought: final answers are not looked for before."""
    return text.rpartition(THOUGHT_END)[2]


def final_answer(text: str) -> str | None:
    """The last final answer of the strongest form, for showing; None where there is none."""
    text = after_thoughts(text)
    _, mark, answer = text.rpartition(ANSWER_MARK)
    if mark:
        return answer.strip()
    finals = find_stated_answers(text)
    if not finals:
        return None
    return [final for final in finals if final.form == finals[0].form][-1].text.strip()


def find_boxes(text: str) -> list[str]:
    """The contents of every outermost `\\boxed{...}`; an empty text for one not closed soon."""
    boxes: list[str] = []
    start = text.find(BOX)
    while start >= 0 and len(boxes) <= MAX_ANSWERS:
        opening = start + len(BOX)
        close = _closing_brace(text, opening)
        if close is None:
            boxes.append("")
            break
        boxes.append(text[opening + 1 : close])
        start = text.find(BOX, close)
    return boxes


def _closing_brace(text: str, opening: int) -> int | None:
    """Where the group that opens at `opening` ends; None where none does, or it is no number's."""
    if not text.startswith("{", opening):
        return None
    depth = 0
    for match in BRACE.finditer(text, opening, opening + MAX_BOX_CHARS):
        brace = match[0]
        depth += (brace == "{") - (brace == "}")
        if depth == 0 and brace == "}":
            return match.start()
        if depth > MAX_BOX_DEPTH:
            return None
    return None


def _find_phrases(text: str) -> list[str]:
    phrases: list[str] = []
    for match in PHRASE.finditer(text):
        sentence = text[match.end() : match.end() + MAX_SENTENCE_CHARS]
        phrases.append(SENTENCE_END.split(sentence, 1)[0])
        if len(phrases) > MAX_ANSWERS:
            break
    # a box or a mark inside of the sentence is found as such
    return [phrase for phrase in phrases if BOX not in phrase and ANSWER_MARK not in phrase]
