"""The optimiser's state leaves and comes back, and training goes on as if it had stayed.

Run: pytest tests/test_parked_optimiser.py
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from rft_ray.config import RecipeConfig, TrainerConfig
from rft_ray.packing import ExampleColumns, plan_steps
from rft_ray.trainer import planned_batches, train_step
from rft_ray.training_config import LoraConfig
from rft_ray.types import Example

pytestmark = [pytest.mark.engine, pytest.mark.local, pytest.mark.usefixtures("one_rank")]

BASE = str(Path(__file__).parents[1] / "configs/quickstart_base/tied")
ROW_TOKENS = 96


def train(recipe: RecipeConfig, trainer: TrainerConfig, parks: bool) -> tuple[list[float], Any]:
    """The loss of each step and the bytes that were parked after each; the engine."""
    from rft_ray.engine import build_engine
    from rft_ray.parked_optimiser import ParkedOptimiser

    rng = random.Random(0)
    columns = ExampleColumns.of(
        [Example([rng.randrange(3, 200) for _ in range(24)], [0] + [1] * 23) for _ in range(16)]
    )
    engine = build_engine(BASE, recipe, trainer)
    plan = plan_steps(columns.lengths, recipe, 1, ROW_TOKENS)
    losses, parked = [], ParkedOptimiser(engine)
    for batch in planned_batches(plan, columns, 0, 1):
        losses.append(train_step(engine, batch, recipe.learning_rate, recipe.max_grad_norm)[0])
        if parks:
            check_parked(engine, parked)
    return losses, engine


def check_parked(engine: Any, parked: Any) -> None:
    """What is trained takes 8 bytes a parameter, or 12 with master weights; the model is there."""
    from rft_ray.export import probe_logprobs

    before = probe_logprobs(engine, [[5, 17, 33]])
    trained = sum(
        getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters() if p.requires_grad
    )
    held = parked.park()
    moments = [
        value
        for state in engine.basic_optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.dim()
    ]
    assert moments and all(own.untyped_storage().nbytes() == 0 for own in moments)
    masters = 12 if engine.zero_optimization() else 8
    assert masters * trained <= held < 1.05 * masters * trained + 4096
    assert probe_logprobs(engine, [[5, 17, 33]]) == before
    parked.bring_back()


@pytest.mark.parametrize(
    ("fields", "lora"),
    [
        ({"zero_stage": 0}, None),
        ({"zero_stage": 1, "dtype": "bfloat16"}, None),
        ({"zero_stage": 2, "dtype": "bfloat16"}, None),
        ({"zero_stage": 2}, LoraConfig(rank=4)),
        ({"zero_stage": 3}, None),
    ],
)
def test_training_goes_on_as_if_it_had_stayed(
    fields: dict[str, Any], lora: LoraConfig | None
) -> None:
    recipe = RecipeConfig(steps=5, batch_size=8, learning_rate=1e-3, max_length=64, lora=lora)
    trainer = TrainerConfig(row_tokens=ROW_TOKENS, **fields)
    expected, plain = train(recipe, trainer, parks=False)
    losses, engine = train(recipe, trainer, parks=True)
    assert losses == expected and losses[-1] < losses[0]
    for ours, theirs in zip(whole(engine), whole(plain), strict=True):
        assert torch.equal(ours, theirs)


def whole(engine: Any) -> list[torch.Tensor]:
    import deepspeed

    parameters, copies = list(engine.module.parameters()), []
    for parameter in parameters:
        is_sharded = engine.zero_optimization_partition_weights()
        with deepspeed.zero.GatheredParameters([parameter], enabled=is_sharded):
            copies.append(parameter.detach().clone())
    return copies
