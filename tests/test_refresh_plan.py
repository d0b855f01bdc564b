"""A refresh on paper: Llama-2-70B by arithmetic, small models by really filling, vLLM by asking it.

Every element of every parameter of every worker is written once: shown with intervals for the 70B
shape and by counting writes for small ones; vLLM's own loader then has to agree to the last bit.
"""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, LlamaConfig, Qwen2Config

from rft_ray.buckets import TensorSpec
from rft_ray.errors import InputError
from rft_ray.refresh_costs import (
    list_transfers,
    peak_memory,
    print_refresh_plan,
    refresh_plan_lines,
    refresh_seconds,
)
from rft_ray.refresh_plan import (
    LinkRates,
    Participants,
    RefreshPlan,
    describe_tensors,
    partition,
    partition_bytes,
    plan_refresh,
)
from rft_ray.sampler_layout import FUSED, SamplerParameter, place_tensors

BASES = Path(__file__).parents[1] / "configs" / "quickstart_base"
LLAMA_2_70B = LlamaConfig(
    architectures=["LlamaForCausalLM"],
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=32000,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
)
KEYS_OF_LAYER_0 = "model.layers.0.self_attn.qkv_proj.weight"
RANKS, REPLICAS, TENSOR_PARALLEL = 64, 4, 8


@pytest.fixture(scope="module")
def plan() -> RefreshPlan:
    """64 training ranks into 4 replicas of 8 workers."""
    return plan_refresh(LLAMA_2_70B, Participants(RANKS, REPLICAS, TENSOR_PARALLEL))


def small_llama(**shape: object) -> LlamaConfig:
    return LlamaConfig(
        **{
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "vocab_size": 70,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "tie_word_embeddings": False,
            **shape,
        }
    )


def fill(
    parameters: list[SamplerParameter], weights: dict[str, torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each parameter's values and how often each of its elements was written."""
    for parameter in parameters:
        values = torch.zeros(parameter.spec.shape, dtype=torch.float64)
        writes = torch.zeros(parameter.spec.shape, dtype=torch.int64)
        for cut in parameter.slices:
            source = weights[cut.source].narrow(cut.dim, cut.source_start, cut.length)
            values.narrow(cut.dim, cut.target_start, cut.length).copy_(source)
            writes.narrow(cut.dim, cut.target_start, cut.length).add_(1)
        yield values, writes


def test_the_70b_shape_has_the_published_size(plan: RefreshPlan) -> None:
    assert sum(math.prod(tensor.shape) for tensor in plan.tensors) == 68_976_648_192
    assert plan.num_bytes == 2 * 68_976_648_192
    assert len(plan.tensors) == 80 * 9 + 3
    assert plan.tensors[2].name == "model.layers.0.self_attn.k_proj.weight"
    assert plan.tensors[2].shape == (8 * 128, 8192)


@pytest.mark.parametrize("cap_bytes", [2**28, 2**29, 2**30, 2**33])
def test_buckets_hold_the_70b_model_once_in_order_below_the_cap(cap_bytes: int) -> None:
    plan = plan_refresh(LLAMA_2_70B, Participants(), cap_bytes)
    assert list(chain.from_iterable(plan.buckets)) == plan.tensors
    for bucket, size in zip(plan.buckets, plan.bucket_bytes, strict=True):
        assert size == sum(tensor.num_bytes for tensor in bucket)
        assert size <= cap_bytes or (len(bucket) == 1 and bucket[0] in plan.oversized)
    # Embedding, output and three matrices a layer are larger than 256 MiB.
    assert len(plan.oversized) == (2 + 3 * 80 if cap_bytes == 2**28 else 0)
    alone = [line for line in refresh_plan_lines(plan) if "larger than the cap" in line]
    assert len(alone) == len(plan.oversized)


def test_zero_3_partitions_cover_every_70b_tensor_once(plan: RefreshPlan) -> None:
    for numel in {math.prod(tensor.shape) for tensor in plan.tensors}:
        parts = partition(numel, RANKS)
        assert parts[0][0] == 0 and parts[-1][1] == numel
        assert all(end == start for (_, end), (start, _) in pairwise(parts))
    # All of its lengths divide by 64: nothing is padded.
    assert plan.partition_bytes * RANKS == plan.num_bytes


@given(st.integers(0, 500), st.integers(1, 70))
def test_partitions_are_those_of_a_padded_flat_tensor(numel: int, ranks: int) -> None:
    """DeepSpeed pads until the length divides, and rank r narrows the r-th part."""
    padded = numel + (ranks - numel % ranks if numel % ranks else 0)
    owners = Counter(chain.from_iterable(range(*part) for part in partition(numel, ranks)))
    assert owners == Counter(range(numel))
    size = padded // ranks
    assert partition_bytes(TensorSpec("w", (numel,), "bfloat16"), ranks) == 2 * size
    for rank, (start, end) in enumerate(partition(numel, ranks)):
        assert end - start == max(0, min(size, numel - rank * size))


def test_every_element_of_every_70b_worker_is_written_once(plan: RefreshPlan) -> None:
    shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
    taken: dict[str, list[tuple[int, int]]] = {}
    for parameter in plan.parameters:
        (dim,) = {cut.dim for cut in parameter.slices}
        reached = 0
        for cut in sorted(parameter.slices, key=lambda cut: cut.target_start):
            assert cut.target_start == reached and cut.length > 0
            reached += cut.length
            expected = list(shapes[cut.source])
            assert 0 <= cut.source_start <= cut.source_start + cut.length <= expected[dim]
            # Along the other dimensions source and target agree.
            expected[dim] = parameter.spec.shape[dim]
            assert tuple(expected) == parameter.spec.shape
            taken.setdefault(cut.source, []).append((cut.source_start, cut.length))
        assert reached == parameter.spec.shape[dim] and parameter.padding == 0
    assert set(taken) == set(shapes)
    for name, cuts in taken.items():
        if name.endswith("norm.weight"):
            assert cuts == [(0, 8192)] * TENSOR_PARALLEL
        else:  # no two workers keep the same element
            ends = [start + length for start, length in sorted(cuts)]
            assert [start for start, _ in sorted(cuts)] == [0, *ends[:-1]]
            assert ends[-1] in shapes[name]
    names = Counter((p.rank, p.spec.name) for p in plan.parameters)
    assert set(names.values()) == {1} and len(names) == TENSOR_PARALLEL * (80 * 6 + 3)


@settings(max_examples=40, deadline=None)
@given(
    kv_heads=st.sampled_from([1, 2, 4, 8]),
    group=st.sampled_from([1, 2, 8]),
    ranks=st.sampled_from([1, 2, 4, 8]),
    vocabulary=st.integers(1, 200),
    bias=st.booleans(),
    tied=st.booleans(),
)
def test_small_models_are_filled_once_with_what_belongs_there(
    kv_heads: int, group: int, ranks: int, vocabulary: int, bias: bool, tied: bool
) -> None:
    heads = max(kv_heads * group, ranks)
    config = small_llama(
        hidden_size=64,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        attention_bias=bias,
        mlp_bias=bias,
        tie_word_embeddings=tied,
    )
    tensors, start, weights = describe_tensors(config), 1, {}
    for tensor in tensors:  # every element of the model is another number
        numel = math.prod(tensor.shape)
        weights[tensor.name] = torch.arange(start, start + numel).double().view(tensor.shape)
        start += numel
    parameters = place_tensors(tensors, kv_heads, ranks)
    filled = list(fill(parameters, weights))
    for parameter, (values, writes) in zip(parameters, filled, strict=True):
        rows = parameter.spec.shape[0] - parameter.padding
        assert (writes[:rows] == 1).all() and (writes[rows:] == 0).all()
        assert int(writes.sum()) * 2 == parameter.received_bytes
        assert len(values[:rows].unique()) == values[:rows].numel()
    everywhere = torch.cat([values.flatten() for values, _ in filled]).unique()
    assert everywhere[everywhere > 0].equal(torch.arange(1, start).double())


def test_the_slices_of_a_layer_are_those_of_tensor_parallelism() -> None:
    tensors = describe_tensors(small_llama())
    weights = {t.name: torch.randn(t.shape, dtype=torch.float64) for t in tensors}
    parameters = place_tensors(tensors, 2, 2)
    filled = {
        (parameter.rank, parameter.spec.name): values
        for parameter, (values, _) in zip(parameters, fill(parameters, weights), strict=True)
    }
    attention = "model.layers.1.self_attn"
    for rank in range(2):
        parts = [weights[f"{attention}.{x}_proj.weight"].chunk(2)[rank] for x in "qkv"]
        assert filled[rank, f"{attention}.qkv_proj.weight"].equal(torch.cat(parts))
        output = weights[f"{attention}.o_proj.weight"].chunk(2, dim=1)[rank]
        assert filled[rank, f"{attention}.o_proj.weight"].equal(output)
    # 70 words are padded to 128: the second worker has 6 of its 64.
    embedding = filled[1, "model.embed_tokens.weight"]
    assert embedding[:6].equal(weights["model.embed_tokens.weight"][64:])
    assert embedding.shape == (64, 16) and not embedding[6:].any()


def test_neighbours_share_a_key_head_where_there_are_too_few() -> None:
    """Two heads over four ranks: the ranks of a head's queries keep it."""
    parameters = place_tensors(describe_tensors(small_llama()), 2, 4)
    keys = [p.slices[1] for p in parameters if p.spec.name == KEYS_OF_LAYER_0]
    assert [(cut.source_start, cut.length) for cut in keys] == [(0, 4), (0, 4), (4, 4), (4, 4)]


def test_what_cannot_be_cut_or_placed_is_one_clear_line() -> None:
    with pytest.raises(InputError, match=r"q_proj\.weight cannot be cut: 16 does not divide by 3"):
        place_tensors(describe_tensors(small_llama(vocab_size=192)), 2, 3)
    with pytest.raises(InputError, match=r"model\.embed_tokens\.weight cannot be cut: 128 does"):
        plan_refresh(small_llama(), Participants(tensor_parallel=3))
    other = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=50)
    with pytest.raises(InputError, match=r"no place .* the tensor transformer\.wte\.weight"):
        plan_refresh(other, Participants(tensor_parallel=1))
    tensors = [t for t in describe_tensors(small_llama()) if "k_proj" not in t.name]
    with pytest.raises(InputError, match=r"qkv_proj\.weight of the sampler cannot be made of q_p"):
        place_tensors(tensors, 2, 1)


def test_qwen_biases_have_a_place() -> None:
    shape = small_llama().to_dict()
    keys = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    config = Qwen2Config(**{key: shape[key] for key in keys}, num_hidden_layers=1, vocab_size=64)
    plan = plan_refresh(config, Participants(tensor_parallel=2))
    bias = next(p for p in plan.parameters if p.spec.name.endswith("qkv_proj.bias"))
    assert bias.spec.shape == (16,) and len(bias.slices) == 3


def test_links_carry_what_arithmetic_says(plan: RefreshPlan) -> None:
    ways = {way.name: way for way in list_transfers(plan)}
    model, workers = plan.num_bytes, REPLICAS * TENSOR_PARALLEL
    gather = ways["gather to rank 0"]
    assert (gather.links, gather.link_bytes) == (RANKS - 1, model // RANKS)
    assert gather.port_bytes == model - model // RANKS
    for shape, children in (("star", workers), ("binary tree", 2), ("chain", 1)):
        way = ways[f"broadcast, {shape}"]
        assert (way.links, way.link_bytes) == (workers, model)
        assert way.port_bytes == children * model
        assert way.seconds == pytest.approx(children * model / 20e9, rel=0.01)
    norms = (2 * 80 + 1) * 8192 * 2
    share = (model - norms) // TENSOR_PARALLEL + norms
    own, others = ways["slices, chains from rank 0"], ways["slices, chains from a rank each"]
    assert own.link_bytes == others.link_bytes == others.port_bytes == share
    assert own.port_bytes == TENSOR_PARALLEL * share


def test_rates_are_the_users_and_overlap_hides_the_faster_half(plan: RefreshPlan) -> None:
    rates = LinkRates(trainer_gb_s=100, sampler_gb_s=10)
    slow = RefreshPlan(
        plan.tensors, plan.buckets, plan.cap_bytes, plan.parameters, plan.participants, rates
    )
    ways = {way.name: way.seconds for way in list_transfers(slow)}
    assert ways["gather to rank 0"] == pytest.approx(plan.num_bytes * 63 / 64 / 100e9)
    in_turn, overlapped = refresh_seconds(slow)
    assert in_turn == pytest.approx(ways["gather to rank 0"] + ways["broadcast, chain"])
    assert ways["broadcast, chain"] < overlapped < ways["broadcast, chain"] + 0.02


def test_a_tree_is_as_deep_as_its_workers_need() -> None:
    # A chunk as large as the model: each level below the first costs as much as the first.
    rates = LinkRates(chunk_bytes=2**40)
    for workers, levels in ((1, 1), (2, 1), (3, 2), (6, 2), (7, 3)):
        plan = plan_refresh(small_llama(), Participants(2, workers, 1), rates=rates)
        tree = {way.name: way for way in list_transfers(plan)}["broadcast, binary tree"]
        children = min(2, workers)
        expected = levels * children * plan.num_bytes / 20e9
        assert tree.seconds == pytest.approx(expected)


def test_memory_counts_buckets_and_the_layer_put_together(plan: RefreshPlan) -> None:
    largest = max(plan.bucket_bytes)
    # 64 ranks divide every tensor: what is gathered is as large as what is sent.
    assert peak_memory(plan).trainer == 2 * largest
    assert peak_memory(plan, overlapped=True).trainer == 3 * largest
    assert plan.spread == []
    layer = 2 * 28672 * 8192 * 2 // TENSOR_PARALLEL
    assert peak_memory(plan).sampler == largest + layer
    pair = max(map(sum, pairwise(plan.bucket_bytes)))
    assert peak_memory(plan, overlapped=True).sampler == pair + layer


def test_a_layer_in_two_buckets_and_a_padded_vocabulary_keep_buckets_alive() -> None:
    whole = small_llama(num_hidden_layers=1, vocab_size=64)
    each = plan_refresh(whole, Participants(1, 1, 1), cap_bytes=1)
    assert [len(bucket) for bucket in each.buckets] == [1] * 12
    assert each.spread == [
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.0.mlp.gate_up_proj.weight",
    ]
    embedding, q, k, gate = 64 * 16 * 2, 16 * 16 * 2, 8 * 16 * 2, 24 * 16 * 2
    assert peak_memory(each).sampler == max(embedding, q + 2 * k, 2 * gate) + embedding
    assert "2 of the sampler's parameters come in more" in "\n".join(refresh_plan_lines(each))
    # With 63 words a row is missing: the embedding's bucket stays to the end.
    padded = plan_refresh(
        small_llama(num_hidden_layers=1, vocab_size=63), Participants(1, 1, 1), cap_bytes=1
    )
    words = 63 * 16 * 2
    assert peak_memory(padded).sampler == 2 * words + embedding


def test_the_plan_is_printed(plan: RefreshPlan, capsys: pytest.CaptureFixture[str]) -> None:
    print_refresh_plan(plan)
    lines = capsys.readouterr().out.splitlines()
    assert lines == refresh_plan_lines(plan) and max(map(len, lines)) <= 100
    assert lines[0] == "refresh: 69 billion parameters in 723 tensors, 138 GB"
    assert "64 ZeRO-3 ranks" in lines[1] and "4 x 8 sampler workers (17.25 GB each)" in lines[1]


@pytest.fixture(scope="module")
def vllm_layouts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """What vLLM makes of the bases over 1, 2 and 4 ranks and of the 70B shape over 8."""
    root = tmp_path_factory.mktemp("layouts")
    LLAMA_2_70B.save_pretrained(root / "llama-2-70b")
    cases = [(BASES / "untied", 1), (BASES / "untied", 2), (BASES / "untied", 4)]
    cases += [(BASES / "tied", 2), (root / "llama-2-70b", TENSOR_PARALLEL)]
    command = [sys.executable, str(Path(__file__).with_name("vllm_layout.py"))]
    for folder, ranks in cases:
        out = root / f"{folder.name}-{ranks}"
        out.mkdir()
        command += [str(folder), str(ranks), str(out)]
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return root, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.engine
@pytest.mark.local
def test_vllm_fuses_what_the_plan_fuses(
    vllm_layouts: tuple[Path, dict[str, list[str]]],
) -> None:
    assert {whole: list(parts) for whole, parts in FUSED.items()} == vllm_layouts[1]


@pytest.mark.engine
@pytest.mark.local
def test_vllm_has_the_plans_parameters_for_the_70b_shape(
    plan: RefreshPlan, vllm_layouts: tuple[Path, dict[str, list[str]]]
) -> None:
    for rank in range(TENSOR_PARALLEL):
        own = {p.spec.name: list(p.spec.shape) for p in plan.parameters if p.rank == rank}
        found = vllm_layouts[0] / f"llama-2-70b-{TENSOR_PARALLEL}" / f"{rank}.json"
        assert json.loads(found.read_text()) == own


@pytest.mark.engine
@pytest.mark.local
@pytest.mark.parametrize(
    ("base", "ranks"), [("untied", 1), ("untied", 2), ("untied", 4), ("tied", 2)]
)
def test_vllms_loader_writes_what_the_plan_writes(
    base: str, ranks: int, vllm_layouts: tuple[Path, dict[str, list[str]]]
) -> None:
    """Two key heads over four ranks, and 523 words padded to 576, are among the cases."""
    from safetensors.torch import load_file

    config = LlamaConfig.from_pretrained(BASES / base)
    plan = plan_refresh(config, Participants(tensor_parallel=ranks))
    weights = load_file(BASES / base / "model.safetensors")
    assert set(weights) == {tensor.name for tensor in plan.tensors}
    for rank in range(ranks):
        own = [p for p in plan.parameters if p.rank == rank]
        found = load_file(vllm_layouts[0] / f"{base}-{ranks}" / f"{rank}.safetensors")
        assert set(found) == {p.spec.name for p in own}
        for parameter, (values, _) in zip(own, fill(own, weights), strict=True):
            assert found[parameter.spec.name].double().equal(values), parameter.spec.name


def test_the_plan_of_an_online_config_has_its_refresh(capsys: pytest.CaptureFixture[str]) -> None:
    from rft_ray.config_file import load_config
    from rft_ray.plan import print_plan

    config = load_config("configs/quickstart_online.yaml", ["sampler.num_replicas=2"])
    assert print_plan(config) == 0
    shown = capsys.readouterr().out
    assert "each refresh of the samplers" in shown and "bucket" in shown
    elsewhere = load_config("configs/llama2_70b_online.yaml")
    assert print_plan(elsewhere) == 0
    assert "is not planned: its folder is not here" in capsys.readouterr().out
