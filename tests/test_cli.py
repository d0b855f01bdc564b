"""Wrong input gives one line and exit code 2; results are whole or absent; --help is instant."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rft_ray.cli import COMMANDS, main
from rft_ray.records import read_groups

ROOT = Path(__file__).parents[1]
HEAVY = ("ray", "torch", "vllm", "transformers", "pyarrow", "pydantic", "numpy", "yaml", "tqdm")
GROUP = {
    "problem": {"id": "p", "prompt": "2+2?", "answer": "4"},
    "rollouts": [
        {"policy": "a", "completion": "<<2+2=4>>\n#### 4"},
        {"policy": "b", "completion": "<<2+2=4>>\n#### 4.0"},
        {"policy": "b", "completion": "<<2+2=5>>\n#### 4"},
        {"policy": "b", "completion": "#### 5"},
    ],
}


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    path = tmp_path / "groups.jsonl"
    path.write_text(json.dumps(GROUP) + "\n")
    return path


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on standard error of a command that must end with exit code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    *progress, line = err.splitlines()
    assert line.startswith("rft-ray: error: ")
    assert all(
        text.startswith(("verify: ", "select: ", "export: ", "inspect: ")) for text in progress
    )
    return line


def test_verify_then_select(groups: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verified, selected = groups.with_name("v.parquet"), groups.with_name("s.jsonl")
    assert main(["verify", str(groups), "-o", str(verified), "--workers", "1"]) == 0
    out, err = capsys.readouterr()
    assert "verified 4 rollouts of 1 problems" in out
    assert [line.split() for line in out.splitlines()[1:5]] == [
        ["2", "correct"],
        ["1", "wrong"],
        ["1", "miscalculated"],
        ["0", "unparsable"],
    ]
    assert "verify: 1/1 problems" in err and "\r" not in err
    assert main(["select", str(verified), "-o", str(selected)]) == 0
    assert "selected 1 of 4 rollouts of 1 problems" in capsys.readouterr().out
    (group,) = read_groups(selected)
    assert [r.selected for r in group.rollouts] == [True, False, False, False]
    assert [r.reward for r in group.rollouts] == [1.0, 1.0, 0.0, 0.0]
    assert main(["select", str(verified), "-o", str(selected), "--rule", "none"]) == 0
    assert "selected 2 of 4" in capsys.readouterr().out


def test_bad_records_stop_the_work_or_are_counted(
    groups: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = groups.with_name("out.jsonl")
    bad = json.loads(json.dumps(GROUP))
    bad["problem"]["id"] = "two"
    bad["rollouts"][3]["policy"] = 7
    groups.write_text(groups.read_text() + json.dumps(bad) + "\n")
    message = f"{groups}:2: rollouts[3].policy: expected a string that is not empty"
    assert message in fails(capsys, "verify", groups, "-o", out)
    assert not out.exists()
    assert main(["verify", str(groups), "-o", str(out), "--skip-bad"]) == 0
    assert f"skipped 1 bad records, the first: {message}" in capsys.readouterr().out


@pytest.fixture
def run_dir(groups: Path) -> Path:
    """A run directory with one round of selected groups."""
    path = groups.parent / "run"
    selected = path / "round-000/selected"
    selected.mkdir(parents=True)
    verified = groups.with_name("v.jsonl")
    assert main(["verify", str(groups), "-o", str(verified), "--workers", "1"]) == 0
    assert main(["select", str(verified), "-o", str(selected / "0.parquet")]) == 0
    (path / "config.yaml").write_text("policies: [{name: a, model: m}]\n")
    verified.unlink()
    return path


def test_export_takes_a_run_directory_or_a_groups_file(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    out, folder = run_dir.with_name("out.jsonl"), run_dir.with_name("out")
    assert main(["export", str(run_dir), "-o", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "exported 1 rows of 1 problems",
        "         0  gold solutions",
        "         1  selected rollouts",
        "         0  problems left out",
        f"wrote {out}",
    ]
    row = {"query": "2+2?", "response": "<<2+2=4>>\n#### 4"}
    assert json.loads(out.read_text()) == row
    selected = run_dir / "round-000/selected"
    arguments = ["export", str(selected), "-o", str(folder), "--format", "preference"]
    assert main(arguments) == 0
    assert "| `a` | `m` |" in (folder / "README.md").read_text()
    capsys.readouterr()
    assert "not empty" in fails(capsys, "export", run_dir, "-o", folder)
    assert "would overwrite" in fails(capsys, "export", run_dir, "-o", selected / "x.jsonl")


def test_export_wants_selected_groups(groups: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = groups.with_name("out.jsonl")
    line = fails(capsys, "export", groups, "-o", out)
    assert f"{groups}: problem 'p': rollouts[0].selected: not filled; run `rft-ray sel" in line
    assert "no such file" in fails(capsys, "export", groups.with_name("no.jsonl"), "-o", out)
    assert "must end in" in fails(capsys, "export", groups, "-o", groups.with_name("out.csv"))
    assert list(groups.parent.iterdir()) == [groups]


def test_inspect_shows_a_table_or_a_problem(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["inspect", str(run_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"groups: {run_dir / 'round-000/selected'}"
    assert lines[3].split() == ["p", "4", "2", "1", "1", "2+2?"]
    assert main(["inspect", str(run_dir), "--problem", "p", "--round", "0"]) == 0
    out = capsys.readouterr().out
    assert "a, round 0, sample 0, correct: selected: stands for its path (2 of 2" in out
    assert "b, round 0, sample 0, correct: another text stands for its path: sample 0 of a" in out
    assert "b, round 0, sample 1: miscalculated: <<2+2=5>>" in out
    assert "b, round 0, sample 2: wrong: final answer 5, expected 4" in out
    line = fails(capsys, "inspect", run_dir, "--problem", "pp")
    assert "no problem 'pp'; nearest: 'p'" in line
    assert "there is no round 7 (there: 0)" in fails(capsys, "inspect", run_dir, "--round", 7)
    assert "no such file" in fails(capsys, "inspect", run_dir / "no")


def test_inspect_ends_quietly_when_nobody_reads_on(groups: Path) -> None:
    record = dict(GROUP, rollouts=[{"policy": "a", "completion": "x" * 1_000}] * 500)
    groups.write_text(json.dumps(record))
    command = [sys.executable, "-m", "rft_ray", "inspect", str(groups), "--problem", "p"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plan", str(ROOT / "configs/quickstart.yaml")], ["verify"]]
)
def test_output_that_nobody_reads_is_no_error(groups: Path, arguments: list[str]) -> None:
    """The reader has gone before the first line: what is printed waits in a buffer until then."""
    if arguments == ["verify"]:
        arguments = ["verify", str(groups), "-o", str(groups.with_name("out.jsonl"))]
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "rft_ray", *arguments]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(write)
    assert done.returncode == 141
    assert "Broken" not in done.stderr and "Traceback" not in done.stderr


def test_a_broken_pipe_of_our_own_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: object) -> int:
        raise BrokenPipeError("to a worker")

    monkeypatch.setitem(COMMANDS, "doctor", fail)
    with pytest.raises(BrokenPipeError, match="to a worker"):
        main(["doctor"])


@pytest.mark.parametrize("command", ["verify", "select"])
def test_wrong_paths_fail_before_the_work(
    groups: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = groups.with_name("out.jsonl")
    assert "no such file" in fails(capsys, command, groups.with_name("no.jsonl"), "-o", out)
    assert "must end in" in fails(capsys, command, groups, "-o", groups.with_name("out.txt"))
    assert "would overwrite" in fails(capsys, command, groups, "-o", groups)
    assert "there is no folder" in fails(capsys, command, groups, "-o", "/no/folder/x.jsonl")
    assert "cannot write there" in fails(capsys, command, groups, "-o", "/proc/x.jsonl")
    assert list(groups.parent.iterdir()) == [groups]


def test_selecting_without_verdicts_says_what_to_do(
    groups: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = groups.with_name("out.jsonl")
    assert "`rft-ray verify` first" in fails(capsys, "select", groups, "-o", out)
    assert list(groups.parent.iterdir()) == [groups]


def test_hostile_text_neither_breaks_the_line_nor_reaches_the_terminal(
    groups: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = {"id": "\x1b[2J\n\ud800\u202e", "prompt": "", "answer": ""}
    line = json.dumps({"problem": hostile, "rollouts": []})
    groups.write_text(line + "\n" + line)
    error = fails(capsys, "verify", groups, "-o", groups.with_name("out.jsonl"))
    assert "\x1b" not in error and "is also at" in error


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["verify", "x.jsonl"],
        ["verify", "x.jsonl", "-o", "y.jsonl", "--timeout", "0"],
        ["verify", "x.jsonl", "-o", "y.jsonl", "--timeout", "nan"],
        ["verify", "x.jsonl", "-o", "y.jsonl", "--workers", "0"],
        ["verify", "x.jsonl", "-o", "y.jsonl", "--style", "poetry"],
        ["select", "x.jsonl", "-o", "y.jsonl", "--rule", "all"],
        ["run"],
        ["report"],
        ["export", "x.jsonl"],
        ["export", "x.jsonl", "-o", "y.jsonl", "--format", "poetry"],
        ["inspect"],
        ["inspect", "x.jsonl", "--round", "first"],
    ],
)
def test_wrong_arguments_are_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "sample", "train", "evaluate"])
def test_a_wrong_config_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    config = tmp_path / "c.yaml"
    assert "cannot read the config" in fails(capsys, command, config)
    config.write_text("run_dir: x\npolicis: []\n")
    assert f"{config}:2: unknown key 'policis'; did you mean" in fails(capsys, command, config)
    assert "expected section.field=value" in fails(capsys, command, config, "nonsense")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["verify", "--help"],
        ["export", "--help"],
        ["inspect", "--help"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom rft_ray.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as end: assert end.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_of_the_contract_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    commands = [
        "run",
        "sample",
        "train",
        "evaluate",
        "verify",
        "select",
        "export",
        "inspect",
        "report",
        "doctor",
    ]
    for command in commands:
        assert f"    {command} " in out


def test_an_interrupt_ends_with_130_and_no_traceback_or_output(groups: Path) -> None:
    records = [dict(GROUP, problem=dict(GROUP["problem"], id=str(i))) for i in range(20_000)]
    groups.write_text("".join(json.dumps(record) + "\n" for record in records))
    command = [sys.executable, "-m", "rft_ray", "verify", str(groups), "-o"]
    process = subprocess.Popen(
        [*command, str(groups.with_name("out.jsonl"))], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 20
    while len(list(groups.parent.iterdir())) == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err and "interrupted" in err
    assert list(groups.parent.iterdir()) == [groups]
