"""Claim: a training step grows as its arithmetic and its shapes say, and `rft-ray plan` knows it.

    python benchmarks/growth.py [--quick]

Step time and peak memory of real training steps on CPUs (DeepSpeed engine, exact loss, fp32, one
thread a rank) along three axes: tokens of a row, parameters of the model, and ranks with each ZeRO
stage. A point is a training of its own in fresh processes. Memory is what a rank's process holds at
its worst moment beyond what it held before it built anything, beside what the plan says of it;
tokens/s beside those of the axis' first point, scaled by the operations of a token, attention
included. All rows are for information: no goal is at stake. A page with plots goes to
`results/growth.html`. Left out: loading, exports, and machines with more than two cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
if TYPE_CHECKING:
    from rft_ray.config import RecipeConfig, TrainerConfig
    from rft_ray.model_shapes import ModelShape
    from rft_ray.packing import ExampleColumns

MB = 2**20
VOCABULARY = 4096
MICRO_BATCHES = 2


@dataclass(frozen=True)
class Point:
    """One training: the model, the row, the ranks, and what saves memory."""

    layers: int = 4
    width: int = 384
    tokens: int = 512
    """Of a row, which is one example."""
    ranks: int = 1
    zero_stage: int = 0
    dtype: str = "float32"
    lora_rank: int = 0
    """0: all weights are trained."""
    is_recomputed: bool = False
    vocabulary: int = VOCABULARY
    deepspeed: str = "{}"
    """More of DeepSpeed's configuration, as JSON."""

    @property
    def feed_forward(self) -> int:
        """Of two and three quarters of the width."""
        return self.width * 11 // 4

    @cached_property
    def shape(self) -> "ModelShape":
        """Heads of 64, all with their own keys and values."""
        from rft_ray.model_shapes import ModelShape

        heads = self.width // 64
        return ModelShape(
            self.layers, self.width, self.feed_forward, heads, heads, 64, self.vocabulary
        )

    @property
    def recipe(self) -> "RecipeConfig":
        """Both micro-batches of all ranks in each step."""
        from rft_ray.config import RecipeConfig

        lora = {"rank": self.lora_rank} if self.lora_rank else None
        size = self.ranks * MICRO_BATCHES
        return RecipeConfig(batch_size=size, steps=100, max_length=self.tokens, lora=lora)

    @property
    def trainer(self) -> "TrainerConfig":
        """A row a micro-batch."""
        from rft_ray.config import TrainerConfig

        return TrainerConfig(
            num_workers=self.ranks,
            zero_stage=self.zero_stage,
            dtype=self.dtype,
            row_tokens=self.tokens,
            activation_checkpointing=self.is_recomputed,
            deepspeed=json.loads(self.deepspeed),
        )

    @property
    def planned_bytes(self) -> float:
        """Peak of a rank, as `rft-ray plan` has it."""
        from rft_ray.memory_plan import training_memory

        memory = training_memory(self.shape, self.trainer, lora=self.recipe.lora)
        return memory.device + memory.host

    @property
    def flops(self) -> float:
        """Of a token, forward and backward; attention sees half a row."""
        body = self.layers * self.shape.layer_parameters + self.shape.embedding_parameters
        attention = 2 * self.layers * self.width * self.tokens / 2
        return 3 * (2 * body + 2 * attention)


@dataclass(frozen=True)
class Growth:
    """What a point took: seconds of each step, and the peak of the fullest rank in bytes."""

    seconds: list[float]
    peak: float

    @property
    def step(self) -> float:
        """The median step."""
        return statistics.median(self.seconds)


def axes(is_quick: bool) -> dict[str, list[Point]]:
    """The points along each axis; its first is what the others are held against."""
    base = Point()
    lengths = (256, 1024) if is_quick else (256, 512, 1024, 2048, 4096)
    sizes = ((4, 256), (8, 512)) if is_quick else ((4, 256), (6, 384), (8, 512), (10, 640))
    stages = (0, 2, 3) if is_quick else (0, 1, 2, 3)
    wide = Point(layers=6, width=512, tokens=256)
    return {
        "tokens of a row": [replace(base, tokens=tokens) for tokens in lengths],
        "parameters": [replace(base, layers=n, width=width) for n, width in sizes],
        "ranks": [wide, *(replace(wide, ranks=2, zero_stage=stage) for stage in stages)],
        "less memory": [
            replace(wide, tokens=1024),
            replace(wide, tokens=1024, is_recomputed=True),
            replace(wide, tokens=1024, lora_rank=8),
        ],
    }


def main() -> None:
    """Measure every point once, print the tables, draw them, and end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 4 minutes on 2 cores")
    parser.add_argument("--steps", type=int, help="timed steps of a point")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        print(json.dumps(train_rank(Path(arguments.folder), arguments.rank, arguments.steps)))
        return
    steps = arguments.steps or (3 if arguments.quick else 6)
    measured: dict[Point, Growth] = {}
    results: list[dict[str, Any]] = []
    for axis, points in axes(arguments.quick).items():
        for point in points:
            measured[point] = measured.get(point) or measure(point, steps)
        print_axis(axis, points, measured)
        results += axis_rows(points, measured)
    from rft_ray.benchmark_summary import finish
    from rft_ray.run_dir import write_atomically

    drawn = draw(axes(arguments.quick), measured)
    (ROOT / "benchmarks/results").mkdir(exist_ok=True)
    write_atomically(ROOT / "benchmarks/results/growth.html", drawn)
    finish(__file__, results)


def measure(point: Point, steps: int) -> Growth:
    """Train a random model of the point's shape in a process for each rank."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "point.json").write_text(json.dumps(asdict(point)))
        make_model(point, folder / "model")
        own = [sys.executable, __file__, "--folder", name, "--steps", str(steps), "--rank"]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
        # Tensors that are freed leave the process, which otherwise keeps a third more than it uses.
        environment["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
        ranks = [
            subprocess.Popen([*own, str(rank)], env=environment, stdout=-1, stderr=-1, text=True)
            for rank in range(point.ranks)
        ]
        done = [(rank, *rank.communicate()) for rank in ranks]
    for rank, _, errors in done:
        if rank.returncode:
            raise SystemExit(f"{point}: {errors[-2000:]}")
    found = [json.loads(output.strip().splitlines()[-1]) for _, output, _ in done]
    return Growth(found[0]["seconds"], max(own["peak"] for own in found))


def make_model(point: Point, folder: Path) -> None:
    """A random Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = point.shape
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.width, intermediate_size=shape.feed_forward, vocab_size=shape.vocabulary,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, max_position_embeddings=8192,
    )  # fmt: skip
    dtype = torch.bfloat16 if point.dtype == "bfloat16" else torch.float32
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)


def train_rank(folder: Path, rank: int, steps: int) -> dict[str, Any]:
    """One rank: a step to warm up and the timed ones; memory beyond what was there before."""
    point = Point(**json.loads((folder / "point.json").read_text()))
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ["WORLD_SIZE"] = str(point.ranks)
    import torch

    from rft_ray.deepspeed_import import import_deepspeed

    import_deepspeed()
    from rft_ray.engine import build_engine
    from rft_ray.packing import plan_steps
    from rft_ray.trainer import planned_batches, train_step

    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), point.ranks)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=point.ranks)
    # What a first pass allocates once.
    torch.nn.Linear(8, 8)(torch.ones(8, 8)).sum().backward()
    columns = make_rows(point)
    plan = plan_steps(columns.lengths, point.recipe, point.ranks, point.tokens)
    batches = planned_batches(plan, columns, rank, 1)
    before = memory_status("VmRSS")
    engine = build_engine(str(folder / "model"), point.recipe, point.trainer)
    forget_peak()
    seconds = []
    for _ in range(1 + steps):
        started = time.perf_counter()
        train_step(engine, next(batches), 1e-5, 1.0)
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds[1:], "peak": memory_status("VmHWM") - before}


def make_rows(point: Point) -> "ExampleColumns":
    """As many whole rows of random tokens as a step has, each one example with loss on all."""
    import numpy as np

    from rft_ray.packing import ExampleColumns

    count = point.ranks * MICRO_BATCHES
    ids = np.random.default_rng(0).integers(0, point.vocabulary, count * point.tokens)
    lengths = np.full(count, point.tokens)
    return ExampleColumns.build(ids, np.ones(len(ids), dtype=bool), lengths, np.ones(count))


def memory_status(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {key}")


def forget_peak() -> None:
    """Loading a model may hold more than training it: VmHWM starts again from now."""
    Path("/proc/self/clear_refs").write_text("5")


def label(point: Point) -> str:
    """What a row of the tables is of."""
    text = f"{point.shape.parameters / 1e6:.0f}M, {point.tokens} tokens, {point.ranks} ranks"
    text = text.replace("1 ranks", "1 rank")
    text += f", ZeRO {point.zero_stage}" if point.ranks > 1 else ""
    text += ", recomputed" if point.is_recomputed else ""
    return text + (f", LoRA {point.lora_rank}" if point.lora_rank else "")


def print_axis(axis: str, points: Sequence[Point], measured: dict[Point, Growth]) -> None:
    """A small table."""
    print(axis)
    for point in points:
        own = measured[point]
        low, high = min(own.seconds), max(own.seconds)
        print(
            f"  {label(point):36} step {own.step:6.2f} s (from {low:.2f} to {high:.2f})  peak "
            f"{own.peak / MB:6.0f} MB  planned {point.planned_bytes / MB:6.0f}",
            flush=True,
        )


def axis_rows(points: Sequence[Point], measured: dict[Point, Growth]) -> Iterator[dict[str, Any]]:
    """Rows of the benchmark contract: memory against the plan, speed against the first point."""
    from rft_ray.benchmark_summary import row

    first = points[0]
    for point in points:
        own, planned = measured[point], point.planned_bytes
        peak, ratio = own.peak / MB, planned / own.peak
        memory = row(f"{label(point)}: peak", peak, "plan", planned / MB, 1.0, "MB", ratio)
        yield memory | {"info": True}
        rate, expected = speed(point, own), speed(first, measured[first])
        expected *= first.flops / point.flops
        spread = [speed(point, Growth([s], 0.0)) for s in (max(own.seconds), min(own.seconds))]
        fields = {"info": True, "spread": spread}
        yield row(f"{label(point)}: speed", rate, "by FLOPs", expected, 1.0, "tokens/s") | fields


def speed(point: Point, own: Growth) -> float:
    """Tokens a second of one rank."""
    return MICRO_BATCHES * point.tokens / own.step


def draw(axes: dict[str, list[Point]], measured: dict[Point, Growth]) -> str:
    """A page of its own with a plot of time and one of memory for each axis."""
    from rft_ray.page import page, tag
    from rft_ray.plots import line_plot

    of = {
        "tokens of a row": lambda p: p.tokens,
        "parameters": lambda p: round(p.shape.parameters / 1e6),
    }
    plots = []
    for axis, x_of in of.items():
        points = axes[axis]
        first = points[0]
        name = "million parameters" if axis == "parameters" else axis
        times = [(float(x_of(p)), measured[p].step) for p in points]
        scaled = measured[first].step / (first.tokens * first.flops)
        expected = [(float(x_of(p)), scaled * p.tokens * p.flops) for p in points]
        peaks = [(float(x_of(p)), measured[p].peak / MB) for p in points]
        planned = [(float(x_of(p)), p.planned_bytes / MB) for p in points]
        plots.append(line_plot("Seconds of a step", name, {"measured": times, "FLOPs": expected}))
        plots.append(line_plot("MB at the peak", name, {"measured": peaks, "plan": planned}))
    shared = [(float(p.zero_stage), p) for p in axes["ranks"] if p.ranks > 1]
    of_stage = {
        "Seconds of a step, 2 ranks": {"measured": [(x, measured[p].step) for x, p in shared]},
        "MB of a rank at the peak, 2 ranks": {
            "measured": [(x, measured[p].peak / MB) for x, p in shared],
            "plan": [(x, p.planned_bytes / MB) for x, p in shared],
        },
    }
    plots += [line_plot(title, "ZeRO stage", series) for title, series in of_stage.items()]
    return page("How a training step grows", tag("div", *plots, class_="panels"))


if __name__ == "__main__":
    main()
