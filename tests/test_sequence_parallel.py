"""Two ranks that share packed rows against one that has them whole.

Run: pytest tests/test_sequence_parallel.py
"""

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from rft_ray.config import TrainerConfig
from rft_ray.loss import Targets
from rft_ray.loss_head import packed_loss
from rft_ray.packing import ExampleColumns, PackedBatch, pack_batch, plan_step
from rft_ray.types import Example
from tests.tiny_models import tiny_llama

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


def compute_share(rank: int, ranks: int, folder: str) -> None:
    """The loss of one rank's piece and its gradients, and what it says of a sequence of its own."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
    os.environ.update({name: str(value) for name, value in place.items()}, DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{ranks}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    from rft_ray.deepspeed_import import import_deepspeed

    import_deepspeed()
    import deepspeed

    from rft_ray.sequence_parallel import share_rows, whole_rows

    deepspeed.init_distributed("gloo", dist_init_required=False)
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.float64).eval()
    share_rows(model, ranks, rows=2)
    loss = packed_loss(model, replace(packed_rows(make_columns()), piece=(rank, ranks)), "cpu")
    loss.backward()
    with whole_rows(model), torch.no_grad():
        logits = model(input_ids=torch.arange(9)[None]).logits
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.save((loss.detach(), gradients, logits), f"{folder}/share-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.engine
@pytest.mark.local
def test_pieces_add_up_to_whole_rows(tmp_path: Path) -> None:
    """Two ranks' losses and gradients, summed, are those of packed rows on one, in float64."""
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_llama(initializer_range=0.3)).double().save_pretrained(tmp_path / "model")
    torch.multiprocessing.spawn(compute_share, (2, str(tmp_path)), nprocs=2)
    shares = [torch.load(tmp_path / f"share-{rank}.pt") for rank in (0, 1)]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64).eval()
    packed = packed_rows(make_columns())
    assert packed.segment_ids.max() > 1
    loss = packed_loss(model, packed, "cpu")
    loss.backward()
    torch.testing.assert_close(shares[0][0] + shares[1][0], loss.detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(shares[0][1][name] + shares[1][1][name], parameter.grad)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(9)[None]).logits
    for _, _, own in shares:
        torch.testing.assert_close(own, logits)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_pieces_have_every_target_once(count: int) -> None:
    """Each piece's targets belong to hidden states of its own, also across its borders."""
    packed = packed_rows(make_columns())
    whole = Targets.of(packed, "cpu")
    rows, width = packed.token_ids.shape
    found = []
    for number in range(count):
        own = replace(packed, piece=(number, count))
        targets = Targets.of(own, "cpu")
        row, column = np.divmod(targets.positions.numpy(), width // count)
        assert (row < rows).all()
        places = row * width + own.columns.start + column
        found += np.stack([places, targets.token_ids, targets.weights], axis=1).tolist()
    expected = np.stack([whole.positions, whole.token_ids, whole.weights], axis=1)
    assert len(expected) > 50 and sorted(found) == expected.tolist()


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
