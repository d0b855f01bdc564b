"""When a training has gone wrong: losses that are not finite or far above the recent ones.

The step that shows it is not made, and its examples are saved as a training set of their own.
The recent losses begin anew in a run that continues from a checkpoint. Left out: going on without
the batch, which would hide what it says about the data or the learning rate.
"""

import math
from collections import deque
from statistics import median

from rft_ray.packing import ExampleColumns
from rft_ray.prompts import write_examples

WINDOW = 20


class LossWatch:
    """The largest loss that is believed, from those of the steps before."""

    def __init__(self, spike_factor: float | None) -> None:
        self._factor = spike_factor
        self._recent: deque[float] = deque(maxlen=WINDOW)

    @property
    def limit(self) -> float:
        """Infinite without a factor, in the first steps, and for losses that are not positive.

        Those with an importance ratio are not: they are about minus the share of what is accepted.
        """
        if self._factor is None or len(self._recent) < WINDOW:
            return math.inf
        middle = median(self._recent)
        return self._factor * middle if middle > 0 else math.inf

    def failure(self, step: int, loss: float, grad_norm: float) -> str | None:
        """Why training must stop at a step, if it must; a step that is fine counts from now on.

        `grad_norm` is NaN where the step was not made.
        """
        limit = self.limit
        if math.isfinite(loss) and loss > limit:
            recent = limit / (self._factor or 1)
            return f"loss {loss:.6g} at step {step}, {loss / recent:.1f} times the recent median"
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"loss {loss}, gradient norm {grad_norm} at step {step}"
        self._recent.append(loss)
        return None


def save_stopped_step(
    output_dir: str, step: int, columns: ExampleColumns, ids: list[int] | None = None
) -> str:
    """Write the examples of a step beside the output, for `read_examples`; the file's path.

    `ids` are those of the step among the columns'; left out: all.
    """
    path = f"{output_dir}.stopped-at-step-{step:06d}.parquet"
    write_examples(path, map(columns.example, range(len(columns.lengths)) if ids is None else ids))
    return path
