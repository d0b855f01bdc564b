"""Problem sets: OpenAI's GSM8K file, JSON Lines with named columns, or generated word problems.

A problem set is small beside its rollouts, so it is a list. Left out: splitting (the sets of a
study are separate files, or the generator's disjoint splits) and all that needs a network.
"""

import logging
import math
from pathlib import Path
from typing import Any

from rft_ray.config import ProblemSetConfig
from rft_ray.errors import InputError
from rft_ray.grading import ANSWER_MARK, parse_plain_number
from rft_ray.record_checks import describe, parse_json
from rft_ray.records import read_lines
from rft_ray.types import Problem
from rft_ray.word_problems import generate_word_problems

logger = logging.getLogger(__name__)


def load_problems(config: ProblemSetConfig) -> list[Problem]:
    """The problems of a set, in file order.

    Raises InputError naming file, line and field of the first malformed line (with `skip_bad` it is
    skipped, counted and logged), a second line with the same id, or fewer problems than `count`.
    """
    if config.format == "word_problems":
        assert config.count is not None  # ProblemSetConfig demands it
        return generate_word_problems(config.count, seed=config.seed, split=config.split)
    assert config.path is not None
    problems = _read_problems(Path(config.path), config)
    if not problems:
        raise InputError(f"{config.path}: no problems")
    if config.count is not None and len(problems) < config.count:
        raise InputError(f"{config.path}: count is {config.count}, found {len(problems)} problems")
    return problems


def _read_problems(path: Path, config: ProblemSetConfig) -> list[Problem]:
    problems: list[Problem] = []
    skipped: list[InputError] = []
    place_of: dict[str, str] = {}
    for place, line in read_lines(path):
        if len(problems) == config.count:
            break
        try:
            problem = _parse_line(place, line, config)
            first = place_of.setdefault(problem.id, place)
            if first is not place:
                raise InputError(f"{place}: the id {problem.id!r} is also at {first}")
        except InputError as error:
            if not config.skip_bad:
                raise
            skipped.append(error)
            continue
        problems.append(problem)
    if skipped:
        logger.warning("%s: skipped %d bad lines, the first: %s", path, len(skipped), skipped[0])
    return problems


def _parse_line(place: str, line: bytes, config: ProblemSetConfig) -> Problem:
    path, _, number = place.rpartition(":")
    try:
        raw = parse_json(line)
        if not isinstance(raw, dict):
            raise InputError(f"expected an object, found {describe(raw)}")
        if config.format == "gsm8k":
            return _parse_gsm8k(raw, Path(path).stem, int(number))
        return _parse_columns(raw, config, number, Path(path).stem)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def _parse_gsm8k(raw: dict[str, Any], stem: str, number: int) -> Problem:
    """OpenAI's `question` and `answer`; ids count from 0, as in the published lists of indices."""
    prompt, solution = _text(raw, "question"), _text(raw, "answer")
    _, mark, answer = solution.rpartition(ANSWER_MARK)
    if not mark:
        raise InputError(f"answer: has no {ANSWER_MARK}")
    answer = answer.strip().replace(",", "")
    if parse_plain_number(answer) is None:
        raise InputError(f"answer: not a number after {ANSWER_MARK}: {answer[:40]!r}")
    return Problem(f"gsm8k-{stem}-{number - 1}", prompt, answer, f"gsm8k/{stem}", solution)


def _parse_columns(
    raw: dict[str, Any], config: ProblemSetConfig, number: str, stem: str
) -> Problem:
    has_id = raw.get(config.id_column) is not None
    has_solution = raw.get(config.solution_column) is not None
    return Problem(
        id=_text_or_number(raw, config.id_column) if has_id else number,
        prompt=_text(raw, config.prompt_column),
        answer=_text_or_number(raw, config.answer_column),
        source=stem,
        solution=_text(raw, config.solution_column) if has_solution else None,
    )


def _text(raw: dict[str, Any], column: str) -> str:
    value = raw.get(column)
    if not isinstance(value, str) or not value.strip():
        found = "missing" if column not in raw else f"expected text, found {describe(value)}"
        raise InputError(f"{column}: {found}")
    return value


def _text_or_number(raw: dict[str, Any], column: str) -> str:
    """Ids and answers are often bare numbers in JSON; 18.0 and 18 are the same answer anyway."""
    value = raw.get(column)
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return str(value)
    return _text(raw, column)
