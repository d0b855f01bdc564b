"""What a grader may let pass beyond equality: named options, all off by default.

A leniency turns some wrong answers into accepted ones, so it is the user's choice and is reported
with the verdicts. Equality itself is never approximate.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Leniencies:
    """`percent`: "28%" may stand for "28". `tolerance`: relative to the gold answer, 0 is exact.

    `units`: a unit that only one side states is ignored; two different units never are.
    """

    percent: bool = False
    tolerance: float = 0.0
    units: bool = False
