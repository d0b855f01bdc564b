"""What the rows of `evaluation.json` mean: stages in words and colours, and rows in order.

Values and intervals stay in the row they came from: nothing is computed here. `scores.py` writes
the file.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rft_ray.errors import InputError
from rft_ray.page import Line, number, round_of
from rft_ray.record_checks import describe, parse_json

TARGET = "target"
HELDOUT = ""
GREEDY, BEST = "pass@1", "pass@1_best_validation"
MAX_LABEL = 44
FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "stage", "metric"), (str,)),
    **dict.fromkeys(("value", "low", "high"), (int, float)),
    **dict.fromkeys(("n", "step"), (int,)),
}
AGAIN = "remove the file, and `rft-ray evaluate` makes it again"


@dataclass(frozen=True, slots=True)
class Stage:
    """How a stage is called, its colour in every plot, and what it is in one sentence."""

    label: str
    colour: int
    note: str


STAGES = {
    "icl": Stage("prompted", 6, "the base model, shown solved training problems in its prompt."),
    "base": Stage("base", 3, "the pre-trained model as it is."),
    "sft": Stage("SFT", 3, "trained on the gold solutions alone."),
    "rft_own": Stage("RFT, own", 2, "only the rollouts of the target's own base."),
    "rft_random": Stage(
        "RFT, random", 1, "as many accepted rollouts of each problem, drawn at random."
    ),
    "rft_no_dedup": Stage("RFT, no de-duplication", 5, "every accepted rollout."),
    "rft_pooled": Stage(
        "RFT, pooled", 0, "the gold solutions and the selected rollouts of all policies."
    ),
    "online": Stage("online RFT", 4, "rollouts sampled from the model while it is trained."),
}
# What there is of a model before its RFT: either.
BASELINES = ("base", "sft")
# What a run is for; the other stages are there to compare with.
MAIN_STAGES = ("rft_pooled", "online", "rft_own")


@dataclass(frozen=True, slots=True)
class Score:
    """A row of `evaluation.json`; `problem_set` is empty for the held-out problems."""

    model: str
    stage: str
    round: int
    problem_set: str
    metric: str
    line: Line

    @property
    def is_trained_in_rounds(self) -> bool:
        """Whether the round says anything about the stage."""
        return self.stage not in ("icl", *BASELINES)

    def label(self, has_rounds: bool) -> str:
        """The stage and, where there are several and it matters, the round."""
        shown = has_rounds and self.is_trained_in_rounds
        return stage_label(self.stage) + (f", round {self.round}" if shown else "")

    @property
    def colour(self) -> int:
        """The stage's colour; grey for one that is not known."""
        return STAGES[self.stage].colour if self.stage in STAGES else 6

    def interval(self) -> tuple[float, float, float]:
        """The value and the ends of its interval, NaN where the row lacks them."""
        return number(self.line, "value"), number(self.line, "low"), number(self.line, "high")


def read_rows(path: Path) -> list[Line]:
    """The rows of an `evaluation.json`; InputError, with the row and field, for anything else."""
    try:
        rows = parse_json(path.read_bytes())
        if not isinstance(rows, list):
            raise InputError(f"expected a list, found {describe(rows)}")
        for position, row in enumerate(rows):
            _check_row(f"[{position}]", row)
    except InputError as error:
        raise InputError(f"{path}: {error}; {AGAIN}") from None
    return rows


def _check_row(place: str, row: object) -> None:
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object, found {describe(row)}")
    for name, types in FIELDS.items():
        value = row.get(name)
        if type(value) not in types:
            expected = "a string" if types == (str,) else "a number"
            raise InputError(f"{place}.{name}: expected {expected}, found {describe(value)}")


def read_scores(rows: Iterable[Line]) -> list[Score]:
    """Rows of `evaluation.json` as scores, in order; the last of an identity counts."""
    last = {}
    for row in rows:
        problem_set, _, metric = str(row.get("metric")).rpartition("/")
        score = score_of(row, problem_set, metric)
        last[score.model, score.stage, score.round, problem_set, metric] = score
    return in_order(list(last.values()))


def score_of(row: Line, problem_set: str, metric: str) -> Score:
    """A row whose problem set and metric are told apart already."""
    model, stage = str(row.get("model")), str(row.get("stage"))
    return Score(model, stage, round_of(row), problem_set, metric, row)


def in_order(scores: list[Score]) -> list[Score]:
    """By model, the target first, then by stage and round."""
    models = list(dict.fromkeys([TARGET, *(score.model for score in scores)]))
    order = {model: number for number, model in enumerate(models)}
    stages = {stage: number for number, stage in enumerate(STAGES)}
    return sorted(scores, key=lambda score: (
        order[score.model], stages.get(score.stage, len(stages)), score.stage, score.round
    ))  # fmt: skip


def main_score(scores: Iterable[Score]) -> Score | None:
    """Greedy accuracy of the target after the last round's RFT on held-out problems."""
    of_target = {
        (score.round, -MAIN_STAGES.index(score.stage)): score
        for score in scores
        if (score.model, score.metric, score.problem_set) == (TARGET, GREEDY, HELDOUT)
        and score.stage in MAIN_STAGES
    }
    return of_target[max(of_target)] if of_target else None


def baseline_score(scores: Iterable[Score]) -> Score | None:
    """Greedy accuracy of the target on held-out problems before its RFT."""
    for score in scores:
        identity = (score.model, score.metric, score.problem_set)
        if identity == (TARGET, GREEDY, HELDOUT) and score.stage in BASELINES:
            return score
    return None


def stage_label(stage: str) -> str:
    """A stage in words; one that is not known as it is."""
    return STAGES[stage].label if stage in STAGES else cut(stage)


def split_metric(metric: str) -> tuple[str, int]:
    """The kind of a metric and its number of samples: "maj@16" -> ("maj", 16); else 0."""
    match = re.fullmatch(r"(avg|pass|maj)@([1-9][0-9]{0,8})", metric, re.ASCII)
    return (match[1], int(match[2])) if match else (metric, 0)


def cut(text: str) -> str:
    """A name short enough to stand in a plot."""
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "\u2026"
