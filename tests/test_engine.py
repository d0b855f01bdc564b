"""A DeepSpeed engine of one rank in this process against plain Hugging Face with torch's AdamW.

Run: pytest tests/test_engine.py
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rft_ray.adapters import inject_adapters
from rft_ray.config import RecipeConfig, TrainerConfig
from rft_ray.packing import ExampleColumns, plan_steps
from rft_ray.quantisation import quantised_loading
from rft_ray.schedule import learning_rate
from rft_ray.trainer import planned_batches, train_step
from rft_ray.training_config import LoraConfig
from rft_ray.types import Example

pytestmark = [pytest.mark.engine, pytest.mark.local, pytest.mark.usefixtures("one_rank")]

BASE = Path(__file__).parents[1] / "configs/quickstart_base/tied"
ROW_TOKENS = 96
RECIPE = RecipeConfig(
    steps=30, batch_size=8, learning_rate=1e-3, warmup_fraction=0.1, weight_decay=0.1, max_length=64
)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    rng, examples = random.Random(0), []
    for _ in range(40):
        length, prompt = rng.randint(12, 64), rng.randint(1, 10)
        ids = [rng.randrange(3, 200) for _ in range(length)]
        examples.append(Example(ids, [0] * prompt + [1] * (length - prompt)))
    return examples


def train(examples: list[Example], folder: str, recipe: RecipeConfig, **fields: Any) -> Any:
    """Our engine after all steps of a recipe, with the loss of each."""
    from rft_ray.engine import build_engine

    trainer = TrainerConfig(row_tokens=ROW_TOKENS, **fields)
    engine = build_engine(folder, recipe, trainer)
    columns = ExampleColumns.of(examples)
    plan = plan_steps(columns.lengths, recipe, 1, ROW_TOKENS, trainer.micro_batch_rows)
    losses = []
    for batch in planned_batches(plan, columns, 0, 1):
        rate = learning_rate(batch.step, plan.num_steps, recipe)
        losses.append(train_step(engine, batch, rate, recipe.max_grad_norm)[0])
    return engine, losses


def plain_losses(examples: list[Example], folder: str, recipe: RecipeConfig) -> list[float]:
    """Padded batches, transformers' own loss, torch's AdamW and clipping, one process."""
    is_quantised = recipe.lora is not None and recipe.lora.quantised
    more = quantised_loading(torch.float32, "cpu") if is_quantised else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more).eval()
    if recipe.lora:
        inject_adapters(model, recipe.lora, recipe.seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    norms = [p for p in trained if p.ndim == 1]
    others = [p for p in trained if p.ndim > 1]
    groups = [{"params": others}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    plan = plan_steps(ExampleColumns.of(examples).lengths, recipe, 1, ROW_TOKENS)
    losses = []
    for step in range(1, plan.num_steps + 1):
        batch = padded([examples[i] for i in plan.step(step).example_ids])
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, plan.num_steps, recipe)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def padded(batch: list[Example]) -> dict[str, torch.Tensor]:
    width = max(len(example.input_ids) for example in batch)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for example in batch:
        ids, space = example.input_ids, width - len(example.input_ids)
        pairs = zip(ids, example.loss_mask, strict=True)
        rows["input_ids"].append(ids + [0] * space)
        rows["attention_mask"].append([1] * len(ids) + [0] * space)
        rows["labels"].append([i if m else -100 for i, m in pairs] + [-100] * space)
    return {name: torch.tensor(own) for name, own in rows.items()}


@pytest.mark.parametrize(
    "fields",
    [
        {"zero_stage": 0},
        {"zero_stage": 2, "micro_batch_rows": 2, "activation_checkpointing": True},
        {
            "deepspeed": {
                "zero_optimization": {
                    "stage": 3,
                    "stage3_param_persistence_threshold": 0,
                    "offload_optimizer": {"device": "cpu"},
                    "offload_param": {"device": "cpu"},
                }
            }
        },
        {"zero_stage": 0, "compile": True},
    ],
    ids=["zero-0", "zero-2 recomputed", "zero-3 offloaded", "compiled"],
)
def test_thirty_steps_are_those_of_plain_hugging_face(examples, fields) -> None:
    _, ours = train(examples, str(BASE), RECIPE, **fields)
    plain = plain_losses(examples, str(BASE), RECIPE)
    assert len(ours) == 30 and min(plain) < 0.9 * plain[0]
    assert ours == pytest.approx(plain, rel=1e-3)
    assert ours[:5] == pytest.approx(plain[:5], rel=1e-5)


@pytest.mark.parametrize(
    ("stage", "quantised"), [(0, False), (2, False), (3, False), (2, True)]
)
def test_adapters_are_trained_alone_and_leave_merged(
    examples, stage, quantised, tmp_path: Path
) -> None:
    from rft_ray.export import export_model
    from rft_ray.weight_group import unpack
    from rft_ray.weight_source import WeightSource

    lora = LoraConfig(rank=4, alpha=8, quantised=quantised)
    recipe = RECIPE.model_copy(update={"steps": 10, "lora": lora})
    zero = {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}
    engine, losses = train(examples, str(BASE), recipe, deepspeed=zero)
    assert losses == pytest.approx(plain_losses(examples, str(BASE), recipe), rel=1e-4)
    assert losses[-1] < losses[0]
    folder = str(tmp_path / "merged")
    export_model(engine, str(BASE), folder, [examples[0].input_ids], 10)
    merged, base = map(AutoModelForCausalLM.from_pretrained, (folder, str(BASE)))
    # What is exported says what the trainer says, in the base's own names.
    probe = json.loads(Path(folder, "probe.json").read_text())
    ids = torch.tensor(probe["token_ids"][0])
    with torch.no_grad():
        logprobs = merged(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])
    assert probe["logprobs"][0] == pytest.approx(logprobs.squeeze(1).tolist(), abs=1e-5)
    pairs = zip(merged.named_parameters(), base.parameters(), strict=True)
    changed = {name for (name, mine), theirs in pairs if not torch.equal(mine, theirs)}
    assert changed == {name for name in dict(base.named_parameters()) if "_proj" in name}
    # A refresh sends the same.
    source = WeightSource(engine, 2**20)
    sent = {n: t.clone() for b, f in zip(source.plan, source, strict=True) for n, t in unpack(f, b)}
    for name, weight in merged.named_parameters():
        assert torch.equal(sent[name], weight)


def test_a_spike_is_seen_before_the_step_is_made(examples) -> None:
    engine, _ = train(examples, str(BASE), RECIPE.model_copy(update={"steps": 1}), zero_stage=2)
    before = [parameter.detach().clone() for parameter in engine.module.parameters()]
    columns = ExampleColumns.of(examples)
    plan = plan_steps(columns.lengths, RECIPE, 1, ROW_TOKENS)
    batch = next(planned_batches(plan, columns, 0, first_step=2))
    loss, grad_norm = train_step(engine, batch, 0.1, 1.0, limit=1.0)
    assert loss > 1 and grad_norm != grad_norm
    pairs = zip(before, engine.module.parameters(), strict=True)
    assert all(torch.equal(old, new) for old, new in pairs)


def test_an_export_in_pieces_is_the_export_in_one(examples, tmp_path: Path) -> None:
    from rft_ray.export import export_model

    engine, _ = train(examples, str(BASE), RECIPE.model_copy(update={"steps": 1}), zero_stage=3)
    whole, pieces = (str(tmp_path / name) for name in ("whole", "pieces"))
    export_model(engine, str(BASE), whole, [[5, 6, 7]], 1)
    export_model(engine, str(BASE), pieces, [[5, 6, 7]], 1, max_shard_bytes=200_000)
    files = sorted(Path(pieces).glob("*.safetensors"))
    index = json.loads(Path(pieces, "model.safetensors.index.json").read_text())
    assert len(files) > 2 and set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] <= sum(file.stat().st_size for file in files)
    one, other = map(AutoModelForCausalLM.from_pretrained, (whole, pieces))
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_70b_model_is_written_in_pieces_of_bounded_size() -> None:
    from rft_ray.export import plan_shards

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    tensors = model.state_dict()
    limit = 4 * 2**30
    shards = plan_shards(tensors, limit)
    sizes = [sum(tensor.nbytes for tensor in shard.values()) for shard in shards]
    assert max(sizes) <= limit and sum(sizes) == sum(tensor.nbytes for tensor in tensors.values())
    assert sum(sizes) > 137e9 and len(shards) <= 40
    assert [name for shard in shards for name in shard] == list(tensors)
