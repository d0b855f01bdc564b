"""The named leniencies of answer comparison, all off by default.

What each one accepts is decided by the grading styles (grading.py, math_grading.py); this file
only names them, so that a run's config, its report and both styles speak of the same three. There
is no "lenient" switch that turns on several at once: each false "correct" must have one name.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Leniencies:
    """What a comparison may forgive.

    percent: 50% is 0.5 (and never 5000 or 0.005).
    tolerance: the largest relative difference accepted between two decimal numbers; 0 is exact.
    units: a unit word or degree sign that the answer does not have is ignored.
    """

    percent: bool = False
    tolerance: float = 0.0
    units: bool = False
