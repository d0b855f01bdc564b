"""The report of made-up run directories: whole, partial, continued, hostile and wrong."""

import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rft_ray.errors import InputError
from rft_ray.plots import clean, line_plot, nice_ticks, tag
from rft_ray.records import write_groups
from rft_ray.report import write_report
from rft_ray.rollout_report import RolloutSummary, expected_paths, missing_chance
from rft_ray.selection import group_statistics, select_group
from rft_ray.tally import Tally
from rft_ray.types import Group, Problem, Rollout

HOSTILE = (
    "</pre><script>alert('x')</script><img src=x onerror=alert(1)>\x00\u202e\ud800 &amp; <<1+1=2>>"
)
POLICIES = {"small": 0.35, "large": 0.6}


def make_group(number: int, rng: random.Random, k: int = 16) -> Group:
    """A problem with k rollouts a policy: right on several paths, wrong, broken and cut off."""
    a, b, c = rng.randint(2, 40), rng.randint(2, 40), rng.randint(2, 9)
    answer = (a + b) * c
    ways = [
        f"First {a}+{b}=<<{a}+{b}={a + b}>>{a + b}.\nThen <<{a + b}*{c}={answer}>>.\n#### {answer}",
        f"First {b}+{a}=<<{b}+{a}={a + b}>>{a + b}.\nThen <<{c}*{a + b}={answer}>>.\n#### {answer}",
        f"<<{a}*{c}={a * c}>> and <<{b}*{c}={b * c}>> make <<{a * c}+{b * c}={answer}>>.\n"
        f"#### {answer}",
        f"<<{a + b}*{c}={answer}>>\n#### {answer}",
    ]
    rollouts = [
        make_rollout(policy, sample, ways, answer, skill, rng)
        for policy, skill in POLICIES.items()
        for sample in range(k)
    ]
    prompt = f"Ann has {a} apples and Bob has {b}. Each apple costs {c} coins. What do all cost?"
    problem = Problem(f"made-up-{number:05d}", prompt, str(answer), "test", ways[0])
    return select_group(Group(problem, rollouts))


def make_rollout(
    policy: str, sample: int, ways: list[str], answer: int, skill: float, rng: random.Random
) -> Rollout:
    if rng.random() < skill:
        text, verdict = rng.choice(ways), "correct"
    else:
        text, verdict = rng.choice(
            [
                (f"I think it is\n#### {answer + 1}", "wrong"),
                (f"<<2+2=5>>\n#### {answer}", "miscalculated"),
                ("The apples are red and", "unparsable"),
            ]
        )
    finish = "length" if rng.random() < 0.05 else "stop"
    reward = float(verdict == "correct")
    return Rollout(policy, text, sample=sample, token_ids=[1, 2], logprobs=[-0.1, -0.2],
                   finish_reason=finish, verdict=verdict, reward=reward)  # fmt: skip


def make_run(folder: Path, num_problems: int = 40, extra: tuple[Group, ...] = ()) -> Path:
    """A finished run directory, as `run_offline` leaves it."""
    rng = random.Random(0)
    groups = [*(make_group(number, rng) for number in range(num_problems)), *extra]
    start_run(folder)
    selected = folder / "round-000" / "selected"
    selected.mkdir(parents=True)
    tally = Tally()
    for part in range(0, len(groups), 16):
        write_groups(selected / f"part-{part}.parquet", groups[part : part + 16])
    for group in groups:
        tally.add(group_statistics(group))
    log(
        folder,
        *({"kind": "select", "round": 0, "policy": n, **tally.row(n)} for n in tally.names()),
    )
    log(folder, *training_lines("sft-small", 60), *training_lines("rft-target", 620))
    log(folder, *refresh_lines(), *phase_lines())
    log(folder, {"kind": "examples", "job": "rft-target", "kept": 512, "too_long": 3})
    (folder / "round-000" / "checkpoint").mkdir()
    rows = evaluation_rows()
    (folder / "round-000" / "evaluation.json").write_text(json.dumps(rows))
    log(folder, *({"kind": "evaluation", "problem_set": "heldout", **row} for row in rows))
    log(folder, {"kind": "gain", "metric": "pass@1", "value": 0.085, "low": 0.052, "high": 0.118})
    return folder


def start_run(folder: Path) -> None:
    """What is there as soon as a run has started."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "run_dir: runs/made-up\npolicies:\n- name: small\n- name: large\ntarget:\n  model: m\n"
    )
    (folder / "versions.json").write_text(json.dumps({"python": "3.11.2", "ray": "2.60.0"}))


def log(folder: Path, *lines: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"time": 0.0, **line}) + "\n" for line in lines)


def training_lines(job: str, steps: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(job)
    for step in range(1, steps + 1):
        loss = 0.3 + 2.5 / (1 + step / 20) + rng.gauss(0, 0.06)
        rate = 2e-5 * min(1.0, step / (0.1 * steps)) * (1 - step / steps)
        yield {"kind": "train_step", "job": job, "round": 0, "step": step, "total_steps": steps,
               "loss": loss, "learning_rate": rate, "grad_norm": 1.0, "tokens": 2_000,
               "examples": 16, "fill": 0.93, "seconds": 0.4}  # fmt: skip


def refresh_lines() -> Iterator[dict[str, Any]]:
    for step, parity in ((60, 2.1e-5), (310, None), (620, 8.4e-6)):
        yield {"kind": "refresh", "sampler": "small", "model": "target", "step": step,
               "seconds": 0.2 + step / 5_000, "bytes": 28_400_000, "replicas": 2,
               "parity_max_abs_diff": parity}  # fmt: skip


def phase_lines() -> Iterator[dict[str, Any]]:
    for phase, seconds, what in (
        ("train", 41.0, {"job": "sft-small"}),
        ("start samplers", 38.0, {}),
        ("evaluate", 6.0, {"model": "small", "stage": "sft", "problem_set": "heldout"}),
        ("evaluate", 7.0, {"model": "target", "stage": "sft", "problem_set": "heldout"}),
        ("sample verify select", 120.5, {}),
        ("train", 248.0, {"job": "rft-target"}),
        ("evaluate", 7.5, {"model": "target", "stage": "rft_pooled", "problem_set": "heldout"}),
    ):
        yield {"kind": "phase", "phase": phase, "seconds": seconds, **what}


def evaluation_rows() -> list[dict[str, Any]]:
    values = {("small", "sft"): 0.312, ("large", "sft"): 0.448, ("target", "sft"): 0.441,
              ("target", "rft_pooled"): 0.526}  # fmt: skip
    return [
        {"model": model, "stage": stage, "metric": "pass@1", "value": value, "n": 1319,
         "low": value - 0.027, "high": value + 0.027, "step": 620}
        for (model, stage), value in values.items()
    ]  # fmt: skip


class Page(HTMLParser):
    """The elements and attributes of a page, and the text a reader sees."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = Path(path).read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def page_of(folder: Path) -> Page:
    page = Page(write_report(str(folder)))
    assert page.open == []
    return page


def test_a_finished_run_has_every_section(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    assert "Not computed yet" not in page.text
    for shown in ("44.1%", "52.6%", "49.9% to 55.3%", "+8.5%", "+5.2% to +11.8%", "excludes zero",
                  "620 of 620", "2.1e-05", "2 of 3", "7 min 48 s", "Pooled", "2.60.0"):  # fmt: skip
        assert shown in page.text
    assert page.tags["h2"] == 8
    assert page.tags["svg"] == 4
    assert page.text.count("Problem made-up-") == 6
    assert page.text.count("Not selected: ") == 6


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
    folder = make_run(tmp_path / "<u>run", num_problems=0, extra=(evil,))
    (folder / "versions.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    log(folder, {"kind": "train_step", "job": HOSTILE, "step": 1, "loss": 1.0})
    log(folder, {"kind": "phase", "phase": HOSTILE, "model": HOSTILE, "seconds": 1.0})
    log(folder, {"kind": "refresh", "sampler": HOSTILE, "seconds": "soon"})
    page = page_of(folder)
    assert not page.tags.keys() & {"script", "img", "u"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert('x')</script>" in page.text
    assert not re.search("[\x00\u202e]", page.source)
    assert "and 98,000 characters more" in page.text and len(page.source) < 60_000


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
    (tmp_path / "run" / "round-000" / "evaluation.json").write_text('[{"model": "target"}]')
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


def test_verdict_counts_are_found_under_either_name(tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    row = {"kind": "select", "policy": "p", "problems": 1, "verdict_wrong": 4321}
    log(tmp_path / "run", row)
    assert "4,321" in page_of(tmp_path / "run").text


@pytest.mark.parametrize("name", ["", "nothing-here", "notes.txt"])
def test_another_folder_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="not a run directory") as caught:
        write_report(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_problems=3)
    torn = folder / "round-000" / "selected" / "part-0.parquet"
    torn.write_bytes(torn.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"part-0\.parquet"):
        write_report(str(folder))
    torn.unlink()
    (folder / "round-000" / "evaluation.json").write_text("[{")
    with pytest.raises(InputError, match=r"evaluation\.json"):
        write_report(str(folder))


def test_the_report_is_the_same_whatever_the_order_of_the_groups() -> None:
    groups = [make_group(number, random.Random(number)) for number in range(30)]
    first, second = RolloutSummary(), RolloutSummary()
    for forward, backward in zip(groups, reversed(groups), strict=True):
        first.add(forward)
        second.add(backward)
    assert [group for _, group in first.examples] == [group for _, group in second.examples]
    assert first.curves().keys() == second.curves().keys()
    for name, points in first.curves().items():
        for (k, paths), (other_k, other_paths) in zip(points, second.curves()[name], strict=True):
            assert k == other_k and paths == pytest.approx(other_paths)


def test_path_curves_end_at_the_tally() -> None:
    groups = [make_group(number, random.Random(number), k=11) for number in range(20)]
    groups.append(Group(Problem("too-long", "?", "1")))
    summary, tally = RolloutSummary(), Tally()
    for group in groups:
        summary.add(group)
        tally.add(group_statistics(group))
    for name, points in summary.curves().items():
        assert [k for k, _ in points] == [1, 2, 4, 8, 11]
        assert points[-1][1] == pytest.approx(tally.per_problem(name, "distinct_paths"))


def test_expected_paths_is_the_mean_over_all_draws() -> None:
    # a, b and c are paths, "-" is a rejected rollout
    one, two = "aab-", "b-c"
    draws = [
        len({*first, *second} - {"-"})
        for first in itertools.combinations(one, 2)
        for second in itertools.combinations(two, 2)
    ]
    paths = [Counter(one=2), Counter(one=1, two=1), Counter(two=1)]
    sizes = Counter(one=4, two=3)
    assert expected_paths(paths, sizes, 2) == pytest.approx(sum(draws) / len(draws))
    assert expected_paths(paths, sizes, 100) == 3
    assert expected_paths([], Counter(), 1) == 0
    assert missing_chance(4, 1, 2) == 0.5
    assert missing_chance(0, 0, 8) == 1


def test_ticks_are_round_and_span_the_values() -> None:
    assert nice_ticks(0.0, 0.37) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert nice_ticks(1, 620, inside=True) == [200, 400, 600]
    assert nice_ticks(3, 3)[0] <= 3 <= nice_ticks(3, 3)[-1]


def test_pieces_escape_their_text() -> None:
    assert tag("p", "a<b", class_='"x') == '<p class="&quot;x">a&lt;b</p>'
    assert clean("\x00\ud800") == "\ufffd\ufffd"
    nan = float("nan")
    assert "no finite values" in line_plot("t", "x", {"a": [(1.0, nan)]})
    assert "nan" not in line_plot("t", "x", {"a": [(1.0, nan), (2.0, 3.0)]})
