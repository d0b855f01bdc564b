"""Hugging Face folders of the weights being trained, each with a probe to check a sampler against.

All ranks take part, since under ZeRO-3 a parameter exists whole only while it is gathered; rank 0
writes, one shard file at a time, so it never holds the model twice. A folder appears complete or
not at all. Checkpoints for resuming are `engine.py`'s.
"""

import json
import math
import os
import shutil
from pathlib import Path

import deepspeed
import torch
from deepspeed import DeepSpeedEngine
from safetensors.torch import save_file
from torch import Tensor, distributed

from rft_ray.adapters import adapted_layers, base_name, merged_weight, weight_parts
from rft_ray.packing import ExampleColumns
from rft_ray.quantisation import whole_form
from rft_ray.sequence_parallel import whole_rows

MAX_SHARD_BYTES = 4 * 2**30
PROBE_SEQUENCES = 4
PROBE_TOKENS = 64
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".index.json")
WRITTEN_HERE = ("config.json", "probe.json")


def probe_sequences(columns: ExampleColumns) -> list[list[int]]:
    """The beginnings of the first examples: the text on which samplers are compared with us."""
    count = min(PROBE_SEQUENCES, len(columns.lengths))
    starts = columns.offsets[:count]
    ends = columns.offsets[1 : count + 1]
    return [
        columns.token_ids[start : min(end, start + PROBE_TOKENS)].tolist()
        for start, end in zip(starts, ends, strict=True)
    ]


@torch.no_grad()
def probe_logprobs(engine: DeepSpeedEngine, sequences: list[list[int]]) -> list[list[float]]:
    """log p of each token given those before it, first token left out, by the current weights."""
    result = []
    with whole_rows(engine.module):
        for sequence in sequences:
            ids = torch.tensor([sequence], device=engine.device)
            logits = engine(input_ids=ids, use_cache=False).logits[0, :-1]
            picked = logits.float().log_softmax(dim=-1).gather(1, ids[0, 1:, None])
            result.append(picked.squeeze(1).tolist())
    return result


def export_model(
    engine: DeepSpeedEngine,
    source: str,
    folder: str,
    probes: list[list[int]],
    step: int,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the current weights to `folder`, with the tokeniser and config files of `source`.

    The writer holds one file of `max_shard_bytes`, or the largest single tensor, at a time.

    Weights keep the type they are trained in. Returns on every rank after the folder is there.
    """
    partial = f"{folder}.partial"
    is_writer = engine.global_rank == 0
    if is_writer:
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
        _copy_other_files(source, partial)
        engine.module.config.save_pretrained(partial)
    logprobs = probe_logprobs(engine, probes)
    _write_weights(engine, partial, max_shard_bytes)
    if is_writer:
        probe = {"token_ids": probes, "logprobs": logprobs, "step": step}
        Path(partial, "probe.json").write_text(json.dumps(probe), encoding="utf-8")
        # A step redone after a crash may find its export there: the same weights, already read.
        shutil.rmtree(partial) if os.path.isdir(folder) else os.rename(partial, folder)
    distributed.barrier()


def _copy_other_files(source: str, folder: str) -> None:
    for file in Path(source).iterdir():
        is_written_here = file.name in WRITTEN_HERE or file.name.endswith(WEIGHT_SUFFIXES)
        if file.is_file() and not is_written_here:
            shutil.copyfile(file, Path(folder, file.name))


def _write_weights(engine: DeepSpeedEngine, folder: str, max_shard_bytes: int) -> None:
    shards = plan_shards(unique_tensors(engine), max_shard_bytes)
    names: dict[str, str] = {}
    total_bytes = 0
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = "model.safetensors" if len(shards) == 1 else file
        tensors = _gather(engine, shard)
        names |= dict.fromkeys(tensors, file)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
        if tensors:
            save_file(tensors, Path(folder, file), metadata={"format": "pt"})
    if len(shards) > 1 and names:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": names}
        Path(folder, "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def unique_tensors(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; tied ones once, under the first name.

    Adapters are not among them: they are part of the weights they adapt.
    """
    unique: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in engine.module.state_dict(keep_vars=True).items():
        if own := base_name(name):
            unique.setdefault(id(tensor), (own, tensor))
    return dict(unique.values())


def plan_shards(tensors: dict[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """Consecutive tensors in groups of at most `max_bytes`, or of one larger tensor."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        shape, dtype = whole_form(tensor)
        own = math.prod(shape) * dtype.itemsize
        size += own
        if shards[-1] and size > max_bytes:
            shards.append({})
            size = own
        shards[-1][name] = tensor
    return shards


def _gather(engine: DeepSpeedEngine, shard: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on rank 0's CPU, nothing elsewhere; one parameter is whole at a time."""
    is_sharded = engine.zero_optimization_partition_weights()
    layers, copies = adapted_layers(engine.module), {}
    for name, tensor in shard.items():
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        parts = weight_parts(tensor, layer := layers.get(id(tensor)))
        with deepspeed.zero.GatheredParameters(parts, enabled=is_sharded and is_parameter):
            if engine.global_rank == 0:
                copies[name] = merged_weight(tensor, layer).to("cpu", copy=True).contiguous()
    return copies
