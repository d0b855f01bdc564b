"""What is shown while a run works. Run: pytest tests/test_console.py"""

import json
from pathlib import Path

import pytest

from rft_ray.console import follow_training
from tests.terminal import chatter


def test_training_is_followed_over_lines_that_a_kill_cut_short(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    metrics = tmp_path / "metrics.jsonl"
    step = {"kind": "train_step", "job": "sft-a", "round": 0}
    lines = [
        json.dumps({**step, "step": 1}),
        '{"kind": "train_st',
        "",
        json.dumps({"kind": "phase", "phase": "train", "seconds": 1.0}),
        json.dumps({**step, "job": "sft-b", "step": 9}),
        json.dumps({**step, "step": 3}),
    ]
    metrics.write_text("\n".join([*lines, '{"kind": "half']))
    with follow_training(metrics, "sft-a", 0, total_steps=4):
        pass
    assert "train sft-a: 3/4 steps" in capfd.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "(RayTrainWorker pid=12) [rank 0] ready",
        "[2026-01-31 16:41:43,019 I 11 11] logging.cc:303: Set ray log level",
        "2026-01-31 16:41:43,019\tINFO worker.py:1 -- Started a local Ray instance.",
        "WARNING 01-31 16:41:43 [cpu.py:9] vLLM says this",
        "[W131 16:41:43.000000000 socket.cpp:200] [c10d] The client socket",
        "[W1231 16:41:43.000000000 socket.cpp:200] [c10d] The client socket",
        "/site-packages/deepspeed/x.py:3: FutureWarning: old",
    ],
)
def test_the_engines_lines_are_told_from_the_runs(line: str) -> None:
    ours = "train sft-a: 2/4 steps, 38 s\nround 0, online - sft, pass@1: +5.0%\nwarning: 3 of"
    assert chatter(f"{ours}\n{line}\n") == [line]
