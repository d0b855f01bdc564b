"""Which trainings are the same, and watching exports. Run: pytest tests/test_fine_tuning.py"""

import json
import time
from pathlib import Path

import pytest

from rft_ray.config import RecipeConfig
from rft_ray.config_file import load_config
from rft_ray.errors import InputError
from rft_ray.fine_tuning import Task, policy_task, watched_exports, write_training_set
from rft_ray.prompts import Prompt, read_examples
from rft_ray.run_dir import RunDir, read_metrics
from rft_ray.sampling import Weights
from rft_ray.study import Checkpoints, Model, Study
from rft_ray.trainer import TrainingJob
from rft_ray.types import Group, Problem

CONFIGS = Path(__file__).parents[1] / "configs"
BASE, CONFIG = CONFIGS / "quickstart_base/tied", CONFIGS / "quickstart.yaml"


def make_task(**changes: object) -> Task:
    """A training of a target on the first round's selection."""
    recipe = RecipeConfig(start_from=changes.pop("start_from", "base"))  # type: ignore[arg-type]
    prompt = Prompt(str(changes.pop("template", "{prompt}")))
    model = Model("target", "/base", prompt, None, recipe)
    fields = {"job": "rft-target", "start": "/base", "data": "round-0", "round": 0, **changes}
    return Task(model=model, recipe=recipe, output=Path("out"), **fields)  # type: ignore[arg-type]


def test_trainings_are_equal_by_what_decides_the_result() -> None:
    key = make_task().key
    # where the weights are said to come from is no matter, where they do is
    assert key == make_task(job="rft-small", round=1, start_from="current").key
    assert key != make_task(start="/sft").key
    assert key != make_task(data="round-0-random").key
    assert key != make_task(template="Q: {prompt}").key


def test_a_training_starts_where_the_round_says() -> None:
    base, early, late = Weights("base", 0), Weights("early", 5), Weights("late", 9)
    checkpoints = Checkpoints(base, [early, late], [early, late])
    assert checkpoints.start("base") == "base"
    assert checkpoints.start("sft") == checkpoints.start("current") == "late"
    after = checkpoints.after([Weights("rft", 3)])
    assert (after.start("sft"), after.start("current")) == ("late", "rft")


@pytest.mark.parametrize(
    ("rft", "rounds", "start"),
    [
        ("base", "", "base"),
        ("sft", "", "sft"),
        ("current", "", "rft"),
        ("sft", ", policies_start_from: base", "base"),
        ("base", ", policies_start_from: current", "rft"),
    ],
)
def test_a_policy_is_retrained_from_where_it_or_the_round_says(
    tmp_path: Path, rft: str, rounds: str, start: str
) -> None:
    overrides = [
        f"run_dir={tmp_path}",
        "num_rounds=2",
        f"policies.1.rft.start_from={rft}",
        f"rounds=[{{}}, {{retrain_policies: true{rounds}}}]",
    ]
    config = load_config(CONFIG, overrides)
    policy = Model("untied", "base", Prompt("{prompt}"), None, config.policies[1].rft)
    sft = [Weights("sft", 5)]
    checkpoints = Checkpoints(Weights("base", 0), sft, sft).after([Weights("rft", 3)])
    study = Study(config, RunDir(tmp_path), {}, {"untied": policy})
    task = policy_task(study, 1, policy, checkpoints)
    assert (task.start, task.data, task.job) == (start, "round-0", "rft-untied")


def open_made_up_study(folder: Path, problems: list[Problem]) -> Study:
    """A study with a training set and a place for its metrics, and no models."""
    run = RunDir(folder)
    return Study(config=None, run=run, problems={"train": problems}, models={})  # type: ignore[arg-type]


def test_a_training_set_is_written_as_its_groups_come(tmp_path: Path) -> None:
    solved = [Problem(str(i), "2+2?", "4", solution="#### 4") for i in range(3)]
    study = open_made_up_study(tmp_path, solved)
    task = make_task(start=str(BASE))
    job = TrainingJob("sft-a", str(BASE), str(tmp_path / "sft/a.parquet"), "a", task.recipe, "m", 0)
    assert write_training_set(study, task, map(Group, solved), job) == 3
    assert len(read_examples(job.examples)) == 3
    assert read_metrics(study.run.metrics)[0]["kept"] == 3


@pytest.mark.parametrize(("solution", "dropped"), [(None, 0), ("4 " * 1000, 1)])
def test_nothing_to_learn_from_is_one_clear_line(
    tmp_path: Path, solution: str | None, dropped: int
) -> None:
    problem = Problem("1", "2+2?", "4", solution=solution)
    task = make_task(start=str(BASE))
    job = TrainingJob("sft-a", str(BASE), str(tmp_path / "sft/a.parquet"), "a", task.recipe, "m", 0)
    study = open_made_up_study(tmp_path, [problem])
    with pytest.raises(InputError, match=f"sft-a: nothing to learn from: {dropped} gold"):
        write_training_set(study, task, [Group(problem)], job)


def export(output: Path, step: int) -> Path:
    """An export as the trainer leaves it: whole before it has its name."""
    folder = Path(f"{output}.steps/step-{step:06d}")
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True)
    (partial / "probe.json").write_text(json.dumps({"step": step}))
    return partial.rename(folder)


def wait_for(seen: list[int], count: int) -> None:
    deadline = time.monotonic() + 30
    while len(seen) < count and time.monotonic() < deadline:
        time.sleep(0.05)


def test_exports_are_watched_in_order_and_each_once(tmp_path: Path) -> None:
    seen: list[int] = []
    with watched_exports(tmp_path / "out", lambda weights: seen.append(weights.version)):
        Path(f"{tmp_path / 'out'}.steps/step-000001.partial").mkdir(parents=True)
        for step in (10, 20):
            export(tmp_path / "out", step)
        wait_for(seen, 2)
        export(tmp_path / "out", 30)
        wait_for(seen, 3)
    assert seen == [10, 20, 30]


def test_a_failure_while_watching_is_raised_when_the_training_is_done(tmp_path: Path) -> None:
    seen: list[int] = []

    def fail(weights: Weights) -> None:
        seen.append(weights.version)
        raise ValueError("cannot score")

    with (
        pytest.raises(ValueError, match="cannot score"),
        watched_exports(tmp_path / "out", fail),
    ):
        export(tmp_path / "out", 10)
        wait_for(seen, 1)
