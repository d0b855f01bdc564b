"""Which exports of an online run stay: the best on validation so far, beside the last weights.

Each is a whole model, one every `online.evaluate_every` steps, and only the best is asked for again
(`scoring.py`). Where there are no validation problems none is the best, and none stays.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from rft_ray.trainer import extra_exports

GONE = ".gone"


def keep_best(output_dir: str | Path, values: Mapping[int, float]) -> None:
    """Remove a training's exports but the best one; `values` are scores by step.

    The earliest of several best stays. An export without a score goes.
    """
    steps = {int(folder.name.removeprefix("step-")): folder for folder in extra_exports(output_dir)}
    scored = [step for step in steps if step in values]
    best = max(scored, key=lambda step: values[step], default=None)
    for step, folder in steps.items():
        if step != best:
            # Half of an export must not be taken for one.
            folder.rename(folder.with_name(folder.name + GONE))
    for folder in Path(f"{output_dir}.steps").glob(f"*{GONE}"):
        shutil.rmtree(folder)
