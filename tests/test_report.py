"""The report of made-up run directories: whole, partial, continued, hostile and wrong."""

import json
import random
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rft_ray.cli import main
from rft_ray.errors import InputError
from rft_ray.report import write_report
from rft_ray.rollout_summary import RolloutSummary, read_rollouts
from rft_ray.score_rows import STAGES
from rft_ray.selection import group_statistics
from rft_ray.tally import Tally
from rft_ray.types import Group, Problem, Rollout
from tests.made_up_run import (
    evaluation_rows,
    log,
    make_group,
    make_run,
    of_rounds,
    phase_lines,
    refresh_lines,
    start_run,
    training_lines,
)

HOSTILE = (
    "</pre><script>alert('x')</script><img src=x onerror=alert(1)>\x00\u202e\ud800 &amp; <<1+1=2>>"
)


class Page(HTMLParser):
    """The elements and attributes of a page, and the text a reader sees."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self.source = Path(path).read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def table(self, *headers: str) -> list[list[list[str]]]:
        """The bodies of the tables that have these headers among theirs."""
        return [rows for rows in self.tables if set(headers) <= set(rows[0])]


def page_of(folder: Path) -> Page:
    page = Page(write_report(str(folder)))
    assert page.open == []
    return page


def test_a_finished_run_has_every_section(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    assert "Not computed yet" not in page.text
    for shown in ("Target after RFT, pooled, round 1", "44.1%", "55.0%", "52.3% to 57.7%", "+11.5%",
                  "+8.2% to +14.8%", "excludes zero", "620 of 620", "2.1e-05", "2 of 3",
                  "15 min 36 s", "2.60.0", "Out of domain: svamp", "Out of domain: gsm_hard",
                  "drawn at random", "every accepted rollout", "the target's own base",
                  "Policies: small, large. State of round 1"):  # fmt: skip
        assert shown in page.text
    assert page.tags["h2"] == 8
    # pass@K and maj@K of three sets, two of rounds, validation, two of paths, two of worth,
    # six of training
    assert page.tags["svg"] == 19
    assert page.text.count("Problem made-up-") == 6
    assert page.text.count("Not selected: ") == 6


def test_a_single_round_is_not_mentioned(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", rounds=1))
    assert "Not computed yet" not in page.text
    assert "Target after RFT, pooled\n" in page.text and "52.6%" in page.text
    assert "round" not in page.text.partition("Policies:")[2].partition("config.yaml")[0]


def test_every_score_is_in_its_row_and_column(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", num_problems=2))
    heldout, hard, svamp = page.table("model", "stage", "round", "pass@1", "maj@16")
    found = {
        (prefix + metric, row[0], row[1], row[2]): cell
        for prefix, table in (("", heldout), ("gsm_hard/", hard), ("svamp/", svamp))
        for row in table[1:]
        for metric, cell in zip(table[0], row, strict=True)
    }
    for number in (0, 1):
        for row in evaluation_rows(number):
            metric = row["metric"].replace("_best_validation", ", best step")
            shown_round = "" if row["stage"] in ("icl", "sft") else str(number)
            cell = found[metric, row["model"], STAGES[row["stage"]].label, shown_round]
            best = " at step 620" if "best" in metric else ""
            interval = f"{row['low']:.1%} to {row['high']:.1%}"
            assert cell.split() == f"{row['value']:.1%}{best} {interval}".split()


def test_gains_are_of_a_stage_and_a_round(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", num_problems=2))
    [[_, *rows]] = page.table("metric", "gain")
    assert rows == [
        ["pass@1", "RFT, pooled", "0", "+8.5%", "+5.2% to +11.8%"],
        ["pass@1", "RFT, random", "0", "+2.1%", "-1.2% to +5.4%"],
        ["pass@1", "RFT, pooled", "1", "+11.5%", "+8.2% to +14.8%"],
        ["pass@1", "RFT, random", "1", "+5.1%", "+1.8% to +8.4%"],
    ]


def test_counts_of_every_round_are_those_of_the_groups(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_problems=5)
    [[_, *rows]] = page_of(folder).table("per problem", "distinct paths")
    assert [row[:2] for row in rows] == [
        *(["0", name] for name in ("small", "large", "pooled")),
        *(["1", name] for name in ("small", "large", "pooled", "all rounds")),
    ]
    groups = [group for _, group in read_rollouts(folder / "round-001" / "selected", 1).examples]
    assert len(groups) == 5
    for row in rows[3:]:
        own = [of_rounds(group, 0, 1) if row[1] == "all rounds" else of_rounds(group, 1)
               for group in groups]  # fmt: skip
        of = [group_statistics(group) for group in own]
        counts = [s["policies"].get(row[1]) or s["pooled"] for s in of]
        for cell, key in zip(row[2:5], ("rollouts", "correct", "distinct_paths"), strict=True):
            assert cell == f"{sum(c[key] for c in counts) / 5:.2f}"
        assert row[10] == f"{sum(c['selected'] for c in counts)}"


def test_a_killed_second_round_leaves_the_first_readable(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_problems=5, rounds=1)
    (folder / "round-001" / "sampled").mkdir(parents=True)
    log(folder, *({**line, "round": 1} for line in training_lines("rft-target", 7)))
    page = page_of(folder)
    assert "Target after RFT, pooled, round 0" in page.text
    assert "rollouts selected (not yet), target trained (not yet)" in page.text
    [[_, *rows]] = page.table("job", "steps")
    # the same job in two rounds is two trainings
    assert [row[1:3] for row in rows if row[0] == "rft-target"] == [
        ["0", "620 of 620"],
        ["1", "7 of 7"],
    ]


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    assert not page.tags.keys() & {"script", "link", "img", "iframe", "object", "a", "base"}
    assert "://" not in page.source and "url(" not in page.source and "@import" not in page.source


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    rollouts = [
        Rollout("<b>p</b>", HOSTILE, verdict="correct", selected=True, finish_reason="stop"),
        Rollout("<b>p</b>", "x" * 100_000, verdict="wrong", selected=False),
    ]
    evil = Group(Problem("<i>id</i>", HOSTILE, HOSTILE, solution=HOSTILE), rollouts)
    folder = make_run(tmp_path / "<u>run", num_problems=0, extra=(evil,), rounds=1)
    (folder / "versions.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    log(folder, {"kind": "train_step", "job": HOSTILE, "step": 1, "loss": 1.0})
    log(folder, {"kind": "phase", "phase": HOSTILE, "model": HOSTILE, "seconds": 1.0})
    log(folder, {"kind": "refresh", "sampler": HOSTILE, "seconds": "soon"})
    log(folder, {"kind": "select", "policy": HOSTILE, "problems": 1, "rollouts": 2})
    row = {"model": HOSTILE, "stage": HOSTILE, "value": 0.5, "low": 0.4, "high": 0.6, "n": 9,
           "step": 1}  # fmt: skip
    rows = [{**row, "metric": metric} for metric in ("pass@1", HOSTILE, HOSTILE + "/pass@1")]
    (folder / "round-000" / "evaluation.json").write_text(json.dumps(rows))
    log(folder, *({"kind": "evaluation", "problem_set": HOSTILE, **row} for row in rows))
    log(folder, {"kind": "gain", **rows[1], "round": HOSTILE})
    page = page_of(folder)
    assert not page.tags.keys() & {"script", "img", "u"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert('x')</script>" in page.text
    assert not re.search("[\x00\u202e]", page.source)
    assert "and 98,000 characters more" in page.text and "x" * 2_001 not in page.source


def test_what_is_missing_is_said_and_not_invented(tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert page.text.count("Not computed yet.") == 10
    assert "rollouts selected (not yet)" in page.text
    log(tmp_path / "run", *training_lines("sft-small", 7))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('7\n{"kind": "train_st')
    page = page_of(tmp_path / "run")
    assert "7 of 7" in page.text and page.tags["svg"] == 2


def test_lines_without_their_numbers_are_shown_as_dashes(tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    kinds = ("select", "train_step", "refresh", "phase", "gain", "evaluation", "examples")
    log(tmp_path / "run", *({"kind": kind} for kind in kinds))
    log(tmp_path / "run", {"kind": "train_step", "job": "a", "step": 1, "loss": float("nan")})
    (tmp_path / "run" / "round-000" / "selected").mkdir(parents=True)
    assert "nan" not in page_of(tmp_path / "run").text


def test_of_repeated_lines_the_last_counts_but_time_adds_up(tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    log(tmp_path / "run", *training_lines("a", 3), *phase_lines(), *refresh_lines())
    step = {"kind": "train_step", "job": "a", "step": 3, "total_steps": 3, "loss": 9.8765}
    select = {"kind": "select", "round": 0, "policy": "p", "problems": 2, "rollouts": 8}
    log(tmp_path / "run", step, *phase_lines(), *refresh_lines())
    log(tmp_path / "run", {**select, "correct": 2}, {**select, "correct": 6})
    log(tmp_path / "run", *({"kind": "gain", "metric": "pass@1", "value": v} for v in (0.1, 0.2)))
    text = page_of(tmp_path / "run").text
    assert "3 of 3" in text and "9.8765" in text
    assert "15 min 36 s" in text and "4 of 6" in text
    assert "75.0%" in text and "25.0%" not in text
    assert "+20.0%" in text and "+10.0%" not in text


@pytest.mark.parametrize("name", ["", "nothing-here", "notes.txt"])
def test_another_folder_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="not a run directory") as caught:
        write_report(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_problems=3)
    torn = folder / "round-001" / "selected" / "part-0.parquet"
    torn.write_bytes(torn.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"part-0\.parquet"):
        write_report(str(folder))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[1]", "[0]: expected an object, found the number 1"),
        ("{}", "expected a list, found an object"),
        ('[{"model": "target"}]', "[0].stage: expected a string, found nothing"),
        ("[{", "not valid JSON: "),
        ("", "not valid JSON: "),
    ],
)
def test_damaged_scores_are_one_line_that_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, what: str
) -> None:
    folder = make_run(tmp_path / "run", rounds=2)
    scores = folder / "round-001" / "evaluation.json"
    whole = scores.read_text()
    scores.write_text(text)
    assert main(["report", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rft-ray: error: {scores}: {what}") and line.endswith("makes it again")
    assert main(["inspect", str(folder)]) == 0  # rollouts are looked at all the same
    scores.write_text(whole[:-40])
    assert main(["report", str(folder)]) == 2
    assert f"{scores}: not valid JSON" in capsys.readouterr().err


def test_the_report_is_the_same_whatever_the_order_of_the_groups() -> None:
    groups = [make_group(number, random.Random(number)) for number in range(30)]
    first, second = RolloutSummary(), RolloutSummary()
    for forward, backward in zip(groups, reversed(groups), strict=True):
        first.add(forward)
        second.add(backward)
    assert [group for _, group in first.examples] == [group for _, group in second.examples]
    curves, others = first.pool.curves(), second.pool.curves()
    assert curves.keys() == others.keys()
    for name, points in curves.items():
        for (k, paths), (other_k, other_paths) in zip(points, others[name], strict=True):
            assert k == other_k and paths == pytest.approx(other_paths)


def test_path_curves_end_at_the_tally() -> None:
    groups = [make_group(number, random.Random(number), k=11, rounds=3) for number in range(20)]
    groups.append(Group(Problem("too-long", "?", "1")))
    summary, newest, pool = RolloutSummary(2), Tally(), Tally()
    for group in groups:
        summary.add(group)
        newest.add(group_statistics(of_rounds(group, 2)))
        pool.add(group_statistics(group))
    for sums, tally, ks in ((summary.own, newest, [1, 3, 6, 11]),
                            (summary.pool, pool, [1, 3, 6, 12, 25, 33])):  # fmt: skip
        assert list(sums.curves()) == ["small", "large", "pooled"]
        for name, points in sums.curves().items():
            assert [k for k, _ in points] == ks
            assert points[-1][1] == pytest.approx(tally.per_problem(name, "distinct_paths"))


def test_a_run_without_sft_is_compared_with_its_base(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for file in run.glob("round-*/evaluation.json"):
        file.write_text(file.read_text().replace('"sft"', '"base"'))
    metrics = run / "metrics.jsonl"
    text = metrics.read_text().replace('"stage": "sft"', '"stage": "base"')
    metrics.write_text(text.replace('"kind": "gain"', '"kind": "gain", "baseline": "base"'))
    shown = page_of(run).text
    assert "Target before training\n44.1%" in shown and "Gain over base, paired" in shown
    assert "Gain of the target over its base, paired by problem" in shown
    assert STAGES["base"].note in shown and "SFT" not in shown


def test_refused_rollouts_are_shown_with_those_that_overlap_with_test_problems(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path / "run", rounds=1)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert not page_of(run).table("rollouts", "wrong", "contaminated")
    (line,) = (x for x in lines if x["kind"] == "select" and x["policy"] == "small")
    log(run, {**line, "refused": 7, "contaminated": 3})
    (rows,) = page_of(run).table("rollouts", "wrong", "contaminated")
    assert rows[0][-2:] == ["refused", "contaminated"]
    assert [row[-2:] for row in rows if row[0] == "small"] == [["7", "3"]]
