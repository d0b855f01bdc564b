"""The engine against a plain loop: same losses and weights for every ZeRO stage and split.

Each TorchTrainer start costs some 20 seconds, so one run answers several questions.
"""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rft_ray.errors import InputError, StoppedError
from rft_ray.packing import ExampleColumns, plan_steps
from rft_ray.prompts import read_examples, write_examples
from rft_ray.trainer import TrainingJob, run_training
from tests.training_jobs import (
    RECIPE,
    ROW_TOKENS,
    assert_probe_holds,
    assert_same_training,
    make_job,
    make_trainer,
    write_inputs,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models and examples of all trainings here, and what comes of them."""
    folder = tmp_path_factory.mktemp("training")
    write_inputs(folder)
    return folder


@pytest.mark.engine
def test_one_rank_without_zero_is_the_plain_loop(folder: Path, ray_session: None) -> None:
    job = make_job(folder, "zero0", "tied", export_every=4)
    # Rows no longer than the longest example: hardly anything is packed.
    trainer = make_trainer(zero_stage=0, row_tokens=40, micro_batch_rows=2)
    exports = run_training(job, trainer)
    assert exports == [f"{job.output_dir}.steps/step-000004", job.output_dir]
    assert_same_training(job)
    assert_probe_holds(exports[0], 4)
    assert Path(job.output_dir, "tokenizer.json").read_text() == '{"a": 1}'
    assert not Path(f"{job.output_dir}.train").exists()
    before = os.stat(job.output_dir)
    assert run_training(job, trainer) == exports
    assert os.stat(job.output_dir) == before


@pytest.mark.engine
@pytest.mark.parametrize(
    ("stage", "model", "rows", "loss", "share"),
    [
        (1, "untied", 2, "sequence_mean", 1),
        (3, "tied", 1, "token_mean", 1),
        (3, "untied", 1, "token_mean", 2),
    ],
)
def test_two_ranks_with_zero_are_the_plain_loop(
    folder: Path, ray_session: None, stage: int, model: str, rows: int, loss: str, share: int
) -> None:
    job = make_job(folder, f"zero{stage}-{share}", model, loss=loss)
    # Below this size ZeRO-3 keeps a parameter whole on every rank; here all are sharded. With a
    # share, each group of so many ranks has the weights a second time (ZeRO++'s hpZ).
    settings = {
        "zero_optimization": {
            "stage3_param_persistence_threshold": 0,
            "zero_hpz_partition_size": share,
        }
    }
    run_training(
        job,
        make_trainer(zero_stage=stage, num_workers=2, micro_batch_rows=rows, deepspeed=settings),
    )
    assert_same_training(job)


@pytest.mark.engine
def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, ray_session: None) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "untied")
    model.lm_head.weight.data.fill_(torch.nan)
    model.save_pretrained(folder / "broken")
    job = make_job(folder, "diverged", "broken")
    with pytest.raises(StoppedError, match=r"diverged stopped: loss nan.* at step 1"):
        run_training(job, make_trainer())
    assert not Path(job.output_dir).exists()
    ids = plan_steps(
        ExampleColumns.of(read_examples(job.examples)).lengths, RECIPE, 1, ROW_TOKENS
    ).step(1).example_ids
    stopped = read_examples(f"{job.output_dir}.stopped-at-step-000001.parquet")
    everything = read_examples(job.examples)
    assert stopped == [everything[i] for i in ids]


def test_an_empty_set_is_refused(folder: Path, tmp_path: Path) -> None:
    job = make_job(folder, "empty")
    write_examples(str(tmp_path / "none.parquet"), [])
    broken = TrainingJob("x", job.model, str(tmp_path / "none.parquet"), "x", job.recipe, "x")
    with pytest.raises(ValueError, match="no examples"):
        run_training(broken, make_trainer())


def test_a_model_folder_without_config_is_refused(folder: Path, tmp_path: Path) -> None:
    job = TrainingJob("x", str(tmp_path), str(folder / "examples.parquet"), "x", RECIPE, "x")
    with pytest.raises(InputError, match="not a Hugging Face model folder"):
        run_training(job, make_trainer())
