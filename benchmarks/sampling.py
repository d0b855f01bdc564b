"""Claim: sampling through Ray Data and Ray Serve costs next to nothing over bare vLLM.

    python benchmarks/sampling.py [--quick]

Ours is the whole stage: problems -> Ray Data -> Serve handle -> vLLM -> text -> Parquet on disk.
The rival is `vllm.LLM.generate` on the same prompts followed by the same batch decoding, nothing
written. Both use the same model, SamplingParams, engine arguments and core binding, and take turns
in processes of their own. Engine start-up is outside both times; the stream's own start-up is
inside ours, and its share is printed: what a stream of one problem and one token takes. Info rows:
memory of the driver and of the stage's actors at 1x and 10x the problems.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = Path(__file__).parents[1] / "configs/quickstart_base/tied"
ENGINE = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 256,
    "enforce_eager": True,
    "enable_chunked_prefill": False,
}
ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0"}
# Every rollout has all its tokens, so the work does not depend on what an untrained model says.
SAMPLING = {"n": 16, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 96}
SAMPLING["ignore_eos"] = True
GOAL = 0.95
WARM_UP = 48
MEMORY_PROBLEMS = 16


def main() -> None:
    """Measure both sides in turn and print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 4 minutes on 2 cores")
    parser.add_argument("--side", choices=["ours", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--problems", type=int, help="problems a turn")
    parser.add_argument("--turns", type=int, help="turns of each side")
    parser.add_argument("--turn", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    problems = arguments.problems or (96 if arguments.quick else 800)
    turns = arguments.turns or (1 if arguments.quick else 3)
    if arguments.side:
        side = measure_ours if arguments.side == "ours" else measure_bare
        print(json.dumps(side(problems, arguments.turn)))
        return
    # A machine's speed drifts over minutes: sides that take turns share it.
    sides: dict[str, list[dict[str, Any]]] = {"bare": [], "ours": []}
    for turn in range(turns):
        for name, results in sides.items():
            results.append(run_side(name, problems, turn))
    report(sides["ours"], sides["bare"], problems)


def run_side(side: str, problems: int, turn: int) -> dict[str, Any]:
    """One turn of a side in a fresh process; its last line of output is the result."""
    command = [sys.executable, __file__, "--side", side]
    command += ["--problems", str(problems), "--turn", str(turn)]
    environment = {**os.environ, **ENV, "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def make_problems(count: int, seed: int) -> list[Any]:
    """The same problems for both sides of a turn."""
    from rft_ray.word_problems import generate_word_problems

    return generate_word_problems(count, seed=seed, split="train")


def make_bench_prompt() -> Any:
    """The quickstart's prompt."""
    from rft_ray.config import PromptConfig
    from rft_ray.prompts import make_prompt

    return make_prompt(PromptConfig(), [])


def measure_bare(count: int, turn: int) -> dict[str, Any]:
    """Tokens/s of `LLM.generate`, then text, after a few problems to warm up."""
    from transformers import AutoTokenizer
    from vllm import LLM

    engine = LLM(model=str(MODEL), **ENGINE)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    generate(engine, tokenizer, make_problems(WARM_UP, -1))
    return {"tokens_per_s": generate(engine, tokenizer, make_problems(count, turn))}


def generate(engine: Any, tokenizer: Any, problems: list[Any]) -> float:
    """Tokens/s from problems to text."""
    from vllm import SamplingParams, TokensPrompt

    from rft_ray.sampling import request_seed

    prompt = make_bench_prompt()
    started = time.perf_counter()
    prompts = [TokensPrompt(prompt_token_ids=prompt.encode(p, tokenizer)) for p in problems]
    params = [
        SamplingParams(**SAMPLING, seed=request_seed(0, 0, "tied", p.id), detokenize=False)
        for p in problems
    ]
    outputs = engine.generate(prompts, params, use_tqdm=False)
    ids = [completion.token_ids for output in outputs for completion in output.outputs]
    tokenizer.batch_decode(ids, skip_special_tokens=True)
    return sum(map(len, ids)) / (time.perf_counter() - started)


def measure_ours(count: int, turn: int) -> dict[str, Any]:
    """The sampling stage as a run uses it, files included; its start-up and memory."""
    from rft_ray.config import SamplerConfig
    from rft_ray.deployment import deployed_samplers
    from rft_ray.ray_session import start_ray, stop_ray

    start_ray(job="benchmark sampling")
    config = SamplerConfig(vllm=ENGINE, env=ENV)
    megabytes = {}
    with deployed_samplers({"tied": (str(MODEL), config)}, "bench", 1e-3):
        plan = make_plan(SAMPLING)
        stream(plan, make_problems(WARM_UP, -1))
        seconds, tokens = stream(plan, make_problems(count, turn))
        start_up, _ = stream(make_plan({**SAMPLING, "n": 1, "max_tokens": 1}), make_problems(1, -2))
        if turn == 0:
            for times in (1, 10):
                stream(plan, make_problems(MEMORY_PROBLEMS * times, -3))
                megabytes[str(times)] = resident_megabytes()
    stop_ray()
    share = start_up / seconds
    return {"tokens_per_s": tokens / seconds, "startup_share": share, "megabytes": megabytes}


def make_plan(sampling: dict[str, Any]) -> Any:
    """What the stream asks of the one sampler."""
    from rft_ray.deployment import application_name
    from rft_ray.sampling import Policy, SamplingPlan, Weights

    policy = Policy(
        name="tied",
        application=application_name("bench", "tied"),
        tokenizer=str(MODEL),
        weights=Weights(str(MODEL), 0),
        prompt=make_bench_prompt(),
        sampling=sampling,
        max_model_len=ENGINE["max_model_len"],
        max_rollouts_in_flight=512,
    )
    return SamplingPlan([policy], seed=0, round=0)


def stream(plan: Any, problems: list[Any]) -> tuple[float, int]:
    """Seconds and tokens of a whole stream."""
    from rft_ray.stages import sample_groups

    tokens = 0
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        groups = sample_groups(problems, plan, folder)
        for batch in groups.iter_batches(batch_size=None, batch_format="pyarrow"):
            rollouts = batch["rollouts"].combine_chunks().flatten()
            tokens += len(rollouts.field("token_ids").flatten())
        return time.perf_counter() - started, tokens


def resident_megabytes() -> dict[str, float]:
    """Peak resident memory of this driver, and of the largest other Ray Data process."""
    import psutil

    peaks = {"driver": psutil.Process().memory_info().rss / 2**20, "workers": 0.0}
    for process in psutil.Process().children(recursive=True):
        try:
            name, size = process.name(), process.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            continue
        if "MapWorker" in name or "ray::Map" in name:
            peaks["workers"] = max(peaks["workers"], size)
    return peaks


def report(ours: list[dict[str, Any]], bare: list[dict[str, Any]], problems: int) -> None:
    """A small table and, last, the JSON line of the benchmark contract."""
    from rft_ray.benchmark_summary import finish, row

    mine = [turn["tokens_per_s"] for turn in ours]
    theirs = [turn["tokens_per_s"] for turn in bare]
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    ratio = statistics.median(ratios)
    print(f"{problems} problems x {SAMPLING['n']} rollouts, {len(ours)} turns")
    print(f"ours       {statistics.median(mine):10.0f} tokens/s   {[round(x) for x in mine]}")
    print(f"bare vllm  {statistics.median(theirs):10.0f} tokens/s   {[round(x) for x in theirs]}")
    print(f"ratio      {ratio:10.3f}   from {min(ratios):.3f} to {max(ratios):.3f}")
    print(f"start-up of a stream: {max(t['startup_share'] for t in ours):.1%} of a turn")
    own, bare_own = statistics.median(mine), statistics.median(theirs)
    results = [row("sampling", own, "bare vllm", bare_own, GOAL, "tokens/s", ratio)]
    for process in ("driver", "workers"):
        small, large = (ours[0]["megabytes"][times][process] for times in ("1", "10"))
        print(f"memory of {process}: {small:.0f} MB at 1x, {large:.0f} MB at 10x the problems")
        what, ratio = f"memory of {process}, 10x the problems", small / large if large else 0.0
        memory = row(what, large, "1x the problems", small, 0.9, "MB", ratio)
        results.append(memory | {"info": True})
    finish(__file__, results)


if __name__ == "__main__":
    main()
