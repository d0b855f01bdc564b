"""The engine against a plain loop: same losses and weights for every ZeRO stage, split and crash.

Each TorchTrainer start costs some 20 seconds, so one run answers several questions.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rft_ray.config import RecipeConfig, TrainerConfig
from rft_ray.errors import InputError
from rft_ray.packing import ExampleColumns, plan_steps
from rft_ray.prompts import read_examples, write_examples
from rft_ray.run_dir import read_metrics
from rft_ray.schedule import learning_rate
from rft_ray.trainer import TrainingJob, run_name, run_training
from rft_ray.types import Example

PEAK = 1e-3
ROW_TOKENS = 64
RECIPE = RecipeConfig(
    steps=6, batch_size=6, learning_rate=PEAK, warmup_fraction=0.3, weight_decay=0.1, max_length=40
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, with tied and untied embeddings, and 16 random examples."""
    folder = tmp_path_factory.mktemp("training")
    for name in ("tied", "untied"):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=name == "tied",
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        (folder / name / "tokenizer.json").write_text('{"a": 1}')
    rng = random.Random(0)
    examples = []
    for _ in range(16):
        length, prompt = rng.randint(12, 40), rng.randint(1, 10)
        ids = [rng.randrange(64) for _ in range(length)]
        mask = [0] * prompt + [1] * (length - prompt)
        examples.append(Example(ids, mask, rng.choice([0.5, 1.0])))
    write_examples(str(folder / "examples.parquet"), examples)
    return folder


def make_job(folder: Path, name: str, model: str = "untied", **recipe: Any) -> TrainingJob:
    return TrainingJob(
        name=name,
        model=str(folder / model),
        examples=str(folder / "examples.parquet"),
        output_dir=str(folder / name),
        recipe=RECIPE.model_copy(update=recipe),
        metrics_path=str(folder / "metrics.jsonl"),
    )


def make_trainer(**fields: Any) -> TrainerConfig:
    return TrainerConfig(**{"row_tokens": ROW_TOKENS, "threads_per_worker": 1, **fields})


def step_rows(job: TrainingJob) -> list[dict[str, Any]]:
    rows = [row for row in read_metrics(Path(job.metrics_path)) if row.get("job") == job.name]
    assert [row["step"] for row in rows] == list(range(1, job.recipe.steps + 1))
    return rows


def plain_loop(job: TrainingJob) -> tuple[LlamaForCausalLM, list[float], list[float]]:
    """The same job by the definition: one example at a time, torch.optim.AdamW, one process."""
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    recipe = job.recipe
    # Matrices decay, the scales of the norms do not; these models have no biases.
    matrices, scales = ([p for p in model.parameters() if (p.ndim > 1) is m] for m in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": scales, "weight_decay": 0.0}],
        betas=(0.9, 0.999),
        weight_decay=recipe.weight_decay,
    )
    examples = read_examples(job.examples)
    plan = plan_steps(ExampleColumns.of(examples).lengths, recipe, 1, ROW_TOKENS)
    losses, norms = [], []
    for step in range(1, recipe.steps + 1):
        batch = [examples[i] for i in plan.step(step).example_ids]
        loss = mean_loss(model, batch, recipe.loss)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe.steps, recipe)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses, norms


def mean_loss(model: LlamaForCausalLM, batch: list[Example], kind: str) -> torch.Tensor:
    per_example = []
    for example in batch:
        ids, mask = torch.tensor(example.input_ids), torch.tensor(example.loss_mask)
        logprobs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        nll = -logprobs[:-1].gather(1, ids[1:, None]).squeeze(1) * mask[1:]
        per_example.append((example.weight * nll.sum(), mask[1:].sum()))
    if kind == "token_mean":
        return sum(nll for nll, _ in per_example) / sum(count for _, count in per_example)
    return sum(nll / count for nll, count in per_example) / len(batch)


def assert_same_training(job: TrainingJob) -> None:
    """Losses, gradient norms and final weights equal the plain loop's; the export is sound."""
    model, losses, norms = plain_loop(job)
    rows = step_rows(job)
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-5)
    assert [row["grad_norm"] for row in rows] == pytest.approx(norms, rel=1e-4)
    exported = AutoModelForCausalLM.from_pretrained(job.output_dir)
    assert exported.dtype == torch.float32
    theirs = dict(model.named_parameters())
    for name, parameter in exported.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=PEAK / 100)
    assert_probe_holds(job.output_dir, job.recipe.steps)


@torch.no_grad()
def assert_probe_holds(export: str, step: int) -> None:
    """What from_pretrained loads says what the trainer said."""
    model = AutoModelForCausalLM.from_pretrained(export)
    probe = json.loads(Path(export, "probe.json").read_text())
    assert probe["step"] == step
    assert len(probe["token_ids"]) == 4
    for ids, logprobs in zip(probe["token_ids"], probe["logprobs"], strict=True):
        ids = torch.tensor(ids)
        again = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])
        assert logprobs == pytest.approx(again.squeeze(1).tolist(), abs=1e-5)


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


@pytest.fixture(scope="module")
def whole(folder: Path, ray_session: None) -> TrainingJob:
    """A training on two ranks that nothing interrupts."""
    job = make_job(folder, "whole", steps=60)
    run_training(job, make_trainer(zero_stage=2, num_workers=2))
    assert_same_training(job)
    return job


@pytest.mark.engine
@pytest.mark.parametrize("uploads", [False, True])
def test_a_dead_worker_and_a_dead_driver_change_nothing(
    folder: Path, whole: TrainingJob, tmp_path: Path, uploads: bool
) -> None:
    """ZeRO-2 on two ranks in three pieces: bit for bit the same losses and weights."""
    pieces = make_job(folder, f"pieces-{uploads}", steps=60)
    trainer = make_trainer(
        zero_stage=2,
        num_workers=2,
        checkpoint_every=5,
        checkpoint_storage=f"fsspec+file://{tmp_path}" if uploads else None,
    )
    driver = start_driver(pieces, trainer)
    wait_for_step(pieces, 12, driver)
    next(iter(train_workers(driver))).kill()
    wait_for_step(pieces, 30, driver)
    kill_driver(pieces, driver)
    storage = tmp_path if uploads else Path(f"{pieces.output_dir}.train")
    # What is written when the kill comes may be there too.
    assert 1 <= len(saved_steps(storage, 2)) <= trainer.num_to_keep + 2

    run_training(pieces, trainer)
    for ours, theirs in zip(step_rows(pieces), step_rows(whole), strict=True):
        assert (ours["loss"], ours["grad_norm"]) == (theirs["loss"], theirs["grad_norm"])
    weights = "model.safetensors"
    assert Path(pieces.output_dir, weights).read_bytes() == (
        Path(whole.output_dir, weights).read_bytes()
    )
    assert not saved_steps(storage, 2)


@pytest.mark.engine
@pytest.mark.parametrize(("stage", "model"), [(1, "tied"), (3, "untied")])
def test_another_number_of_ranks_goes_on(
    folder: Path, ray_session: None, stage: int, model: str
) -> None:
    """Two ranks, then one, then two again make the steps of the plain loop."""
    job = make_job(folder, f"ranks-{stage}", model, steps=60)
    zero = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    two, one = (
        make_trainer(
            zero_stage=stage, num_workers=n, checkpoint_every=5, num_to_keep=20, deepspeed=zero
        )
        for n in (2, 1)
    )
    for trainer, step in ((two, 12), (one, 30)):
        driver = start_driver(job, trainer)
        wait_for_step(job, step, driver)
        kill_driver(job, driver)
    # The rank alone has made no step again that the two had saved.
    by_two, by_one = (saved_steps(Path(f"{job.output_dir}.train"), n) for n in (2, 1))
    assert 10 <= by_two[-1] <= by_one[0]
    run_training(job, two)
    assert_same_training(job)


@pytest.mark.engine
def test_an_upload_that_fails_ends_the_training(
    folder: Path, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rft_ray.trainer.MAX_WORKER_FAILURES", 0)
    job = make_job(folder, "not-uploaded")
    trainer = make_trainer(checkpoint_every=5, checkpoint_storage=str(tmp_path))
    place = Path(f"{tmp_path}{job.output_dir}.train", run_name(job.name, trainer))
    place.mkdir(parents=True)
    # Where the last checkpoint is to be, there is a file already.
    (place / "step-000005-of-1-ranks").write_text("")
    with pytest.raises(Exception, match="step-000005-of-1-ranks"):
        run_training(job, trainer)


def saved_steps(storage: Path, ranks: int) -> list[int]:
    """Steps that so many ranks have saved, in order."""
    return sorted(int(f.name.split("-")[1]) for f in storage.rglob(f"step-*-of-{ranks}-ranks"))


def kill_driver(job: TrainingJob, driver: subprocess.Popen[bytes]) -> None:
    """Kill a driver and wait until its cluster has noticed."""
    children = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    assert not Path(job.output_dir).exists()
    psutil.wait_procs(children, timeout=30)


def start_driver(job: TrainingJob, trainer: TrainerConfig) -> subprocess.Popen[bytes]:
    """A process of its own, with a Ray cluster of its own, that runs the job."""
    code = f"""
from rft_ray.config import RecipeConfig, TrainerConfig
from rft_ray.ray_session import start_ray
from rft_ray.trainer import TrainingJob, run_name, run_training
start_ray()
run_training({job!r}, {trainer!r})
"""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


def train_workers(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(driver.pid).children(recursive=True)
    return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]


def wait_for_step(job: TrainingJob, step: int, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        rows = read_metrics(Path(job.metrics_path))
        if any(row.get("job") == job.name and row["step"] >= step for row in rows):
            return
        assert driver.poll() is None, "the driver ended early"
        time.sleep(0.02)
    raise TimeoutError(f"no step {step} of {job.name}")


@pytest.mark.engine
def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, ray_session: None) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "untied")
    model.lm_head.weight.data.fill_(torch.nan)
    model.save_pretrained(folder / "broken")
    job = make_job(folder, "diverged", "broken")
    with pytest.raises(FloatingPointError, match=r"diverged stopped: loss nan.* at step 1"):
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
