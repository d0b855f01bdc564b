"""The `verifier` section of a config: which reward decides, and the limits of its processes."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rft_ray.config_section import Count, Section
from rft_ray.readability import ReadabilityFilter


class LenienciesConfig(Section):
    """What the comparison of answers forgives; each is counted where it decides."""

    percent: bool = False
    """A percentage may stand for its number: "28%" for 28."""
    tolerance: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Largest difference accepted between two numbers, relative to the answer; 0 is exact."""
    units: bool = False
    """A unit that only one side states is ignored."""


class VerifierConfig(Section):
    """How completions are graded."""

    style: Literal["gsm8k", "math", "reward"] = "gsm8k"
    """gsm8k: a plain number after `####`, in a box, or after "the answer is"; math: LaTeX; reward:
    the reward that a rollout already has."""
    function: str | None = None
    """A function of yours instead, "module:function": (completion, answer) -> a verdict or a
    reward."""
    compat: Literal["paper"] | None = None
    """paper: style gsm8k with every quirk of the paper's code (Yuan et al. 2023)."""
    check_calculations: bool = True
    """Also demand that every `<<lhs=rhs>>` is right (style gsm8k)."""
    check_equations: bool = False
    """Also demand that every plain equation of the text is right: "3 + 4 = 7" (style gsm8k)."""
    leniencies: LenienciesConfig = LenienciesConfig()
    majority: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Where a problem's answer is blank, take the one that more than this share of its rollouts
    give; without it, or without such a majority, they are `error`."""
    accept_at: float | None = None
    """Smallest reward that is `correct` (a function's, or style reward), save 0, which never is;
    none: 1, and no limit where `best_of` decides."""
    best_of: Count | None = None
    """Of the rollouts of a problem only this many are `correct`, those with the highest reward
    (a function's, or style reward)."""
    filters: list[ReadabilityFilter] = Field(default=[])
    """Right rollouts that are not accepted, since nobody wants to learn from them:
    mixed_languages, repetition, length (over 4,000 characters)."""
    timeout_s: Annotated[float, Field(gt=0.0)] = 5.0
    """Seconds one completion may take before its worker is killed (verdict `timeout`)."""
    workers: Count = 1
    """Worker processes per verifying actor."""
    memory_mb: Annotated[int, Field(ge=64)] = 1024
    """Address space of a worker process, in MiB."""
    max_chars: Count = 20_000
    """A longer completion is `unparsable` without being looked at, a longer answer `error`."""

    @property
    def accept_from(self) -> float:
        """The smallest reward that is `correct`."""
        if self.accept_at is not None:
            return self.accept_at
        return 1.0 if self.best_of is None else -1e308  # JSON has no -inf

    @property
    def grades_answers(self) -> bool:
        """Whether verdicts are about final answers, and not about rewards of another origin."""
        return self.style != "reward" and self.function is None

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.compat and (self.style != "gsm8k" or self.function):
            raise ValueError("compat: paper is about style gsm8k")
        if self.grades_answers and (self.best_of or self.accept_at is not None):
            raise ValueError("best_of and accept_at need rewards: style reward, or a function")
        if self.majority is not None and not self.grades_answers:
            raise ValueError("majority needs a style that grades answers: gsm8k or math")
        if self.leniencies != LenienciesConfig() and not self.grades_answers:
            raise ValueError("leniencies need a style that grades answers: gsm8k or math")
        return self
