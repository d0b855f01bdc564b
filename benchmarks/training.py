"""Claim: training costs next to nothing over a bare loop, and less than with TRL.

    python benchmarks/training.py [--quick]

The same model, examples, precision, threads and examples per optimiser step for all sides, which
take turns in processes of their own and are warmed up before the clock starts. `ours` is the step
of a run: plan, packed rows, DeepSpeed engine (one rank, ZeRO 0), exact loss. `bare loop` is plain
PyTorch over the very same rows, all logits and cross-entropy. `trl default` is what SFTConfig()
does, in this precision; `trl best` the faster of two settings that do not attend across samples:
padded batches of like lengths, or packing. Tokens that have loss are counted; prompts too in info
rows, as is the peak of memory. The problems are GSM8K's. SmolLM2 is there after `make smollm2`, the
rival after `make bench-env`; what is missing is named.
"""

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SMOLLM2 = ROOT / "models/smollm2-135m-instruct"
TINY = ROOT / "configs/quickstart_base/tied"
PROBLEMS = ROOT / "configs/data/gsm8k_train_200.jsonl"
WORKER = Path(__file__).with_name("trl_worker.py")
ROW_TOKENS, ROWS = 512, 2
LEARNING_RATE = 1e-5
GOALS = {"trl best": 1.2, "trl default": 1.5, "bare loop": 0.95}
SIDES = ("ours", "bare loop", "trl grouped", "trl packed", "trl default")
SMALL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8}
SMALL |= {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 16384}


def main() -> None:
    """Measure all sides in turn on both models and print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 4 minutes on 2 cores")
    parser.add_argument("--repeats", type=int, help="turns of each side")
    parser.add_argument("--steps", type=int, help="optimiser steps of a turn")
    parser.add_argument("--models", nargs="+", default=["small", "smollm2"])
    parser.add_argument("--side", choices=["ours", "bare loop"], help=argparse.SUPPRESS)
    parser.add_argument("--spec", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        spec = json.loads(Path(arguments.spec).read_text())
        print(json.dumps(measure_side(arguments.side, spec)))
        return
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            repeats = arguments.repeats or (1 if arguments.quick else 5)
            steps = arguments.steps or STEPS[name][0 if arguments.quick else 1]
            spec = make_spec(name, steps, Path(folder))
            if spec:
                results += report(name, spec, take_turns(spec, repeats, Path(folder)))
    from rft_ray.benchmark_summary import finish

    finish(__file__, results)


# Optimiser steps of a turn: quick, and not.
STEPS = {"small": (2, 12), "smollm2": (1, 4)}
BATCH = {"small": 16, "smollm2": 8}


def make_spec(name: str, steps: int, folder: Path) -> dict[str, Any] | None:
    """What every side is given: a model's folder, and examples of GSM8K as token ids."""
    from rft_ray.packing import ExampleColumns, plan_steps

    if name == "smollm2" and not SMOLLM2.exists():
        print("smollm2: missing; run `make smollm2` first")
        return None
    tokenizer = SMOLLM2 if SMOLLM2.exists() else TINY
    model = SMOLLM2 if name == "smollm2" else make_small_model(folder / "small", tokenizer)
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    examples = tokenised_problems(tokenizer, BATCH[name] * steps, vocabulary)
    spec = {
        "model": str(model),
        "tokenizer": str(model),
        "threads": os.cpu_count() or 1,
        "batch_size": BATCH[name],
        "row_tokens": ROW_TOKENS,
        "learning_rate": LEARNING_RATE,
        "examples": [{"input_ids": e.input_ids, "loss_mask": e.loss_mask} for e in examples],
    }
    columns = ExampleColumns.of(examples)
    plan = plan_steps(columns.lengths, make_recipe(spec), 1, ROW_TOKENS, ROWS)
    fills = [plan.step(number).fill for number in range(1, steps + 1)]
    rows = columns.lengths.sum() / ROW_TOKENS / steps
    return spec | {"fill": statistics.mean(fills), "rows_per_step": math.ceil(rows)}


def make_small_model(folder: Path, tokenizer: Path) -> Path:
    """A random Llama of 12M parameters."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def tokenised_problems(folder: Path, count: int, vocabulary: int) -> list[Any]:
    """GSM8K's gold solutions; ids beyond a smaller vocabulary wrap around, lengths stay."""
    from dataclasses import replace

    from transformers import AutoTokenizer

    from rft_ray.config import ProblemSetConfig, PromptConfig
    from rft_ray.problems import load_problems
    from rft_ray.prompts import group_examples, make_prompt
    from rft_ray.types import Group

    tokenizer = AutoTokenizer.from_pretrained(folder)
    problems = list(load_problems(ProblemSetConfig(path=str(PROBLEMS))))
    random.Random(0).shuffle(problems)
    problems = (problems * math.ceil(count / len(problems)))[:count]
    prompt = make_prompt(PromptConfig(), [])
    examples, _ = group_examples(map(Group, problems), tokenizer, prompt, ROW_TOKENS)
    return [replace(e, input_ids=[i % vocabulary for i in e.input_ids]) for e in examples]


def make_recipe(spec: dict[str, Any]) -> Any:
    """Each example once, at a constant rate."""
    from rft_ray.config import RecipeConfig

    return RecipeConfig(
        epochs=1.0,
        batch_size=spec["batch_size"],
        learning_rate=spec["learning_rate"],
        schedule="constant",
        warmup_fraction=0.0,
        max_length=ROW_TOKENS,
    )


def take_turns(spec: dict[str, Any], repeats: int, folder: Path) -> dict[str, list[Any]]:
    """Results of each side by turn."""
    from rft_ray.benchmark_summary import rival_python

    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    sides = [side for side in SIDES if rival_python().exists() or not side.startswith("trl")]
    if len(sides) < len(SIDES):
        print("trl: missing; run `make bench-env` first")
    turns: dict[str, list[Any]] = {side: [] for side in sides}
    for repeat in range(repeats):
        # Every other turn the other way round: what drifts, drifts for all.
        for side in sides if repeat % 2 == 0 else reversed(sides):
            turns[side].append(run_side(side, path))
    return turns


def run_side(side: str, spec: Path) -> dict[str, Any]:
    """One side in a fresh process; its last line of output is the result."""
    from rft_ray.benchmark_summary import rival_python

    command = [sys.executable, __file__, "--side", side, "--spec", str(spec)]
    if side.startswith("trl"):
        command = [str(rival_python()), str(WORKER), str(spec), side.split()[1]]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure_side(side: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Ours or the bare loop in this process: seconds of all steps after a short one."""
    import torch

    from rft_ray.packing import ExampleColumns, plan_steps
    from rft_ray.trainer import planned_batches
    from rft_ray.types import Example

    torch.set_num_threads(spec["threads"])
    columns = ExampleColumns.of([Example(**example) for example in spec["examples"]])
    recipe = make_recipe(spec)
    make = make_our_step if side == "ours" else make_bare_step
    step = make(spec["model"], recipe)
    warm = recipe.model_copy(update={"batch_size": 2, "steps": 1})
    for batch in planned_batches(plan_steps(columns.lengths, warm, 1, ROW_TOKENS), columns, 0, 1):
        step(batch)
    plan = plan_steps(columns.lengths, recipe, 1, ROW_TOKENS, ROWS)
    started = time.perf_counter()
    losses = [step(batch) for batch in planned_batches(plan, columns, 0, 1)]
    return {
        "seconds": time.perf_counter() - started,
        "steps": len(losses),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "is_isolated": True,
        "first_loss": losses[0],
    }


def make_our_step(model: str, recipe: Any) -> Any:
    """The step of a run on a DeepSpeed engine of one rank."""
    import torch

    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    from rft_ray.config import TrainerConfig
    from rft_ray.engine import build_engine
    from rft_ray.trainer import train_step

    trainer = TrainerConfig(row_tokens=ROW_TOKENS, micro_batch_rows=ROWS, zero_stage=0)
    engine = build_engine(model, recipe, trainer)
    return lambda batch: train_step(engine, batch, recipe.learning_rate, recipe.max_grad_norm)[0]


def make_bare_step(path: str, recipe: Any) -> Any:
    """The shortest loop there is, over the same rows."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=0.0, fused=True
    )

    def step(batch: Any) -> float:
        total = 0.0
        for packed in batch.micro_batches:
            ids, positions, weights = (
                torch.from_numpy(a) for a in (packed.token_ids, packed.position_ids, packed.weights)
            )
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, :-1]
            nll = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            )
            loss = (nll * weights[:, 1:].flatten().float()).sum()
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def report(name: str, spec: dict[str, Any], turns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """A small table, and the rows of the benchmark contract."""
    from rft_ray.benchmark_summary import row

    learned = sum(sum(e["loss_mask"][1:]) for e in spec["examples"])
    everything = sum(len(e["input_ids"]) for e in spec["examples"])
    count = len(spec["examples"])
    print(
        f"{name}: {count} examples, {everything} tokens, {learned} with loss; rows "
        f"{spec['fill']:.0%} full"
    )
    seconds = {side: statistics.median(t["seconds"] for t in own) for side, own in turns.items()}
    for side, own in turns.items():
        rates = sorted(learned / turn["seconds"] for turn in own)
        note = "" if own[0]["is_isolated"] else "   attends across samples: not counted"
        print(
            f"  {side:12}{learned / seconds[side]:9.1f} loss tokens/s   from {rates[0]:.1f} to "
            f"{rates[-1]:.1f}   {own[0]['steps']} steps   peak {peak(own):.0f} MB   "
            f"first loss {own[0]['first_loss']:.4f}{note}"
        )
    rows = []
    for rival, side in rival_sides(turns, seconds).items():
        rate, other = learned / seconds["ours"], learned / seconds[side]
        rows.append(row(f"{name}, loss tokens", rate, rival, other, GOALS[rival], "tokens/s"))
        factor = everything / learned
        rows.append(
            row(f"{name}, all tokens", rate * factor, rival, other * factor, 1.0, "tokens/s")
            | {"info": True}
        )
        mine, theirs = peak(turns["ours"]), peak(turns[side])
        memory = row(f"{name}, peak memory", mine, rival, theirs, 1.0, "MB", theirs / mine)
        rows.append(memory | {"info": True})
        print(f"  {rate / other:.2f} of {rival} ({side}), goal {GOALS[rival]}")
    return rows


def rival_sides(turns: dict[str, list[Any]], seconds: dict[str, float]) -> dict[str, str]:
    """The side that stands for each rival, as far as it is there."""
    rivals = {"bare loop": "bare loop"}
    if "trl default" in turns:
        candidates = [s for s in ("trl grouped", "trl packed") if turns[s][0]["is_isolated"]]
        rivals |= {"trl best": min(candidates, key=seconds.__getitem__)}
        rivals |= {"trl default": "trl default"}
    return rivals


def peak(turns: list[Any]) -> float:
    """Largest resident memory of a side's process, MB."""
    return max(turn["peak_mb"] for turn in turns)


if __name__ == "__main__":
    main()
