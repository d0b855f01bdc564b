"""Why a rollout was kept or dropped, in plain words: pure functions of one group.

A reason is one line of at most MAX_CHARS characters, whatever models and users wrote. It is derived
from what the group records (verdict, finish reason, `selected`) and never grades or selects again,
so it also explains files that another tool made.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from rft_ray.arithmetic import is_calculation_right
from rft_ray.equations import path_key
from rft_ray.errors import first_words
from rft_ray.grading import find_calculations
from rft_ray.plain_numbers import parse_number
from rft_ray.stated_answers import ANSWER_MARK, final_answer, find_stated_answers
from rft_ray.types import Group, Rollout

MAX_CHARS = 100
MAX_DETAIL_CHARS = 30

CUT_OFF = "cut off by the token limit"
REFUSED = "right, refused: a readability filter, or words of a test problem"
NOT_GRADED = "not graded yet"
NOT_SELECTED_YET = "not selected yet"
NOT_SELECTED = "accepted, not selected"
SAME_TEXT = "same text as"
OTHER_TEXT = "another text stands for its path"


def reason(group: Group, index: int) -> str:
    """Why rollout `index` of a group was kept or dropped: "wrong: final answer 17, expected 18"."""
    return _explain(group.rollouts[index], group, _Accepted.of(group))


def reasons(group: Group) -> list[str]:
    """The reason of every rollout, in order, in time linear in the group's texts."""
    accepted = _Accepted.of(group)
    return [_explain(rollout, group, accepted) for rollout in group.rollouts]


def reason_class(text: str) -> str:
    """What a reason has in common with others of its kind, for counting them.

    "wrong: final answer 17, expected 18" -> "wrong"
    """
    if text.startswith(SAME_TEXT):
        return f"{SAME_TEXT} another"
    return text.partition(":")[0]


@dataclass(slots=True)
class _Accepted:
    """A group's accepted texts by path, and the selected rollout of every text and path."""

    texts: set[str] = field(default_factory=set)
    texts_of: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    selected_text: dict[str, Rollout] = field(default_factory=dict)
    selected_path: dict[str, Rollout] = field(default_factory=dict)
    has_rounds: bool = False

    @classmethod
    def of(cls, group: Group) -> "_Accepted":
        found = cls(has_rounds=len({rollout.round for rollout in group.rollouts}) > 1)
        for rollout in group.rollouts:
            text = rollout.completion
            if rollout.is_accepted:
                found.texts.add(text)
                found.texts_of[path_key(text)].add(text)
            if rollout.selected:
                found.selected_text.setdefault(text, rollout)
                found.selected_path.setdefault(path_key(text), rollout)
        return found

    def name(self, rollout: Rollout) -> str:
        place = f" in round {rollout.round}" if self.has_rounds else ""
        return f"sample {rollout.sample} of {first_words(rollout.policy, MAX_DETAIL_CHARS)}{place}"


def _explain(rollout: Rollout, group: Group, accepted: _Accepted) -> str:
    return first_words(_full_reason(rollout, group, accepted), MAX_CHARS)


def _full_reason(rollout: Rollout, group: Group, accepted: _Accepted) -> str:
    if rollout.selected:
        return _why_selected(rollout, accepted)
    if rollout.verdict is None:
        return NOT_GRADED
    if rollout.finish_reason == "length":
        return CUT_OFF
    if not rollout.is_accepted:
        return _why_rejected(rollout, group.problem.answer)
    if rollout.selected is None:
        return NOT_SELECTED_YET
    if same := accepted.selected_text.get(rollout.completion):
        return f"{SAME_TEXT} {accepted.name(same)}"
    if other := accepted.selected_path.get(path_key(rollout.completion)):
        return f"{OTHER_TEXT}: {accepted.name(other)}"
    return NOT_SELECTED


def _why_selected(rollout: Rollout, accepted: _Accepted) -> str:
    if not rollout.is_accepted:
        # Not by our rules, but a file that another tool marked may say so.
        cut = rollout.finish_reason == "length"
        return f"selected: although {CUT_OFF if cut else rollout.verdict or NOT_GRADED}"
    path = path_key(rollout.completion)
    sharing, total = len(accepted.texts_of[path]), len(accepted.texts)
    verb = "shares" if sharing == 1 else "share"
    if accepted.selected_path[path] is rollout:
        return f"selected: stands for its path ({sharing} of {total} accepted texts {verb} it)"
    return f"selected: as is {accepted.name(accepted.selected_path[path])}, which has its path"


def _why_rejected(rollout: Rollout, answer: str) -> str:
    match rollout.verdict:
        case "correct":
            return REFUSED
        case "wrong" if rollout.reward:
            # a function's or a model's, too low or beaten: the answer may well be the gold one
            return f"wrong: reward {rollout.reward:g}"
        case "wrong":
            final = final_answer(rollout.completion)
            found = f"final answer {_short(final)}, " if final else ""
            return f"wrong: {found}expected {_short(answer)}"
        case "miscalculated":
            calculations = find_calculations(rollout.completion)
            wrong = next((c for c in calculations if not is_calculation_right(c)), None)
            return "miscalculated" + ("" if wrong is None else f": <<{first_words(wrong, 60)}>>")
        case "unparsable":
            return f"unparsable: {_why_unparsable(rollout.completion)}"
    return str(rollout.verdict)


def _why_unparsable(text: str) -> str:
    finals = find_stated_answers(text)
    if not any(final.text.strip() for final in finals):
        return "no final answer"
    place = {"mark": f"after {ANSWER_MARK}", "box": "in a box", "phrase": "as the answer"}
    boxes = list(dict.fromkeys(f.text.strip() for f in finals if f.form == finals[0].form == "box"))
    if len(boxes) > 1:
        return f"final answers differ: {_short(boxes[0])} and {_short(boxes[-1])}"
    values = [parse_number(final.text, form=final.form) for final in finals]
    for final, value in zip(finals, values, strict=True):
        if value is None and final.form == finals[0].form:
            shown = _short(final.text.strip())
            return f"{shown!r} {place[final.form]}" if shown else f"nothing {place[final.form]}"
    other = next((i for i, value in enumerate(values) if value not in (None, values[0])), 0)
    if other:
        texts = (_short(finals[index].text.strip()) for index in (0, other))
        return "final answers differ: {} and {}".format(*texts)
    shown = _short(finals[0].text.strip())
    return f"{shown!r} {place[finals[0].form]}, in {len(text):,} characters"


def _short(text: str) -> str:
    return first_words(text, MAX_DETAIL_CHARS)
