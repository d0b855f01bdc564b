"""What is shown while a run works. Run: pytest tests/test_console.py"""

import json
from pathlib import Path

import pytest

from rft_ray.console import follow_training


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
