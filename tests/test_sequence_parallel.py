"""Two ranks that share packed rows against one that has them whole.

Run: pytest tests/test_sequence_parallel.py
"""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rft_ray.config import RecipeConfig, TrainerConfig
from rft_ray.loss import Targets
from rft_ray.packing import ExampleColumns, PackedBatch, pack_batch, plan_step, plan_steps
from rft_ray.schedule import learning_rate
from rft_ray.trainer import planned_batches, train_step
from rft_ray.types import Example

RECIPE = RecipeConfig(steps=4, batch_size=8, learning_rate=1e-3, max_length=40)
ROW_TOKENS = 64


def make_columns() -> ExampleColumns:
    rng, examples = random.Random(0), []
    for _ in range(24):
        length, prompt = rng.randint(12, 40), rng.randint(1, 10)
        ids = [rng.randrange(64) for _ in range(length)]
        examples.append(Example(ids, [0] * prompt + [1] * (length - prompt)))
    return ExampleColumns.of(examples)


def packed_rows(columns: ExampleColumns) -> PackedBatch:
    plan = plan_step(list(range(12)), columns.lengths, 1, ROW_TOKENS, 2)
    weights = {i: 1.0 + i for i in range(12)}
    return pack_batch(plan.micro_batches[0][0], columns, weights)


def train_rank(rank: int, ranks: int, folder: str) -> None:
    """All steps on one of `ranks` ranks that share rows; rank 0 leaves losses and an export."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
    os.environ.update({name: str(value) for name, value in place.items()}, DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{ranks}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)

    from rft_ray.engine import build_engine
    from rft_ray.export import export_model

    trainer = TrainerConfig(
        row_tokens=ROW_TOKENS, micro_batch_rows=2, num_workers=ranks, sequence_parallel=ranks
    )
    engine = build_engine(f"{folder}/model", RECIPE, trainer)
    columns = make_columns()
    plan = plan_steps(columns.lengths, RECIPE, 1, ROW_TOKENS, trainer.micro_batch_rows)
    results = []
    for batch in planned_batches(plan, columns, 0, first_step=1):
        rate = learning_rate(batch.step, plan.num_steps, RECIPE)
        results.append(train_step(engine, batch.piece(rank, ranks), rate, RECIPE.max_grad_norm))
    export_model(engine, f"{folder}/model", f"{folder}/export-{ranks}", [[5, 6, 7, 8]], 4)
    if rank == 0:
        Path(folder, f"results-{ranks}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


@pytest.mark.engine
def test_two_ranks_that_share_rows_are_one_that_does_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    for ranks in (1, 2):
        torch.multiprocessing.spawn(train_rank, (ranks, str(tmp_path)), nprocs=ranks)
    one, two = (json.loads((tmp_path / f"results-{n}.json").read_text()) for n in (1, 2))
    # Losses and gradient norms: of samples that share a row, and do not see each other.
    np.testing.assert_allclose(two, one, rtol=1e-4)
    alone, shared = (
        AutoModelForCausalLM.from_pretrained(tmp_path / f"export-{n}") for n in (1, 2)
    )
    for mine, theirs in zip(shared.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    probes = [json.loads((tmp_path / f"export-{n}/probe.json").read_text()) for n in (1, 2)]
    np.testing.assert_allclose(probes[1]["logprobs"], probes[0]["logprobs"], rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_pieces_have_every_target_once(count: int) -> None:
    """Each piece's targets belong to hidden states of its own, also across its borders."""
    packed = packed_rows(make_columns())
    whole = Targets.of(packed, "cpu")
    rows, width = packed.token_ids.shape
    found = []
    for number in range(count):
        own = PackedBatch(
            packed.token_ids,
            packed.position_ids,
            packed.segment_ids,
            packed.weights,
            piece=(number, count),
        )
        targets = Targets.of(own, "cpu")
        row, column = np.divmod(targets.positions.numpy(), width // count)
        assert (row < rows).all()
        places = row * width + own.columns.start + column
        found += np.stack([places, targets.token_ids, targets.weights], axis=1).tolist()
    expected = np.stack([whole.positions, whole.token_ids, whole.weights], axis=1)
    assert len(expected) > 100 and sorted(found) == expected.tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_workers": 3, "sequence_parallel": 2}, "sequence_parallel (2) does not divide num_w"),
        (
            {"num_workers": 2, "sequence_parallel": 2, "compile": True},
            "compile is not for sequence_parallel",
        ),
    ],
)
def test_what_cannot_be_shared_is_one_clear_line(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainerConfig(**fields)
    (error,) = caught.value.errors()
    assert message in error["msg"] and "\n" not in error["msg"]
