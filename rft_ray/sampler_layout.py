"""How vLLM lays a Llama-like model out: which slice of which trainer's tensor a worker keeps.

Stated here rather than read from vLLM, which takes half a minute to import; the tests compare it
with vLLM's own model, parameter by parameter and element by element. Left out: quantised samplers,
pipeline parallelism and mixtures of experts.
"""

import math
from dataclasses import dataclass, replace

from rft_ray.buckets import TensorSpec
from rft_ray.errors import InputError

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""vLLM's linear layers that hold several of the trainer's, one after the other."""
FUSED_INTO = {part: whole for whole, parts in FUSED.items() for part in parts}
CUT_BY_ROWS = {"q_proj", "gate_proj", "up_proj"}
CUT_BY_KV_HEADS = {"k_proj", "v_proj"}
CUT_BY_COLUMNS = {"o_proj", "down_proj"}
CUT_BY_VOCABULARY = {"embed_tokens", "lm_head"}
REPLICATED = {"input_layernorm", "post_attention_layernorm", "norm", "q_norm", "k_norm"}
VOCABULARY_MULTIPLE = 64
"""vLLM pads the vocabulary to a multiple of this before it cuts it."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Part of a trainer's tensor and where it goes in a sampler's parameter, along one dimension.

    Along every other dimension the two have the same length and all of it is taken.
    """

    source: str
    dim: int
    source_start: int
    target_start: int
    length: int


@dataclass(frozen=True, slots=True)
class SamplerParameter:
    """A parameter of one tensor-parallel worker, and the slices that fill it."""

    spec: TensorSpec
    rank: int
    slices: tuple[Slice, ...]
    padding: int = 0
    """Rows at the end that no tensor fills: the vocabulary's padding."""

    @property
    def received_bytes(self) -> int:
        """Bytes of its slices."""
        rows = self.spec.shape[0]
        return self.spec.num_bytes * (rows - self.padding) // rows


def place_tensors(
    tensors: list[TensorSpec], kv_heads: int, tensor_parallel: int
) -> list[SamplerParameter]:
    """The parameters of every worker of one replica, rank by rank, with what fills them.

    Raises InputError for a tensor that has no known place or does not divide.
    """
    targets: dict[str, list[TensorSpec]] = {}
    for tensor in tensors:
        targets.setdefault(target_name(tensor.name), []).append(tensor)
    for name, sources in targets.items():
        _check_parts(name, sources)
    return [
        _place(name, sources, _Worker(rank, tensor_parallel, kv_heads))
        for rank in range(tensor_parallel)
        for name, sources in targets.items()
    ]


def target_name(name: str) -> str:
    """The sampler's parameter that a trainer's tensor goes to.

    "model.layers.0.self_attn.k_proj.weight" -> "model.layers.0.self_attn.qkv_proj.weight"
    """
    *path, layer, kind = name.split(".")
    return ".".join([*path, FUSED_INTO.get(layer, layer), kind])


def _check_parts(target: str, sources: list[TensorSpec]) -> None:
    """All parts of a fused layer, in the order in which it holds them."""
    layer = target.split(".")[-2]
    found = tuple(source.name.split(".")[-2] for source in sources)
    if found != FUSED.get(layer, (layer,)):
        raise InputError(f"model: {target} of the sampler cannot be made of {', '.join(found)}")


@dataclass(frozen=True, slots=True)
class _Worker:
    """One tensor-parallel rank, and what it needs to know to cut."""

    rank: int
    ranks: int
    kv_heads: int


def _place(name: str, sources: list[TensorSpec], worker: _Worker) -> SamplerParameter:
    slices: list[Slice] = []
    filled = 0
    for source in sources:
        cut = replace(_cut(source, worker), target_start=filled)
        slices.append(cut)
        filled += cut.length
    shape, dim, padding = list(sources[0].shape), slices[0].dim, 0
    if name.split(".")[-2] in CUT_BY_VOCABULARY:
        padding = _padded_vocabulary(shape[0]) // worker.ranks - filled
    shape[dim] = filled + padding
    spec = TensorSpec(name, tuple(shape), sources[0].dtype)
    return SamplerParameter(spec, worker.rank, tuple(slices), padding)


def _cut(source: TensorSpec, worker: _Worker) -> Slice:
    """What a worker keeps of a tensor."""
    layer = source.name.split(".")[-2]
    rank, ranks, rows = worker.rank, worker.ranks, source.shape[0]
    # The bias of a layer cut by columns is added once, after the sum, but every worker stores it.
    if layer in REPLICATED or (layer in CUT_BY_COLUMNS and len(source.shape) == 1):
        return Slice(source.name, 0, 0, 0, rows)
    if layer in CUT_BY_COLUMNS:
        return _even_cut(source, 1, rank, ranks)
    if layer in CUT_BY_ROWS:
        return _even_cut(source, 0, rank, ranks)
    if layer in CUT_BY_VOCABULARY:
        size = _divide(_padded_vocabulary(rows), ranks, source.name)
        start = min(rank * size, rows)
        return Slice(source.name, 0, start, 0, min((rank + 1) * size, rows) - start)
    if layer in CUT_BY_KV_HEADS:
        # With fewer heads than workers, neighbours keep the same head.
        copies = _divide(ranks, worker.kv_heads, source.name) if ranks > worker.kv_heads else 1
        return _even_cut(source, 0, rank // copies, ranks // copies)
    raise InputError(f"model: no place in the sampler is known for the tensor {source.name}")


def _even_cut(source: TensorSpec, dim: int, part: int, parts: int) -> Slice:
    size = _divide(source.shape[dim], parts, source.name)
    return Slice(source.name, dim, part * size, 0, size)


def _padded_vocabulary(rows: int) -> int:
    return math.ceil(rows / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def _divide(length: int, parts: int, name: str) -> int:
    if length % parts:
        raise InputError(f"model: {name} cannot be cut: {length} does not divide by {parts}")
    return length // parts
