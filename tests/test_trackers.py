"""Metrics as they arrive in the trackers' own files. Run: pytest tests/test_trackers.py"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rft_ray.config_sections import TrackersConfig
from rft_ray.errors import InputError
from rft_ray.run_dir import RunDir
from rft_ray.trackers import MetricsFollower, scalars, tracking

STEP = {
    "kind": "train_step", "job": "rft-target", "round": 1, "time": 1.0, "step": 7,
    "total_steps": 9, "loss": 0.5, "learning_rate": 1e-5, "tokens": 300,
}  # fmt: skip
EVALUATION = {
    "kind": "evaluation", "model": "target", "stage": "sft", "problem_set": "heldout",
    "metric": "pass@1", "step": 40, "value": 0.25, "low": 0.2, "high": 0.3, "n": 80,
}  # fmt: skip


def log_step(run: RunDir, step: int, loss: float) -> None:
    run.log("train_step", job="sft-a", round=0, step=step, loss=loss)


def read_tensorboard(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Every curve in a run's event files, as TensorBoard itself reads them."""
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def read_wandb(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, which is a LevelDB log behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, record, block = path.read_bytes(), 7, b"", 32768
    while position < len(data):
        if block - position % block < 7:
            position += block - position % block
            continue
        _, size, part = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + size]
        position += 7 + size
        if part in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def test_a_step_is_a_point_per_number_under_its_job_and_round() -> None:
    assert scalars(STEP) == [
        ("train/rft-target/round-1/loss", 7, 0.5),
        ("train/rft-target/round-1/learning_rate", 7, 1e-5),
        ("train/rft-target/round-1/tokens", 7, 300.0),
    ]


@pytest.mark.parametrize(("job", "number"), [("sft-target", 0), ("sft-target", None), ("a", None)])
def test_a_job_outside_the_rounds_has_no_round(job: str, number: int | None) -> None:
    names = [name for name, *_ in scalars({**STEP, "job": job, "round": number})]
    assert names[0] == f"train/{job}/loss"


def test_an_evaluation_is_one_point() -> None:
    assert scalars(EVALUATION) == [("evaluation/target/sft/heldout/pass@1", 40, 0.25)]


def test_each_round_has_an_evaluation_curve_of_its_own() -> None:
    name = "evaluation/target/rft_own/heldout/pass@1/round-1"
    assert scalars({**EVALUATION, "stage": "rft_own", "round": 1}) == [(name, 40, 0.25)]
    assert scalars({k: v for k, v in EVALUATION.items() if k != "metric"}) == scalars(EVALUATION)


def test_counts_of_selection_are_drawn_over_rounds() -> None:
    line = {"kind": "select", "time": 1.0, "round": 2, "policy": "pooled", "selected": 5,
            "correct_per_problem": 1.5}  # fmt: skip
    assert scalars(line) == [
        ("select/pooled/selected", 2, 5.0),
        ("select/pooled/correct_per_problem", 2, 1.5),
    ]


def test_what_has_no_step_of_its_own_is_left_to_be_numbered() -> None:
    phase = {"kind": "phase", "time": 1.0, "phase": "evaluate", "seconds": 3.0, "model": "a"}
    refresh = {"kind": "refresh", "sampler": "a", "model": "target", "step": 4, "seconds": 0.5,
               "parity_max_abs_diff": None}  # fmt: skip
    assert scalars(phase) == [("phase/evaluate/seconds", None, 3.0)]
    assert scalars(refresh) == [("refresh/a/seconds", None, 0.5)]


def test_kinds_that_nobody_listed_are_forwarded_too() -> None:
    line = {"kind": "new_kind", "step": 3, "loss": 0.5, "on_policy": True, "note": "x"}
    assert scalars(line) == [("new_kind/loss", 3, 0.5)]


def test_counts_of_an_online_step_are_curves_of_their_own() -> None:
    line = {"kind": "online_step", "round": 0, "time": 1.0, "step": 3, "reward": 0.25,
            "loss": None, "staleness": {"0": 20, "1": 4}, "verdicts": {"correct": 6},
            "dropped": {}}  # fmt: skip
    assert scalars(line) == [
        ("online/reward", 3, 0.25),
        ("online/staleness/0", 3, 20.0),
        ("online/staleness/1", 3, 4.0),
        ("online/verdicts/correct", 3, 6.0),
    ]


def test_tensorboard_has_every_line_written_before_the_block_ends(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with tracking(TrackersConfig(), tmp_path, {}):
        for step in (1, 2):
            log_step(run, step, loss=1.0 / step)
        run.log("select", round=0, policy="pooled", correct_per_problem=1.5)
        with run.timed("evaluate"):
            pass
        with run.timed("evaluate"):
            pass
    curves = read_tensorboard(tmp_path)
    assert curves["train/sft-a/loss"] == [(1, 1.0), (2, 0.5)]
    assert curves["select/pooled/correct_per_problem"] == [(0, 1.5)]
    assert [step for step, _ in curves["phase/evaluate/seconds"]] == [0, 1]


def test_a_continued_run_neither_repeats_nor_loses_points(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with tracking(TrackersConfig(), tmp_path, {}):
        log_step(run, 1, loss=1.0)
        run.log("phase", phase="evaluate", seconds=1.0)
    log_step(run, 2, loss=0.5)
    with tracking(TrackersConfig(), tmp_path, {}):
        log_step(run, 3, loss=0.25)
        run.log("phase", phase="evaluate", seconds=2.0)
    curves = read_tensorboard(tmp_path)
    assert curves["train/sft-a/loss"] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert curves["phase/evaluate/seconds"] == [(0, 1.0), (1, 2.0)]


def test_a_run_that_fails_has_its_last_points_too(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError), tracking(TrackersConfig(), tmp_path, {}):
        log_step(RunDir(tmp_path), 1, loss=1.0)
        raise FloatingPointError
    assert read_tensorboard(tmp_path)["train/sft-a/loss"] == [(1, 1.0)]


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    run, text = RunDir(tmp_path), json.dumps(STEP) + "\n"
    with tracking(TrackersConfig(), tmp_path, {}):
        log_step(run, 1, loss=1.0)
        with run.metrics.open("a") as file:
            file.write(text[:40])
    whole_lines = run.metrics.stat().st_size - 40
    assert int((tmp_path / "tensorboard/.offset").read_text()) == whole_lines
    with run.metrics.open("a") as file:
        file.write(text[40:])
    with tracking(TrackersConfig(), tmp_path, {}):
        pass
    curves = read_tensorboard(tmp_path)
    assert curves["train/sft-a/loss"] == [(1, 1.0)]
    assert curves["train/rft-target/round-1/loss"] == [(7, 0.5)]


@pytest.mark.parametrize("garbage", ['{"kind": "train_', "[1]", '{"kind": "select"}', "\xff", ""])
def test_a_line_that_says_nothing_is_passed_over(tmp_path: Path, garbage: str) -> None:
    run = RunDir(tmp_path)
    run.metrics.write_bytes(garbage.encode("latin-1") + b"\n")
    with tracking(TrackersConfig(), tmp_path, {}):
        log_step(run, 1, loss=1.0)
    assert list(read_tensorboard(tmp_path)) == ["train/sft-a/loss"]


class FullDisk:
    """A tracker that takes two points and fails from then on."""

    def __init__(self) -> None:
        self.points: list[tuple[str, int, float]] = []
        self.closed = False

    def log(self, name: str, step: int, value: float) -> None:
        """Keep a point or fail."""
        if len(self.points) == 2:
            raise OSError("no space\nleft on device")
        self.points.append((name, step, value))

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self, succeeded: bool) -> None:
        """Remember that it was called."""
        self.closed = succeeded


def test_a_tracker_that_fails_is_dropped_with_one_warning_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rft_ray.trackers import TensorBoardTracker

    run, full = RunDir(tmp_path), FullDisk()
    follower = MetricsFollower(tmp_path, {"full": full, "board": TensorBoardTracker(tmp_path)})
    for step in range(1, 6):
        log_step(run, step, loss=0.5)
    follower.succeeded = True
    follower.stop.set()
    follower.run()
    assert capsys.readouterr().err == (
        "warning: full failed and gets no more metrics: no space left on device\n"
    )
    assert len(full.points) == 2 and not full.closed
    assert len(read_tensorboard(tmp_path)["train/sft-a/loss"]) == 5


def test_mlflow_goes_on_in_the_same_run(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    run_dir, store = tmp_path / "run", str(tmp_path / "mlruns")
    run_dir.mkdir()
    run = RunDir(run_dir)
    config = TrackersConfig(mlflow={"tracking_uri": store, "experiment_name": "e", "run_name": "r"})
    settings = {"sampling": {"k": 8}, "policies": [{"name": "a", "env": {"TOKEN": "secret"}}]}
    with tracking(config, run_dir, settings):
        log_step(run, 1, loss=1.0)
    with tracking(config, run_dir, settings):
        log_step(run, 2, loss=0.5)
        run.log(**EVALUATION)
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("e").experiment_id
    (found,) = client.search_runs([experiment])
    assert (found.info.run_name, found.info.status) == ("r", "FINISHED")
    assert found.data.params == {"sampling.k": "8", "policies.0.name": "a"}
    history = client.get_metric_history(found.info.run_id, "train/sft-a/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]
    assert found.data.metrics["evaluation/target/sft/heldout/pass_1"] == 0.25


def test_mlflow_is_told_that_the_run_failed(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    store = str(tmp_path / "mlruns")
    config = TrackersConfig(mlflow={"tracking_uri": store})
    with pytest.raises(FloatingPointError), tracking(config, tmp_path, {}):
        raise FloatingPointError
    run_id = (tmp_path / ".mlflow_run").read_text()
    assert mlflow.MlflowClient(store).get_run(run_id).info.status == "FAILED"


def test_a_bad_tracking_uri_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    config = TrackersConfig(mlflow={"tracking_uri": "gopher://nowhere"})
    with (
        pytest.raises(InputError, match=r"^trackers\.mlflow: .*gopher"),
        tracking(config, tmp_path, {}),
    ):
        pytest.fail("the block must not start")
    assert not list(tmp_path.iterdir())


def test_wandb_gets_the_points_with_their_own_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, config = RunDir(tmp_path), TrackersConfig(wandb={"project": "p", "name": "n"})
    for step in (1, 2):
        with tracking(config, tmp_path, {"seed": 3}):
            log_step(run, step, loss=0.5)
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    records = [record for file in files for record in read_wandb(file)]
    runs = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert {(r.project, r.display_name) for r in runs} == {("p", "n")}
    # One run for both processes.
    assert len({r.run_id for r in runs}) == 1
    rows = [
        {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [(row["train/sft-a/loss"], row["step"]) for row in rows] == [("0.5", "1"), ("0.5", "2")]


@pytest.mark.parametrize("arguments", [{"projekt": "p"}, {"project": 3}])
def test_wrong_arguments_of_wandb_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with (
        pytest.raises(InputError, match=r"^trackers\.wandb: .*proje[^\n]*$"),
        tracking(TrackersConfig(wandb=arguments), tmp_path, {}),
    ):
        pytest.fail("the block must not start")
    assert not (tmp_path / "tensorboard").exists()
