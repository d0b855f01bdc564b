"""The verifier for people: on one pair, on many, on groups, and on a groups file.

    >>> from rft_ray import verify_answer
    >>> verify_answer("The answer is \\\\boxed{1000}.", "1,000")
    'correct'

Options are the fields of `VerifierConfig`. Every call starts its worker processes (a tenth of a
second for style gsm8k) and ends them; to keep them, use `verifier.Verifier`, which is what all of
this, the command line and the Ray Data stage are made of.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rft_ray.errors import InputError
from rft_ray.records import write_groups
from rft_ray.types import Group, Verdict
from rft_ray.verifier import Verifier
from rft_ray.verifier_config import VerifierConfig

GROUPS_AT_A_TIME = 16


@dataclass(slots=True)
class FileCounts:
    """What `verify_file` did: problems, rollouts by verdict, and the verifier's notes."""

    problems: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


def verify_answer(completion: str, answer: str, **options: Any) -> Verdict:
    """The verdict on one completion: `verify_answer(text, "1/2", style="math", timeout_s=2)`."""
    return verify_answers([(completion, answer)], **options)[0]


def verify_answers(pairs: Sequence[tuple[str, str]], **options: Any) -> list[Verdict]:
    """The verdict on every (completion, answer), in order.

    Raises InputError for an option that there is not, or a value that it cannot have.
    """
    with Verifier(make_config(options)) as verifier:
        return verifier.grade(pairs)


def verify_groups(groups: Sequence[Group], **options: Any) -> list[Group]:
    """The groups with `verdict` and `reward` filled in; errors as in `verify_answers`."""
    with Verifier(make_config(options)) as verifier:
        return verifier.verify_groups(groups)


def verify_file(groups: Iterable[Group], out: str | Path, config: VerifierConfig) -> FileCounts:
    """Grade a stream of groups into a groups file, some groups at a time; counts of the rollouts.

    Memory is bounded by the chunk. Raises what `write_groups` and `Verifier.judge` raise.
    """
    counts = FileCounts()
    with Verifier(config) as verifier:
        counts.problems = write_groups(out, _verify_in_chunks(verifier, groups, counts.verdicts))
        counts.notes = verifier.notes
    return counts


def check_function(config: VerifierConfig) -> None:
    """Raises InputError where a config names a function that a worker process cannot load."""
    if config.function:
        with Verifier(config) as verifier:
            verifier.judge([("", "")])


def make_config(options: dict[str, Any]) -> VerifierConfig:
    """The config of these options. Raises InputError, in one line, where there is none."""
    try:
        return VerifierConfig(**options)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"verifier: {place}: {message}" if place else message) from None


def _verify_in_chunks(
    verifier: Verifier, groups: Iterable[Group], counts: Counter[str]
) -> Iterator[Group]:
    """Small groups together keep all workers busy."""
    groups = iter(groups)
    while chunk := list(islice(groups, GROUPS_AT_A_TIME)):
        for group in verifier.verify_groups(chunk):
            counts.update(str(rollout.verdict) for rollout in group.rollouts)
            yield group
