"""What benchmarks/chaos.py does to a job, on small jobs without Ray. Run: pytest this file"""

import random
import sys
from pathlib import Path

from chaos import Trial, losses_of, rollouts_of
from chaos_job import DRIVER, Job, run_calmly

from rft_ray.records import write_groups
from rft_ray.types import Group, Problem, Rollout

# Ten steps, each once, whoever kills the driver or its helper; the helper is what a step waits for.
HELPER = "import time; time.sleep(60)  # the-helper"
DRIVER_CODE = f"""
import json, pathlib, subprocess, sys, time
metrics = pathlib.Path(sys.argv[1]) / "metrics.jsonl"
metrics.parent.mkdir(parents=True, exist_ok=True)
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
start = lambda: subprocess.Popen([sys.executable, "-c", {HELPER!r}])
helper = start()
while done < 10:
    time.sleep(0.1)
    if helper.poll() is not None:
        helper = start()
        continue
    done += 1
    with metrics.open("a") as file:
        row = dict(kind="train_step", job="a", step=done, loss=1 / done)
        file.write(json.dumps(row) + chr(10))
helper.kill()
"""
VICTIMS = {"helper": ("the-helper", 2), DRIVER: ("", 1)}


def test_a_job_that_continues_is_found_equal_and_its_recoveries_are_timed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DRIVER_CODE, "{folder}"]
    trial = Trial("steps", command, VICTIMS, 0.1)
    same, *recovered = trial.rows(tmp_path, kills=3, seed=1)
    assert same["what"].startswith("losses") and same["ours"] == same["rival_value"] >= 10
    assert sum(int(own["what"].split("(")[1].split()[0]) for own in recovered) == 3
    assert all(0 < own["ours"] <= own["most"] for own in recovered)


def test_a_victim_is_drawn_from_those_that_are_there(tmp_path: Path) -> None:
    victims = {"nobody": ("no-such-title", 100), **VICTIMS}
    job = Job([sys.executable, "-c", HELPER], tmp_path / "job", victims)
    job.start()
    assert job.of_kind("nobody") == [] and len(job.of_kind(DRIVER)) == 1
    assert job.kill_one(random.Random(0)) == DRIVER
    assert job.driver.returncode is not None


def test_what_is_lost_doubled_or_graded_otherwise_does_not_count(tmp_path: Path) -> None:
    def write(name: str, samples: list[tuple[int, str]]) -> Job:
        folder = tmp_path / name
        (folder / "round-000/selected").mkdir(parents=True)
        rollouts = [Rollout("a", "4", sample=n, verdict=v) for n, v in samples]
        write_groups(
            folder / "round-000/selected/x.parquet", [Group(Problem("p", "q", "4"), rollouts)]
        )
        return Job([], folder, {})

    calm = write("calm", [(0, "correct"), (1, "wrong"), (2, "wrong")])
    trial = Trial("job", [], {}, 1.0)
    lost = write("lost", [(0, "correct"), (1, "wrong")])
    doubled = write("doubled", [(0, "correct"), (1, "wrong"), (2, "wrong"), (2, "wrong")])
    other = write("other", [(0, "correct"), (1, "error"), (2, "wrong")])
    for job, ours in ((calm, 3), (lost, 2), (doubled, 2), (other, 1)):
        (row,) = trial.compare(calm, [job], kills=1)
        assert (row["ours"], row["rival_value"]) == (ours, 3)
    assert rollouts_of(tmp_path / "doubled").total() == 4 and not losses_of(tmp_path / "calm")


def test_a_job_that_fails_by_itself_is_no_calm_run(tmp_path: Path) -> None:
    job = Job([sys.executable, "-c", "print('no good'); raise SystemExit(3)"], tmp_path / "j", {})
    try:
        run_calmly(job)
    except RuntimeError as error:
        assert "no good" in str(error)
    else:
        raise AssertionError("it should have failed")
