"""Which problems an online step samples: a pure function of the seed and the step.

So a continued run neither skips a problem nor repeats one, and nothing has to be remembered.
"""

import math
import random
from functools import lru_cache

from rft_ray.types import Problem


def problem_slice(problems: list[Problem], size: int, step: int, seed: int) -> list[Problem]:
    """The problems of step 1, 2, ...: pass after pass over all of them, each in its own order.

    The last slice of a pass holds what is left, so no slice has a problem twice.
    """
    per_pass = math.ceil(len(problems) / size)
    number, index = divmod(step - 1, per_pass)
    order = _order(len(problems), seed, number)
    return [problems[position] for position in order[index * size : (index + 1) * size]]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, number: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/{number}").shuffle(order)
    return order
