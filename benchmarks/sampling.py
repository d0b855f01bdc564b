"""Claim: sampling through Ray Data and Ray Serve costs next to nothing over bare vLLM.

    python benchmarks/sampling.py [--quick]

Ours is the whole stage: problems -> Ray Data -> Serve handle -> vLLM -> text -> Parquet on disk.
The rival is `vllm.LLM.generate` on the same prompts followed by the same batch decoding, nothing
written. Both use the same model, SamplingParams, engine arguments and core binding, take turns in
processes of their own, and engine start-up is outside both times; the stream's own start-up is
inside ours, and its share is printed. Info rows: memory of the driver and of the stage's actors at
1x and 10x the problems.
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


def main() -> None:
    """Measure both sides in turn and print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 4 minutes on 2 cores")
    parser.add_argument("--side", choices=["ours", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--problems", type=int, help="problems a repeat")
    parser.add_argument("--repeats", type=int, help="repeats a side")
    arguments = parser.parse_args()
    problems = arguments.problems or (192 if arguments.quick else 1200)
    repeats = arguments.repeats or (2 if arguments.quick else 3)
    if arguments.side:
        side = measure_ours if arguments.side == "ours" else measure_bare
        print(json.dumps(side(problems, repeats)))
        return
    bare = run_side("bare", problems, repeats)
    ours = run_side("ours", problems, repeats)
    report(ours, bare, problems)


def run_side(side: str, problems: int, repeats: int) -> dict[str, Any]:
    """One side in a fresh process; its last line of output is the result."""
    command = [sys.executable, __file__, "--side", side]
    command += ["--problems", str(problems), "--repeats", str(repeats)]
    environment = {**os.environ, **ENV, "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def make_problems(count: int, seed: int) -> list[Any]:
    """The same problems for both sides of a repeat."""
    from rft_ray.word_problems import generate_word_problems

    return generate_word_problems(count, seed=seed, split="train")


def make_bench_prompt() -> Any:
    """The quickstart's prompt."""
    from rft_ray.config import PromptConfig
    from rft_ray.prompts import make_prompt

    return make_prompt(PromptConfig(), [])


def measure_bare(count: int, repeats: int) -> dict[str, Any]:
    """`LLM.generate`, then text; tokens/s of each repeat after one to warm up."""
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams, TokensPrompt

    from rft_ray.sampling import request_seed

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    prompt = make_bench_prompt()
    engine = LLM(model=str(MODEL), **ENGINE)
    rates = []
    for repeat in range(repeats + 1):
        problems = make_problems(count if repeat else 64, repeat)
        started = time.perf_counter()
        prompts = [
            TokensPrompt(prompt_token_ids=prompt.encode(p, tokenizer)) for p in problems
        ]
        params = [
            SamplingParams(**SAMPLING, seed=request_seed(0, 0, "tied", p.id), detokenize=False)
            for p in problems
        ]
        outputs = engine.generate(prompts, params, use_tqdm=False)
        ids = [completion.token_ids for output in outputs for completion in output.outputs]
        tokenizer.batch_decode(ids, skip_special_tokens=True)
        rates.append(sum(map(len, ids)) / (time.perf_counter() - started))
    return {"tokens_per_s": rates[1:]}


def measure_ours(count: int, repeats: int) -> dict[str, Any]:
    """The sampling stage as a run uses it, files included."""
    from rft_ray.config import SamplerConfig
    from rft_ray.deployment import application_name, deployed_samplers
    from rft_ray.ray_session import start_ray, stop_ray
    from rft_ray.sampling import Policy, SamplingPlan, Weights

    start_ray()
    config = SamplerConfig(vllm=ENGINE, env=ENV)
    rates, waits, memory = [], [], {}
    with deployed_samplers({"tied": (str(MODEL), config)}, "bench", 1e-3):
        policy = Policy(
            name="tied",
            application=application_name("bench", "tied"),
            tokenizer=str(MODEL),
            weights=Weights(str(MODEL), 0),
            prompt=make_bench_prompt(),
            sampling=SAMPLING,
            max_model_len=ENGINE["max_model_len"],
            max_rollouts_in_flight=512,
        )
        plan = SamplingPlan([policy], seed=0, round=0)
        for repeat in range(repeats + 1):
            rate, wait = stream(plan, make_problems(count if repeat else 64, repeat))
            if repeat:
                rates.append(rate)
                waits.append(wait)
        for times in (1, 10):
            stream(plan, make_problems(32 * times, 99))
            memory[str(times)] = resident_megabytes()
    stop_ray()
    return {"tokens_per_s": rates, "startup_share": waits, "megabytes": memory}


def stream(plan: Any, problems: list[Any]) -> tuple[float, float]:
    """Tokens/s of a whole stream, and the share of its time before the first group arrived."""
    from rft_ray.stages import sample_groups

    tokens, first = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        groups = sample_groups(problems, plan, folder)
        for batch in groups.iter_batches(batch_size=None, batch_format="pyarrow"):
            first = first or time.perf_counter() - started
            rollouts = batch["rollouts"].combine_chunks().flatten()
            tokens += len(rollouts.field("token_ids").flatten())
        seconds = time.perf_counter() - started
    return tokens / seconds, first / seconds


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


def report(ours: dict[str, Any], bare: dict[str, Any], problems: int) -> None:
    """A small table and, last, the JSON line of the benchmark contract."""
    from rft_ray.benchmark_summary import finish

    mine, theirs = (statistics.median(side["tokens_per_s"]) for side in (ours, bare))
    spread = [a / b for a in ours["tokens_per_s"] for b in bare["tokens_per_s"]]
    print(f"{problems} problems x {SAMPLING['n']} rollouts, {len(ours['tokens_per_s'])} repeats")
    print(f"ours       {mine:10.0f} tokens/s   {[round(x) for x in ours['tokens_per_s']]}")
    print(f"bare vllm  {theirs:10.0f} tokens/s   {[round(x) for x in bare['tokens_per_s']]}")
    print(f"ratio      {mine / theirs:10.3f}   from {min(spread):.3f} to {max(spread):.3f}")
    print(f"time before the first group: {max(ours['startup_share']):.1%} of a repeat")
    results: list[dict[str, Any]] = [
        {
            "what": "sampling",
            "ours": mine,
            "rival": "bare vllm",
            "rival_value": theirs,
            "ratio": mine / theirs,
            "goal": GOAL,
            "unit": "tokens/s",
        }
    ]
    for process in ("driver", "workers"):
        small, large = (ours["megabytes"][times][process] for times in ("1", "10"))
        print(f"memory of {process}: {small:.0f} MB at 1x, {large:.0f} MB at 10x the problems")
        results.append(
            {
                "what": f"memory of {process}, 10x the problems",
                "ours": large,
                "rival": "1x the problems",
                "rival_value": small,
                "ratio": small / large if large else 0.0,
                "goal": 0.9,
                "unit": "MB",
                "info": True,
            }
        )
    finish(__file__, results)


if __name__ == "__main__":
    main()
