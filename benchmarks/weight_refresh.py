"""Claim: new weights reach a running engine at the speed of the network, not of a file system.

    python benchmarks/weight_refresh.py [--quick] [--model FOLDER]

A DeepSpeed engine in this process refreshes a vLLM engine behind Ray Serve. Transfer alone over the
network (the same buckets into the real worker, packed beforehand and not loaded) is held against
the same bytes broadcast by gloo between two bare processes. A whole refresh, from the call in the
train loop to its return, through memory that both processes map (`online.transfer: shared`), is
held against saving the weights to memory (/dev/shm) and vLLM's own `reload_weights` with the engine
alive. Rivals take turns in one run after one turn to warm up. Info rows: the whole refresh over the
network, pause to resume, and the parity of log-probabilities after the last refresh.

Loading is most of a refresh, ours or the rival's: of 0.57 s of processor time for 538 MB, 0.30 s
are oneDNN packing what its kernels read, for which vLLM has no call that writes in place, 0.14 s
copying into layers, and 0.05 s Python.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SMOLLM2 = ROOT / "models/smollm2-135m-instruct"
TOKENIZER = ROOT / "configs/quickstart_base/tied"
ENGINE = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 8,
    "worker_extension_cls": "benchmarks.weight_refresh.TransferOnly",
}
ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}
TRANSFER_GOAL, RELOAD_GOAL = 0.7, 1.5
TOLERANCE = 1e-3
PROBES = [[5, 17, 33, 60, 61], [*range(3, 60)]]


class TransferOnly:
    """What the benchmark adds to vLLM's worker: receiving without loading."""

    def receive_only(self, buckets: list[list[tuple[str, list[int], str]]]) -> None:
        """Receive buckets through the weight group and drop them."""
        from rft_ray.weights import to_specs

        group = self.weight_transfer_engine._group
        for _ in group.receive(to_specs(buckets), self.device):
            pass


def main() -> None:
    """Measure all four in turn and print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 4 minutes on 2 cores")
    parser.add_argument("--model", type=Path, help="a Llama folder of at least 135M parameters")
    parser.add_argument("--repeats", type=int, help="turns of each")
    arguments = parser.parse_args()
    repeats = arguments.repeats or (5 if arguments.quick else 15)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or (SMOLLM2 if SMOLLM2.exists() else make_model(Path(folder)))
        seconds, facts = measure(model.resolve(), repeats)
    report(seconds, facts)


def make_model(folder: Path) -> Path:
    """A random Llama of SmolLM2-135M's shape, for machines that do not have that."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    return folder


def measure(model: Path, repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each side by turn, and facts about the work."""
    from rft_ray.config import SamplerConfig
    from rft_ray.deployment import application_name, deployed_samplers
    from rft_ray.ray_session import start_ray, stop_ray

    start_ray(job="benchmark weight_refresh")
    engine = make_engine(model)

    from rft_ray.refresh import Refresher, RefreshSettings

    config = SamplerConfig(vllm=ENGINE, env=ENV)
    with deployed_samplers({"model": (str(model), config)}, "bench", TOLERANCE) as handles:
        application, handle = application_name("bench", "model"), handles["model"]
        network = Refresher(application, RefreshSettings(attempts=1), PROBES)
        reports = network.refresh(engine, 1)
        seconds = take_turns(network_sides(engine, network, handle), repeats)
        network.close()
        shared = Refresher(application, RefreshSettings(attempts=1, backend="shared"), PROBES)
        pauses: list[float] = []
        seconds |= take_turns(
            {
                "refresh": lambda: pauses.append(refresh_seconds(engine, shared)),
                "reload_weights": lambda: save_and_reload(engine, handle, model),
            },
            repeats,
        )
        seconds["pause to resume"] = pauses[1:]
        last = shared.refresh(engine, 10**6)
        shared.close()
    stop_ray()
    return seconds, {
        "megabytes": reports[0].num_bytes / 1e6,
        "parity": last[0].parity_max_abs_diff,
        "parameters": sum(p.numel() for p in engine.module.parameters()),
    }


def make_engine(model: Path) -> Any:
    """A DeepSpeed engine of one rank, in this process."""
    import torch

    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    from rft_ray.config import RecipeConfig, TrainerConfig
    from rft_ray.engine import build_engine

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    return build_engine(str(model), RecipeConfig(), TrainerConfig())


def refresh_seconds(engine: Any, refresher: Any) -> float:
    """A whole refresh; seconds of it from pause to resume."""
    (report,) = refresher.refresh(engine, 2, check_parity=False)
    return report.seconds


def network_sides(engine: Any, refresher: Any, handle: Any) -> dict[str, Callable[[], object]]:
    """What goes over the network, and takes turns."""
    flats = [flat.clone() for flat in refresher._source]
    wire = [[(t.name, list(t.shape), t.dtype) for t in b] for b in refresher._source.plan]
    bare = BarePair([flat.numel() for flat in flats])

    def transfer() -> None:
        receiving = handle.collective_rpc.remote("receive_only", args=(wire,))
        send_all(refresher._link._group.post, flats)
        receiving.result()

    return {
        "transfer": transfer,
        "gloo": lambda: bare.broadcast(flats),
        "network refresh": lambda: refresh_seconds(engine, refresher),
    }


def send_all(post: Callable[[Any], Any], flats: list[Any]) -> None:
    """Post every buffer, at most two at a time, and wait for the last."""
    before = None
    for flat in flats:
        work = post(flat)
        if before:
            before.wait()
        before = work
    before.wait()


def save_and_reload(engine: Any, handle: Any, model: Path) -> None:
    """The rival's whole refresh: a folder in memory, and vLLM's own way to read it."""
    from safetensors.torch import save_file

    from rft_ray.export import unique_tensors

    folder = Path("/dev/shm") / f"weight-refresh-{os.getpid()}"
    if not folder.exists():
        shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {name: tensor.detach() for name, tensor in unique_tensors(engine).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    kwargs = {"weights_path": str(folder)}
    handle.pause.remote().result()
    handle.collective_rpc.remote("reload_weights", kwargs=kwargs).result()
    handle.reset_prefix_cache.remote().result()
    handle.resume.remote().result()


class BarePair:
    """This process and a child that does nothing but receive, their buffers made once."""

    def __init__(self, sizes: list[int]) -> None:
        from rft_ray.weight_group import open_store

        store = open_store("127.0.0.1", 60)
        self._pipe, theirs = multiprocessing.get_context("spawn").Pipe()
        self._child = multiprocessing.get_context("spawn").Process(
            target=receive_bare, args=(store.port, sizes, theirs), daemon=True
        )
        self._child.start()
        self._group = bare_group(store, 0)

    def broadcast(self, flats: list[Any]) -> None:
        """Send all, and hear that all have arrived."""
        self._pipe.send(True)
        send_all(lambda flat: post_bare(self._group, flat), flats)
        self._pipe.recv()


def bare_group(store: Any, rank: int) -> Any:
    """A gloo group of two, straight from torch."""
    from torch.distributed import ProcessGroupGloo

    return ProcessGroupGloo(store, rank, 2, store.timeout)


def post_bare(group: Any, flat: Any) -> Any:
    """Start a broadcast from rank 0."""
    from torch.distributed import BroadcastOptions

    options = BroadcastOptions()
    options.rootRank = 0
    return group.broadcast([flat], options)


def receive_bare(port: int, sizes: list[int], pipe: Any) -> None:
    """The child: receive as often as it is told to."""
    import torch
    from torch.distributed import TCPStore

    torch.set_num_threads(1)
    group = bare_group(TCPStore("127.0.0.1", port, None, False), 1)
    buffers = [torch.empty(size, dtype=torch.uint8) for size in sizes]
    while pipe.recv():
        send_all(lambda flat: post_bare(group, flat), buffers)
        pipe.send(True)


def take_turns(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side by turn, the first turn left out."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: own[1:] for name, own in seconds.items()}


def report(seconds: dict[str, list[float]], facts: dict[str, float]) -> None:
    """A small table and, last, the JSON line of the benchmark contract."""
    from rft_ray.benchmark_summary import finish, row

    middle = {name: statistics.median(own) for name, own in seconds.items()}
    megabytes = facts["megabytes"]
    print(f"{facts['parameters'] / 1e6:.0f}M parameters, {megabytes:.0f} MB")
    for name, own in seconds.items():
        print(
            f"{name:16}{middle[name]:8.3f} s   from {min(own):.3f} to {max(own):.3f}"
            f"   {megabytes / middle[name]:6.0f} MB/s"
        )
    rates = {name: megabytes / own for name, own in middle.items()}
    reload = "reload_weights", rates["reload_weights"], RELOAD_GOAL, "MB/s"
    results = [
        row("transfer alone", rates["transfer"], "gloo", rates["gloo"], TRANSFER_GOAL, "MB/s"),
        row("whole refresh", rates["refresh"], *reload),
        row("whole refresh over the network", rates["network refresh"], *reload) | {"info": True},
        row("pause to resume", rates["pause to resume"], *reload) | {"info": True},
    ]
    for own in results:
        print(f"{own['what']:30} {own['ratio']:.2f} of {own['rival']}, goal {own['goal']}")
    print(f"parity after the last refresh: {facts['parity']:.3g} nats at most")
    finish(__file__, results, seconds=middle, parity_max_abs_diff=facts["parity"])


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(Path("/dev/shm") / f"weight-refresh-{os.getpid()}", ignore_errors=True)
