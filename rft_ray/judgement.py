"""What grading says about one completion, and how it is put together from a config.

A judge is a function (completion, answer) -> Judgement that runs in a worker process: an answer
style or a user's function decides, then readability filters may refuse what is right, and a right
answer that needed a leniency is marked as such. Left out: whatever looks at a whole group
(`voting.py`, `rewards.py`).
"""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from rft_ray.leniencies import Leniencies
from rft_ray.readability import first_objection
from rft_ray.types import VERDICTS, Verdict

LENIENT = "lenient"

Grader = Callable[[str, str], Any]


class Judgement(NamedTuple):
    """A verdict, its reward, and a note: `lenient`, or the filter that refused a right rollout."""

    verdict: Verdict
    reward: float
    note: str = ""


Judge = Callable[[str, str], Judgement]

PLAIN: dict[str, Judgement] = {
    verdict: Judgement(verdict, float(verdict == "correct")) for verdict in VERDICTS
}


class GraderError(Exception):
    """The grading function that a config names cannot be loaded."""


def make_judge(settings: dict[str, Any]) -> Judge:
    """The judge of a VerifierConfig's fields as plain data. Raises GraderError."""
    leniencies = Leniencies(**settings["leniencies"])
    grade = load_grader(settings, leniencies)
    accept_at, filters = settings["accept_at"], settings["filters"]
    strict = None if leniencies == Leniencies() else load_grader(settings, Leniencies())

    def judge(completion: str, answer: str) -> Judgement:
        judgement = to_judgement(grade(completion, answer), accept_at)
        if judgement.verdict != "correct":
            return judgement
        if filters and (name := first_objection(completion, filters)):
            return Judgement("correct", 0.0, name)
        if strict is not None and strict(completion, answer) != "correct":
            return judgement._replace(note=LENIENT)
        return judgement

    return judge


def load_grader(settings: dict[str, Any], leniencies: Leniencies) -> Grader:
    """A grading function of ours by style, or a user's as "module:function". Raises GraderError."""
    if settings["function"]:
        return _import_function(settings["function"])
    if settings["style"] == "reward":
        return _read_reward
    checks = {"check_calculations": settings["check_calculations"]}
    if settings["style"] == "math":
        from rft_ray.math_grading import grade_math

        return functools.partial(grade_math, leniencies=leniencies)
    from rft_ray.grading import grade_as_paper, grade_gsm8k

    if settings["compat"] == "paper":
        return functools.partial(grade_as_paper, **checks)
    checks["check_equations"] = settings["check_equations"]
    return functools.partial(grade_gsm8k, **checks, leniencies=leniencies)


def to_judgement(result: Any, accept_at: float) -> Judgement:
    """What a grading function returned: a verdict, or a reward, which is correct from `accept_at`.

    A reward of 0 never is. Anything else (NaN, None, another text) is an `error`.
    """
    if isinstance(result, str):
        return PLAIN.get(result, PLAIN["error"])
    if isinstance(result, int | float) and math.isfinite(result):
        is_correct = result >= accept_at and result != 0
        return Judgement("correct" if is_correct else "wrong", float(result))
    return PLAIN["error"]


def _read_reward(completion: str, answer: str) -> float | None:
    """The reward that the rollout came with, which stands where an answer would."""
    return float(answer) if answer else None


def _import_function(name: str) -> Grader:
    module_name, _, function_name = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise GraderError(f"cannot load the grader {name!r}: {error}") from None
