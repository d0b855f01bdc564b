"""Planned seconds: by hand, in what they must not do, and against hours that were published.

Run: pytest tests/test_time_plan.py
"""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_ray.config import MachinesConfig, SamplerConfig, TrainerConfig
from rft_ray.costs import training_flops
from rft_ray.gpu_facts import GPUS
from rft_ray.memory_plan import GB, sampler_memory
from rft_ray.model_shapes import LLAMAS
from rft_ray.time_plan import (
    StepTime,
    decoder,
    message_seconds,
    optimiser_seconds,
    packed,
    refresh_seconds,
    sampling_rate,
    step_time,
)
from rft_ray.training_config import LoraConfig

SEVEN, SEVENTY = LLAMAS["llama-2-7b"], LLAMAS["llama-2-70b"]
H100 = GPUS["H100"]
EIGHT = MachinesConfig(nodes=16, gpus_per_node=8, gpu="H100", memory_gb=1000)

# Yuan et al. 2023: GPU hours of table 4 (SFT, RFT-U33B) on A100s; appendix A has the examples of a
# micro-batch, GPUs and micro-batches of a step. 7B and 13B with FSDP, which is ZeRO-3 as well.
PUBLISHED = {
    "llama-7b": (0.6, 9, 4, 8, 4),
    "llama-13b": (4, 62, 1, 8, 16),
    "llama-30b": (40, 600, 2, 16, 4),
    "llama-65b": (74, 1000, 1, 32, 4),
    "llama-2-70b": (80, 1200, 2, 32, 2),
}
SFT_STEPS, U33B_STEPS = 3 * 7473 / 128, 3 * 110_000 / 128


def trainer(**settings: Any) -> TrainerConfig:
    own = {"dtype": "bfloat16", "gpus_per_worker": 1, "zero_stage": 3, "row_tokens": 1024}
    return TrainerConfig(**{**own, **settings})


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_papers_gpu_hours_come_out_of_the_default_rates(model: str) -> None:
    """Between 0.63 and 0.78 of them: nothing is planned for padding and for what overlap does not
    hide. But for 65B 1.6 and 1.7 times, whose published steps took less than those of 70B with half
    as many micro-batches. In all but 7B, messages take several times as long as arithmetic.
    """
    sft, u33b, examples, gpus, micro_batches = PUBLISHED[model]
    assert examples * gpus * micro_batches == 128
    a100 = EIGHT.model_copy(update={"gpu": "A100"})
    own, count = trainer(num_workers=gpus), LLAMAS[model].parameters
    messages = message_seconds(LLAMAS[model], own, a100, micro_batches, count)
    flops = training_flops(decoder(LLAMAS[model]), 196, 128)
    arithmetic = flops / (gpus * GPUS["A100"].tflops * 1e12 * a100.training_mfu)
    optimiser = optimiser_seconds(count, own, a100, GPUS["A100"])
    planned = max(messages, arithmetic) + optimiser
    for hours, steps in ((sft, SFT_STEPS), (u33b, U33B_STEPS)):
        ratio = planned / (hours * 3600 / gpus / steps)
        # as cluster/CAPACITY.md says
        least, most = (1.6, 1.7) if model == "llama-65b" else (0.63, 0.78)
        digits = 1 if model == "llama-65b" else 2
        assert least <= round(ratio, digits) <= most


def test_a_step_of_one_rank_is_arithmetic() -> None:
    own = step_time(SEVEN, trainer(num_workers=1), EIGHT, H100, 128, 240)
    assert own.messages == 0 and own.bound == "arithmetic"
    flops = training_flops(decoder(SEVEN), 240, 128)
    # Packing leaves a little padding.
    assert 1 <= own.arithmetic / (flops / (989e12 * 0.4)) < 1.1
    assert own.optimiser == pytest.approx(30 * SEVEN.parameters / 3350e9)


def test_ranks_that_share_rows_share_their_arithmetic() -> None:
    """As much as with rows of their own, but for padding, in twice as many micro-batches."""
    own, shared = (
        step_time(SEVEN, trainer(num_workers=2, sequence_parallel=n), EIGHT, H100, 128, 240)
        for n in (1, 2)
    )
    assert shared.arithmetic == pytest.approx(own.arithmetic, rel=0.05)
    assert own.micro_batches < shared.micro_batches <= 2 * own.micro_batches


def test_messages_by_stage() -> None:
    whole, link = 2 * SEVEN.parameters, EIGHT.link_gb_s * GB

    def passes(micro_batches: int, **settings: Any) -> float:
        own, count = trainer(num_workers=16, **settings), SEVEN.parameters
        seconds = message_seconds(SEVEN, own, EIGHT, micro_batches, count)
        return seconds / (whole * 15 / 16 / link)

    assert passes(3, zero_stage=1) == pytest.approx(2)
    assert passes(3, zero_stage=2) == pytest.approx(4)
    assert passes(3, zero_stage=3) == pytest.approx(9)
    recomputed = {"activation_checkpointing": {}}
    assert passes(3, zero_stage=3, deepspeed=recomputed) == pytest.approx(12)
    copied = {"zero_optimization": {"zero_hpz_partition_size": 8}}
    near = 5 * (7 / 8) / (15 / 16) * EIGHT.link_gb_s / EIGHT.node_link_gb_s
    assert passes(3, zero_stage=3, deepspeed=copied) == pytest.approx(4 + near)


def test_inside_a_machine_messages_are_faster() -> None:
    near, far = (
        message_seconds(SEVEN, trainer(num_workers=8), machines, 1, SEVEN.parameters)
        for machines in (EIGHT, EIGHT.model_copy(update={"gpus_per_node": 4}))
    )
    assert far / near == pytest.approx(EIGHT.node_link_gb_s / EIGHT.link_gb_s)


def test_an_offloaded_optimiser_takes_longer_and_disks_longest() -> None:
    seconds = [
        optimiser_seconds(
            SEVENTY.parameters,
            trainer(num_workers=8, deepspeed={"zero_optimization": zero}),
            EIGHT,
            H100,
        )
        for zero in ({}, *({"offload_optimizer": {"device": d}} for d in ("cpu", "nvme")))
    ]
    assert seconds == sorted(seconds)
    # From disks: 24 bytes a parameter at 6 GB/s for the whole machine.
    assert seconds[2] - seconds[1] == pytest.approx(24 * SEVENTY.parameters / 6e9)


def test_adapters_spare_a_third_of_the_arithmetic_and_most_messages() -> None:
    lora = LoraConfig(rank=16)
    for stage, recomputed in ((2, False), (3, True)):
        own = trainer(num_workers=16, zero_stage=stage, activation_checkpointing=recomputed)
        whole, small = (step_time(SEVEN, own, EIGHT, H100, 128, 240, x) for x in (None, lora))
        # Forward and backward, and forward once more; not the gradients of the weights.
        share = 6 / 8 if recomputed else 4 / 6
        assert small.arithmetic == pytest.approx(share * whole.arithmetic)
        # Stage 3 gathers all weights three times still, and scatters next to nothing.
        sent = 3 / 4 if stage == 3 else 0.0
        assert small.messages == pytest.approx(sent * whole.messages, abs=0.01 * whole.messages)
        assert small.optimiser < 0.01 * whole.optimiser


def test_packing_decides_micro_batches() -> None:
    micro_batches, computed = packed(128, 240, 8, 1024, 1)
    assert micro_batches == 4 and 128 * 240 / 8 <= computed < 1.1 * 128 * 240 / 8
    assert packed(128, 240, 128, 1024, 1)[0] == 1
    # Fewer examples than ranks: some compute padding.
    assert packed(4, 240, 8, 1024, 1)[0] == 1


@settings(deadline=None, max_examples=50)
@given(
    ranks=st.integers(1, 128), rows=st.integers(1, 4), tokens=st.integers(32, 500),
    stage=st.integers(0, 3), mfu=st.floats(0.05, 0.95),
)  # fmt: skip
def test_a_step_never_beats_its_arithmetic_nor_its_messages(
    ranks: int, rows: int, tokens: int, stage: int, mfu: float
) -> None:
    machines = EIGHT.model_copy(update={"training_mfu": mfu})
    own = trainer(num_workers=ranks, micro_batch_rows=rows, zero_stage=stage)
    step = step_time(SEVEN, own, machines, H100, 128, tokens)
    least = training_flops(decoder(SEVEN), tokens, 128) / (ranks * 989e12 * mfu)
    # The mean of the drawn lengths is a whole number near the one asked for.
    assert step.seconds >= 0.98 * least and step.seconds >= step.messages
    faster = step_time(SEVEN, own, machines, GPUS["B200"], 128, tokens)
    assert faster.arithmetic < step.arithmetic and faster.messages == step.messages


def sampler(**settings: Any) -> SamplerConfig:
    return SamplerConfig(**{"gpus_per_replica": 1, "vllm": {"dtype": "bfloat16"}, **settings})


def test_one_sequence_is_decoded_at_the_speed_of_memory() -> None:
    own = sampler(vllm={"dtype": "bfloat16", "max_num_seqs": 1})
    machines = EIGHT.model_copy(update={"engine_step_s": 0.0, "bandwidth_share": 1.0})
    memory = sampler_memory(SEVEN, own, 80e9, SEVEN.parameters)
    rate = sampling_rate(SEVEN, own, memory, machines, H100, context=1)
    assert rate.bound == "memory" and rate.sequences == 1
    assert rate.tokens_s == pytest.approx(3350e9 / (2 * SEVEN.parameters), rel=1e-3)


def test_many_short_sequences_are_arithmetic() -> None:
    own = sampler(vllm={"dtype": "bfloat16", "max_num_seqs": 4096})
    machines = EIGHT.model_copy(update={"engine_step_s": 0.0, "sampling_mfu": 0.1})
    memory = sampler_memory(SEVEN, own, 80e9, SEVEN.parameters)
    rate = sampling_rate(SEVEN, own, memory, machines, H100, context=10)
    assert rate.bound == "arithmetic"
    assert rate.tokens_s == pytest.approx(rate.prompt_tokens_s)


def test_a_wider_replica_is_faster_but_not_more_than_its_gpus() -> None:
    one, four = (sampler(tensor_parallel_size=n, gpus_per_replica=n) for n in (1, 4))
    rates = [
        sampling_rate(
            SEVEN, own, sampler_memory(SEVEN, own, 80e9, SEVEN.parameters), EIGHT, H100, 200
        ).tokens_s
        for own in (one, four)
    ]
    assert rates[0] < rates[1] < 4 * rates[0]


def test_a_refresh_is_as_long_as_its_slower_half() -> None:
    own = trainer(num_workers=64)
    whole = 2 * SEVENTY.parameters / GB
    assert refresh_seconds(SEVENTY, own, EIGHT) == pytest.approx(whole / EIGHT.link_gb_s)
    # Below ZeRO-3 there is nothing to gather.
    assert refresh_seconds(SEVENTY, trainer(num_workers=64, zero_stage=2), EIGHT) == pytest.approx(
        whole / EIGHT.link_gb_s
    )


def test_what_takes_longest_is_named() -> None:
    assert StepTime(2, 1, 0, 1).bound == "arithmetic" and StepTime(2, 1, 0, 1).seconds == 2
    assert StepTime(1, 2, 5, 1).bound == "optimiser" and StepTime(1, 2, 5, 1).seconds == 7
