"""Planned memory against DeepSpeed's estimators, and against what training really takes.

Run: pytest tests/test_memory_plan.py
"""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_ray.config import SamplerConfig, TrainerConfig
from rft_ray.memory_plan import (
    GPU_RUNTIME,
    activation_bytes,
    logit_bytes,
    sampler_memory,
    training_memory,
)
from rft_ray.model_shapes import LLAMAS, ModelShape

SEVEN, SEVENTY = LLAMAS["llama-2-7b"], LLAMAS["llama-2-70b"]


def state(memory: Any) -> float:
    return memory.weights + memory.gradients + memory.optimiser


def trainer(**settings: Any) -> TrainerConfig:
    return TrainerConfig(**{"dtype": "bfloat16", "num_workers": 4, "row_tokens": 1, **settings})


def offloaded(stage: int, **places: str) -> TrainerConfig:
    zero = {name: {"device": place} for name, place in places.items()}
    return trainer(zero_stage=stage, gpus_per_worker=1, deepspeed={"zero_optimization": zero})


@pytest.mark.engine
@pytest.mark.parametrize("shape", [SEVEN, SEVENTY])
@pytest.mark.parametrize("ranks", [1, 8, 24])
def test_state_is_what_deepspeed_estimates(shape: ModelShape, ranks: int) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as estimate_3
    from deepspeed.runtime.zero.stage_1_and_2 import (
        estimate_zero2_model_states_mem_needs as estimate_2,
    )

    count = shape.parameters
    _, device = estimate_2(count, ranks, 1, cpu_offload=False)
    two = training_memory(shape, trainer(zero_stage=2, num_workers=ranks))
    assert state(two) == pytest.approx(device, rel=1e-6)
    _, device, largest = estimate_3(
        count, shape.largest_layer, ranks, 1, cpu_offload=False, cpu_offload_params=False
    )
    three = training_memory(shape, trainer(zero_stage=3, num_workers=ranks))
    assert state(three) == pytest.approx(device - largest, rel=1e-6)
    # It counts the largest layer, we what DeepSpeed may keep by its own settings.
    assert three.gathered >= largest / 2


@pytest.mark.engine
def test_offloaded_state_is_within_deepspeeds_estimates() -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as estimate_3
    from deepspeed.runtime.zero.stage_1_and_2 import (
        estimate_zero2_model_states_mem_needs as estimate_2,
    )

    count = SEVEN.parameters
    host, device = estimate_2(count, 4, 1, cpu_offload=True)
    own = training_memory(SEVEN, offloaded(2, offload_optimizer="cpu"))
    assert state(own) == pytest.approx(device)
    # The estimate is what is needed times a factor of 1.5 for buffers.
    assert host / 1.5 <= 4 * own.host <= host
    host, device, largest = estimate_3(
        count, SEVEN.largest_layer, 4, 1, cpu_offload=True, cpu_offload_params=True
    )
    own = training_memory(SEVEN, offloaded(3, offload_optimizer="cpu", offload_param="cpu"))
    assert state(own) == device - largest == 0
    assert host / 1.5 == pytest.approx(4 * own.host)


def test_offloading_to_disks_takes_them() -> None:
    own = training_memory(SEVEN, offloaded(3, offload_optimizer="nvme"))
    assert own.nvme == pytest.approx(12 * SEVEN.parameters / 4)
    assert own.host == pytest.approx(4 * SEVEN.parameters / 4)
    assert state(own) == pytest.approx(2 * SEVEN.parameters / 4)


def test_a_second_copy_of_the_weights_takes_its_share() -> None:
    copied = {"zero_optimization": {"zero_hpz_partition_size": 8}}
    plain = training_memory(SEVENTY, trainer(zero_stage=3, num_workers=16))
    own = training_memory(SEVENTY, trainer(zero_stage=3, num_workers=16, deepspeed=copied))
    assert own.device - plain.device == pytest.approx(2 * SEVENTY.parameters / 8)
    # It is ZeRO-3's.
    two = training_memory(SEVENTY, trainer(zero_stage=2, deepspeed=copied))
    assert two == training_memory(SEVENTY, trainer(zero_stage=2))


@pytest.mark.parametrize(
    ("settings", "bytes_a_parameter"),
    [
        ({"dtype": "bfloat16", "zero_stage": 0}, 2 + 6 + 12 / 4),
        ({"dtype": "bfloat16", "zero_stage": 1}, 2 + 6 + 12 / 4),
        ({"dtype": "bfloat16", "zero_stage": 2}, 2 + (6 + 12) / 4),
        ({"dtype": "bfloat16", "zero_stage": 3}, (2 + 4 + 12) / 4),
        ({"dtype": "float32", "zero_stage": 0}, 4 + 4 + 8),
        ({"dtype": "float32", "zero_stage": 3}, (4 + 4 + 12) / 4),
        ({"dtype": "float32", "deepspeed": {"zero_optimization": {"stage": 3}}}, (4 + 4 + 12) / 4),
        ({"dtype": "float32", "deepspeed": {"zero_optimization": 3}}, 4 + (4 + 12) / 4),
    ],
)
def test_training_state_is_divided_by_stage(
    settings: dict[str, Any], bytes_a_parameter: float
) -> None:
    own = training_memory(SEVEN, trainer(**settings))
    assert state(own) == pytest.approx(bytes_a_parameter * SEVEN.parameters)
    on_gpu = training_memory(SEVEN, trainer(**settings, gpus_per_worker=1))
    assert on_gpu.device - own.device == pytest.approx(GPU_RUNTIME)


# Width, feed-forward, heads of keys and values, vocabulary, bytes of a value, recomputed.
MEASURED = [
    (512, 1408, 8, 1000, 2, False),
    (512, 2816, 2, 1000, 2, False),
    (512, 1408, 8, 16000, 2, True),
    (512, 1408, 8, 1000, 4, False),
]


@pytest.mark.parametrize(("width", "inner", "kv", "vocabulary", "value", "recomputed"), MEASURED)
def test_activations_are_what_transformers_keeps(
    width: int, inner: int, kv: int, vocabulary: int, value: int, recomputed: bool
) -> None:
    """Every tensor of a forward and backward pass is counted, without computing any of them."""
    shape = ModelShape(4, width, inner, 8, kv, width // 8, vocabulary)
    tokens = 1024
    measured = measured_peak(shape, tokens, value, recomputed)
    planned = activation_bytes(shape, tokens, value, recomputed) + logit_bytes(shape, tokens, value)
    # Logits are gone when the backward pass of the layers is at its peak.
    assert 0.95 * measured <= planned <= 1.2 * measured


def measured_peak(shape: ModelShape, tokens: int, value: int, recomputed: bool) -> float:
    """Bytes of all tensors at the worst moment, parameters and their gradients left out."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker
    from transformers import AutoModelForCausalLM, LlamaConfig

    with FakeTensorMode():
        config = LlamaConfig(
            hidden_size=shape.width, intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads, vocab_size=shape.vocabulary,
        )  # fmt: skip
        dtype = torch.bfloat16 if value == 2 else torch.float32
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        if recomputed:
            model.train()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        tracker = MemTracker()
        tracker.track_external(model)
        ids = torch.zeros(1, tokens, dtype=torch.long)
        with tracker:
            logits = model(input_ids=ids, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids.flatten())
            loss.backward()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
    kinds = {str(getattr(kind, "value", kind)): count for kind, count in peak.items()}
    return kinds["Activation"] + kinds["Temp"]


STEP = """
import resource, sys, torch
from transformers import AutoModelForCausalLM, LlamaConfig
torch.set_num_threads(1)
# what a first pass allocates once
torch.nn.Linear(8, 8)(torch.ones(8, 8)).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
layers, width, inner, vocabulary, tokens = map(int, sys.argv[1:])
config = LlamaConfig(hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
    num_attention_heads=8, num_key_value_heads=8, vocab_size=vocabulary)
model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
adam = torch.optim.AdamW(model.parameters(), fused=True)
ids = torch.randint(0, vocabulary, (1, tokens))
for _ in range(2):
    logits = model(input_ids=ids, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    del logits
    adam.step()
    adam.zero_grad()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_small_training_takes_what_is_planned() -> None:
    """The resident memory of a process that trains, beyond what it had before it made a model."""
    shape = ModelShape(8, 512, 1408, 8, 8, 64, 8000)
    sizes = [shape.layers, shape.width, shape.feed_forward, shape.vocabulary, 1024]
    command = [sys.executable, "-c", STEP, *map(str, sizes)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    measured = 1024 * int(printed.split()[-1])
    own = training_memory(shape, TrainerConfig(zero_stage=0, row_tokens=1024))
    # A system that reclaims pages while they are not in use makes the measured peak smaller.
    assert 0.8 * measured <= own.device <= 1.6 * measured


@settings(deadline=None)
@given(
    layers=st.integers(1, 80), heads=st.sampled_from([8, 16, 64]), ranks=st.integers(1, 64),
    stage=st.integers(0, 3),
)  # fmt: skip
def test_a_higher_stage_and_more_ranks_never_take_more_state(
    layers: int, heads: int, ranks: int, stage: int
) -> None:
    shape = ModelShape(layers, 128 * heads, 352 * heads, heads, heads, 128, 32000)
    own = training_memory(shape, trainer(zero_stage=stage, num_workers=ranks))
    higher = training_memory(shape, trainer(zero_stage=min(3, stage + 1), num_workers=ranks))
    wider = training_memory(shape, trainer(zero_stage=stage, num_workers=2 * ranks))
    assert state(higher) <= state(own) and state(wider) <= state(own)
    assert own.host == own.nvme == 0


def test_activations_grow_with_the_micro_batch_unless_recomputed() -> None:
    row = {"row_tokens": 1024, "num_workers": 1}
    one, four = (training_memory(SEVEN, trainer(micro_batch_rows=n, **row)) for n in (1, 4))
    assert four.activations == 4 * one.activations and four.logits == 4 * one.logits
    settings = {"activation_checkpointing": {}}
    recomputed = training_memory(SEVEN, trainer(deepspeed=settings, **row))
    assert recomputed.activations < 0.15 * one.activations


def sampler(**settings: Any) -> SamplerConfig:
    return SamplerConfig(**{"gpus_per_replica": 1, "vllm": {"dtype": "bfloat16"}, **settings})


def test_a_sampler_has_what_weights_leave_for_its_cache() -> None:
    own = sampler_memory(SEVEN, sampler(), 80e9, SEVEN.parameters)
    # 32 layers x 32 heads x 128, keys and values, 2 bytes: half a megabyte a token.
    assert own.cache_token == 2 * 32 * 32 * 128 * 2
    assert own.weights + own.activations + own.runtime + own.room == pytest.approx(0.9 * 80e9)
    assert own.sequences(200, 10_000) == int(own.room / (200 * own.cache_token))
    assert own.sequences(200, 16) == 16
    half = sampler_memory(SEVEN, sampler(vllm={"gpu_memory_utilization": 0.5}), 80e9, 7 * 10**9)
    assert half.room < own.room / 2
    assert own.least < 0.9 * 80e9 < sampler_memory(SEVENTY, sampler(), 80e9, 70 * 10**9).least


def test_heads_of_keys_and_values_are_shared_only_as_far_as_they_go() -> None:
    wide = [sampler(tensor_parallel_size=n, gpus_per_replica=n) for n in (1, 8, 16)]
    tokens = [sampler_memory(SEVENTY, own, 80e9, 1).cache_token for own in wide]
    assert tokens[1] == tokens[0] / 8 and tokens[2] == tokens[1]


def test_on_a_cpu_the_cache_is_as_large_as_vllm_is_told() -> None:
    told = sampler(gpus_per_replica=0, env={"VLLM_CPU_KVCACHE_SPACE": "2"})
    assert sampler_memory(SEVEN, told, None, 1).room == 2 * 2**30
    assert sampler_memory(SEVEN, sampler(gpus_per_replica=0), None, 1).room == 4 * 2**30
    assert sampler_memory(SEVEN, sampler(), None, 1).room is None
