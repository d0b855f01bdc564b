"""When training stops by itself, and what it leaves. Run: pytest tests/test_loss_watch.py"""

import math
from pathlib import Path

import pytest

from rft_ray.loss_watch import WINDOW, LossWatch, save_stopped_step
from rft_ray.packing import ExampleColumns
from rft_ray.prompts import read_examples
from rft_ray.types import Example


def watch_after(losses: list[float], factor: float | None = 3.0) -> LossWatch:
    watch = LossWatch(factor)
    for step, loss in enumerate(losses, start=1):
        assert watch.failure(step, loss, 1.0) is None
    return watch


def test_a_spike_is_a_multiple_of_the_median_of_recent_losses() -> None:
    watch = watch_after([100.0] * 5 + [2.0] * WINDOW)
    assert watch.limit == 6.0
    assert watch.failure(9, 6.0, 1.0) is None
    assert watch.failure(10, 7.0, math.nan) == "loss 7 at step 10, 3.5 times the recent median"


def test_nothing_is_a_spike_before_there_is_a_median_or_without_a_factor() -> None:
    assert watch_after([1.0] * (WINDOW - 1)).limit == math.inf
    assert watch_after([1.0] * WINDOW, factor=None).limit == math.inf
    # The loss with an importance ratio is negative.
    assert watch_after([-1.0] * WINDOW).limit == math.inf


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.inf)])
def test_what_is_not_finite_always_stops(loss: float, norm: float) -> None:
    failure = LossWatch(None).failure(7, loss, norm)
    assert failure == f"loss {loss}, gradient norm {norm} at step 7"


def test_the_examples_of_a_stopped_step_can_be_read_again(tmp_path: Path) -> None:
    examples = [
        Example([5, 6, 7], [0, 1, 1], 0.5, [0.0, -0.5, -1.25]),
        Example([8, 9], [0, 1]),
        Example([4, 3], [0, 1], 2.0),
    ]
    columns = ExampleColumns.of(examples)
    path = save_stopped_step(str(tmp_path / "out"), 12, columns, [2, 0])
    assert path == str(tmp_path / "out.stopped-at-step-000012.parquet")
    assert read_examples(path) == [examples[2], examples[0]]
    assert read_examples(save_stopped_step(str(tmp_path / "all"), 1, columns)) == examples
