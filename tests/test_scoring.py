"""What a run with results is asked for later. Run: pytest tests/test_scoring.py"""

from pathlib import Path

import pytest

from rft_ray.config import RecipeConfig
from rft_ray.config_file import load_config
from rft_ray.prompts import Prompt
from rft_ray.run_dir import RunDir
from rft_ray.scores import EvaluationRow
from rft_ray.scoring import baseline_stage, is_finished, publish
from rft_ray.study import TARGET, Model, Study

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
ROW = EvaluationRow("target", "rft_pooled", "pass@1", value=0.5, n=1, low=0.0, high=1.0, step=1)


def make_study(folder: Path, *overrides: str) -> Study:
    return Study(load_config(CONFIG, list(overrides)), RunDir(folder), {}, models={})


@pytest.mark.parametrize(
    ("added", "is_more"),
    [
        ("controls=[random]", True),
        ("evaluation.samples=4", True),
        ("evaluation.max_tokens=95", True),
        ("evaluation.icl_shots=1", True),
        ("problems.out_of_domain={b: {format: word_problems, count: 2}}", True),
        ("evaluation.parity_tolerance=0.5", False),
        ("verifier.workers=2", False),
    ],
)
def test_a_finished_run_goes_on_where_more_is_asked(
    tmp_path: Path, added: str, is_more: bool
) -> None:
    publish(make_study(tmp_path), 0, [ROW])
    assert is_finished(make_study(tmp_path))
    more = make_study(tmp_path, added)
    assert is_finished(more) is not is_more
    publish(more, 0, [ROW])
    assert is_finished(more)


def test_rows_of_the_policies_alone_do_not_finish_a_round(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    assert not is_finished(study)
    publish(study, 0, [EvaluationRow("tied", "sft", "pass@1", 0.5, 1, 0.0, 1.0, 1)])
    assert not is_finished(study)


def test_a_target_without_sft_is_the_base_and_not_called_sft(tmp_path: Path) -> None:
    for sft, stage in ((None, "base"), (RecipeConfig(), "sft")):
        study = make_study(tmp_path)
        study.models[TARGET] = Model(TARGET, "m", Prompt("{prompt}"), sft, RecipeConfig())
        assert baseline_stage(study).stage == stage
