"""Opening, locking and continuing a run directory. Run: pytest tests/test_run_dir.py"""

import json
from pathlib import Path

import pytest

from rft_ray.config import RunConfig
from rft_ray.errors import InputError
from rft_ray.run_dir import keep_problems, open_run_dir, read_metrics
from rft_ray.types import Problem


def make_config(path: Path, **changes: object) -> RunConfig:
    """The smallest valid config."""
    problems = {"format": "word_problems", "count": 2}
    return RunConfig.model_validate(
        {
            "run_dir": str(path),
            "problems": {"train": problems, "heldout": {**problems, "split": "heldout"}},
            "policies": [{"name": "a", "model": "m"}],
            "target": {"model": "m"},
            **changes,
        }
    )


def test_a_run_directory_is_continued_by_the_same_config(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run")
    with open_run_dir(config) as run:
        run.log("phase", phase="x", seconds=1.0)
    with open_run_dir(config) as run:
        run.log("phase", phase="y", seconds=2.0)
        assert [row["phase"] for row in read_metrics(run.metrics)] == ["x", "y"]
    assert json.loads((tmp_path / "run/versions.json").read_text())["ray"]


def start(config: RunConfig) -> None:
    """Leave something in the run directory that a later run goes on from."""
    with open_run_dir(config) as run:
        run.log("phase", phase="x", seconds=1.0)


def test_another_recipe_is_refused_and_names_the_key(tmp_path: Path) -> None:
    start(make_config(tmp_path / "run"))
    with (
        pytest.raises(InputError, match=r"another rft\.learning_rate"),
        open_run_dir(make_config(tmp_path / "run", rft={"learning_rate": 1.0})),
    ):
        pass


def test_a_config_that_led_to_nothing_may_be_corrected(tmp_path: Path) -> None:
    with open_run_dir(make_config(tmp_path / "run", target={"model": "mispelt"})):
        pass
    start(make_config(tmp_path / "run"))
    with (
        pytest.raises(InputError, match=r"another target\.model"),
        open_run_dir(make_config(tmp_path / "run", target={"model": "mispelt"})),
    ):
        pass


def test_other_problems_under_the_same_name_are_refused(tmp_path: Path) -> None:
    config, seen = make_config(tmp_path / "run"), [Problem("1", "2+2?", "4")]
    with open_run_dir(config) as run:
        keep_problems(run, {"train": seen[:0], "heldout": seen})
        keep_problems(run, {"train": seen, "heldout": seen})  # nothing was computed yet
        run.log("phase", phase="x", seconds=1.0)
        keep_problems(run, {"train": list(seen), "heldout": seen})
        with pytest.raises(InputError, match=r"problems\.json: the train problems are not those"):
            keep_problems(run, {"train": [Problem("1", "2+2?", "5")], "heldout": seen})
        with pytest.raises(InputError, match="the heldout problems"):
            keep_problems(run, {"train": seen, "heldout": [*seen, Problem("2", "\ud800", "1")]})
        more = {"train": seen, "heldout": seen, "svamp": seen}
        keep_problems(run, more)
        with pytest.raises(InputError, match="the svamp problems are not those"):
            keep_problems(run, {**more, "svamp": seen[:0]})


def test_where_work_runs_may_change(tmp_path: Path) -> None:
    start(make_config(tmp_path / "run"))
    moved = {
        "trainer": {"num_workers": 4},
        "sampler": {"env": {"A": "b"}},
        "verifier": {"workers": 4},
    }
    elsewhere = make_config(tmp_path / "run", **moved)
    with open_run_dir(elsewhere):
        pass


def test_a_run_may_be_compared_with_more_and_scored_in_other_ways(tmp_path: Path) -> None:
    one = {"format": "word_problems", "count": 2, "split": "validation"}
    problems = {"train": one, "heldout": one, "out_of_domain": {"a": one}}
    start(make_config(tmp_path / "run", controls=["random"], problems=problems))
    more = {**problems, "out_of_domain": {"b": {**one, "count": 3}, "a": one}}
    added = {
        "controls": ["no_dedup", "random"],
        "problems": more,
        "evaluation": {"samples": 8, "ks": [4], "max_tokens": 7, "icl_shots": 1},
        "online": {"evaluate_every": 3},
        "rft": {"export_every": 5},
    }
    with open_run_dir(make_config(tmp_path / "run", **added)):
        pass
    for key, fewer in (
        ("controls", {**added, "controls": ["no_dedup"]}),
        (r"problems\.out_of_domain\.b", {**added, "problems": problems}),
        (r"problems\.out_of_domain\.a\.count", {
            **added, "problems": {**more, "out_of_domain": {
                **more["out_of_domain"], "a": {**one, "count": 9}}}}),
    ):  # fmt: skip
        with (
            pytest.raises(InputError, match=f"another {key};"),
            open_run_dir(make_config(tmp_path / "run", **fewer)),
        ):
            pass


def test_a_run_may_be_taken_further_but_not_cut_short(tmp_path: Path) -> None:
    start(make_config(tmp_path / "run", num_rounds=2))
    with open_run_dir(make_config(tmp_path / "run", num_rounds=3)):
        pass
    with (
        pytest.raises(InputError, match="another num_rounds"),
        open_run_dir(make_config(tmp_path / "run", num_rounds=2)),
    ):
        pass


def test_a_run_taken_further_may_say_more_on_later_rounds_only(tmp_path: Path) -> None:
    cold, hot = {"temperature": 0.5}, {"temperature": 1.0}
    start(make_config(tmp_path / "run", num_rounds=2, rounds=[cold]))
    with open_run_dir(make_config(tmp_path / "run", num_rounds=3, rounds=[cold, cold, hot])):
        pass
    with (
        pytest.raises(InputError, match=r"another rounds\.1\.temperature"),
        open_run_dir(make_config(tmp_path / "run", num_rounds=3, rounds=[cold, hot])),
    ):
        pass


def test_scored_completions_are_named_after_checkpoint_set_and_kind(tmp_path: Path) -> None:
    with open_run_dir(make_config(tmp_path / "run")) as run:
        path = run.scored(str(run.round(1).checkpoint), "heldout", "greedy", {"n": 1})
        assert path.parent == run.path / "scored"
        assert path.name.startswith("round-001-checkpoint-heldout-greedy-")
        base = run.scored("/models/base", "heldout", "greedy", {"n": 1})
        assert "models-base-heldout-greedy-" in base.name


def test_completions_of_different_things_never_share_a_name(tmp_path: Path) -> None:
    with open_run_dir(make_config(tmp_path / "run")) as run:
        scored = [
            run.scored(checkpoint, problem_set, "greedy", asked)
            for checkpoint, problem_set, asked in [
                (str(run.sft("a_b")), "heldout", {"template": "alpaca"}),
                (str(run.sft("a-b")), "heldout", {"template": "alpaca"}),
                (str(run.sft("a")), "b-heldout", {"template": "alpaca"}),
                # two models without SFT on one base, asked in different ways
                (str(run.sft("a-b")), "heldout", {"template": "chat"}),
            ]
        ]
        assert len(set(scored)) == 4
        again = run.scored(str(run.sft("a-b")), "heldout", "greedy", {"template": "chat"})
        assert again == scored[-1]


def test_two_drivers_never_share_a_run_directory(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run")
    with (
        open_run_dir(config),
        pytest.raises(InputError, match="in use by another process"),
        open_run_dir(config),
    ):
        pass


def test_a_relative_path_is_refused_inside_a_cluster_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    config = make_config(Path("runs/a"))
    with pytest.raises(InputError, match="absolute path"), open_run_dir(config):
        pass
    assert not (tmp_path / "runs").exists()


def test_a_line_cut_short_by_a_kill_spoils_no_other(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run")
    with open_run_dir(config) as run:
        run.log("phase", phase="x", seconds=1.0)
        with run.metrics.open("a") as file:
            file.write('{"kind": "pha')
    with open_run_dir(config) as run:
        run.log("phase", phase="y", seconds=2.0)
        assert [row["phase"] for row in read_metrics(run.metrics)] == ["x", "y"]


def test_an_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run_dir: cannot write") as caught:
        open_run_dir(make_config(tmp_path / "a\0b")).__enter__()
    assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "file").write_text("")
    config = make_config(tmp_path / "file/run")
    with pytest.raises(InputError, match="cannot write"), open_run_dir(config):
        pass
