"""What `rft-ray doctor` finds out in child processes, since it may crash or hang.

A probe is a few lines of Python that end by printing one line of JSON; what libraries print before
it is skipped. A probe that does not get there becomes a ProbeError of one line.
"""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from typing import Any

PROBE_SECONDS = 90.0
NODE_SECONDS = 30.0
SAME_ON_ALL_NODES = ("rft_ray", "ray")

TORCH_PROBE = """
import json, os, torch
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"cores": len(os.sched_getaffinity(0)),
                  "gpus": [[gpu.name, gpu.total_memory] for gpu in gpus]}))
"""
# Importing the kernels is what crashes where the package was built for another processor.
VLLM_PROBE = """
import json, vllm
from vllm.platforms import current_platform
current_platform.import_kernels()
print(json.dumps({"device": current_platform.device_type}))
"""
DEEPSPEED_PROBE = """
import json, deepspeed
print(json.dumps({"device": deepspeed.accelerator.get_accelerator().device_name()}))
"""
RAY_PROBE = "from rft_ray.probes import survey_cluster; survey_cluster()"

Probe = subprocess.Popen[str]


class ProbeError(RuntimeError):
    """A child process crashed, raised or took too long; the message says which, in one line."""


def start_probe(code: str) -> Probe:
    """A child process that runs some Python and is to end with one line of JSON."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # A process group of its own, so that whatever it started can be ended with it.
        process_group=0,
    )


def read_probe(process: Probe, seconds: float = PROBE_SECONDS) -> dict[str, Any]:
    """What a child printed last; raises ProbeError where it did not get there."""
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ProbeError(f"no answer within {seconds:.0f} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode < 0:
        raise ProbeError(f"crashes: {signal.strsignal(-process.returncode)}")
    if process.returncode > 0:
        raise ProbeError(_last_line(errors) or f"ends with code {process.returncode}")
    try:
        return json.loads(_last_line(output))
    except json.JSONDecodeError:
        raise ProbeError(f"printed {_last_line(output)!r}") from None


def survey_cluster() -> None:
    """Print each node's resources and what a task on it sees; what RAY_PROBE runs."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from rft_ray.ray_session import start_ray, stop_ray

    # Defined here and not in the module, so that it also runs where rft_ray is not installed.
    @ray.remote(num_cpus=0, max_retries=0)
    def versions(packages: tuple[str, ...]) -> dict[str, str]:
        found = {}
        for package in packages:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return found

    start_ray()
    rows, tasks = [], []
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            tasks.append(versions.options(scheduling_strategy=there).remote(SAME_ON_ALL_NODES))
            address, resources = node["NodeManagerAddress"], node["Resources"]
            rows.append({"address": address, "resources": resources, "versions": {}, "error": ""})
    for row, task in zip(rows, tasks, strict=True):
        try:
            row["versions"] = ray.get(task, timeout=NODE_SECONDS)
        except ray.exceptions.RayError as error:
            row["error"] = _last_line(str(error))
    stop_ray()
    print(json.dumps({"nodes": rows}))


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
