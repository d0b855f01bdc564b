"""Run as a program: vLLM's own Llama, rank by rank, as its tensor-parallel workers would hold it.

    python vllm_layout.py FOLDER RANKS OUT [FOLDER RANKS OUT ...]

Writes OUT/RANK.json with the name and shape of every parameter and, where the folder has weights,
OUT/RANK.safetensors with what vLLM's loader makes of them. No engine is started: one process per
rank, forked because importing vLLM takes longer than all the rest.
"""

import json
import multiprocessing
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from vllm.config import DeviceConfig, ModelConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.model_executor.models.llama import LlamaForCausalLM


def write_rank(folder: Path, ranks: int, out: Path, rank: int) -> None:
    """Build the model of one rank, load it if there are weights, write it."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    model = ModelConfig(str(folder), dtype="float32", skip_tokenizer_init=True)
    config = VllmConfig(model_config=model, device_config=DeviceConfig("cpu"))
    weights = folder / "model.safetensors"
    with set_current_vllm_config(config), torch.device("cpu" if weights.exists() else "meta"):
        meeting = f"file://{out}/meeting"
        parallel_state.init_distributed_environment(ranks, rank, meeting, rank, "gloo")
        with torch.device("cpu"):
            parallel_state.initialize_model_parallel(ranks, backend="gloo")
        llama = LlamaForCausalLM(vllm_config=config)
        if weights.exists():
            llama.load_weights(load_file(weights).items())
            save_file(dict(llama.named_parameters()), out / f"{rank}.safetensors")
    shapes = {name: list(weight.shape) for name, weight in llama.named_parameters()}
    (out / f"{rank}.json").write_text(json.dumps(shapes))
    os._exit(0)  # vLLM's group has no other quick way out


def main(arguments: list[str]) -> int:
    """One model after another; the exit status is the number of ranks that failed."""
    failed = 0
    for folder, ranks, out in zip(*[iter(arguments)] * 3, strict=True):
        context = multiprocessing.get_context("fork")
        parts = [(Path(folder), int(ranks), Path(out), rank) for rank in range(int(ranks))]
        processes = [context.Process(target=write_rank, args=part) for part in parts]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            failed += process.exitcode != 0
    print(json.dumps(LlamaForCausalLM.packed_modules_mapping))
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
