"""Small trainings for tests, and the plain loop that they must equal."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from rft_ray.config import RecipeConfig, TrainerConfig
from rft_ray.packing import ExampleColumns, plan_steps
from rft_ray.prompts import read_examples, write_examples
from rft_ray.run_dir import read_metrics
from rft_ray.schedule import learning_rate
from rft_ray.trainer import TrainingJob
from rft_ray.types import Example
from tests.tiny_models import tiny_llama

PEAK = 1e-3
ROW_TOKENS = 64
RECIPE = RecipeConfig(
    steps=6, batch_size=6, learning_rate=PEAK, warmup_fraction=0.3, weight_decay=0.1, max_length=40
)


def write_inputs(folder: Path) -> None:
    """Two tiny models, with tied and untied embeddings, and 16 random examples."""
    for name in ("tied", "untied"):
        torch.manual_seed(0)
        config = tiny_llama(tie_word_embeddings=name == "tied")
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
