"""The metrics of steps that are done again. Run: pytest tests/test_step_metrics.py"""

from pathlib import Path

from rft_ray.config import RecipeConfig
from rft_ray.run_dir import read_metrics
from rft_ray.step_metrics import StepMetrics
from rft_ray.trainer import StepBatch, TrainingJob


def test_a_step_done_again_has_one_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    job = TrainingJob("a", "", "", "", RecipeConfig(), str(path), round=0)
    other = TrainingJob("a", "", "", "", RecipeConfig(), str(path), round=1)

    def batch(step: int) -> StepBatch:
        return StepBatch(step, [], tokens=3, examples=2, fill=0.5)

    for writer, steps in ((job, [1, 2]), (other, [1])):
        metrics = StepMetrics(writer, 4)
        for step in steps:
            metrics.append(batch(step), 0.1, 1.0, 2.0, 0.3)
    with path.open("a") as file:
        file.write('{"kind": "train_st')
    metrics = StepMetrics(job, 4)
    for step in (2, 3):
        metrics.append(batch(step), 0.1, 1.0, 2.0, 0.3)
    assert [(r["round"], r["step"]) for r in read_metrics(path)] == [(0, 1), (0, 2), (1, 1), (0, 3)]
