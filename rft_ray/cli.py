"""The command line: `rft-ray COMMAND ...`, one function per command.

Nothing heavy is imported before the command that needs it, so that --help is instant. Wrong input
ends in one line on standard error and exit code 2; results go to standard output, progress to
standard error.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from rft_ray import __version__
from rft_ray.errors import InputError, one_line
from rft_ray.verify_options import EXAMPLE as VERIFY_EXAMPLE
from rft_ray.verify_options import add_verify_options, verify_config

if TYPE_CHECKING:
    from rft_ray.config import RunConfig
    from rft_ray.pool import Pool
    from rft_ray.records import GroupReader
    from rft_ray.types import Group

EXIT_DONE, EXIT_INPUT, EXIT_INTERRUPTED = 0, 2, 130
EXPORT_FORMATS = ("query-response", "messages", "preference")
DESCRIPTION = """\
Rejection-sampling fine-tuning on a Ray cluster: sample solutions, verify them, select a diverse
subset, train on it, evaluate."""
CONFIG_EXAMPLE = """\
examples:
  rft-ray {command} configs/quickstart.yaml
  rft-ray {command} configs/quickstart.yaml run_dir=runs/a sampling.k=8 policies.0.name=small"""
SELECT_EXAMPLE = """\
GROUPS must have verdicts (rft-ray verify). Rules: paper keeps one accepted rollout per list of
calculations (Yuan et al. 2023, Algorithm 1), none keeps every accepted rollout.

example:
  rft-ray select verified.parquet -o selected.parquet"""

EXPORT_EXAMPLE = """\
GROUPS is a selected groups file (rft-ray select) or a run directory, of which the newest selected
rollouts are taken. The gold solution of a problem comes first, then its selected rollouts. OUT
ends in .jsonl or .parquet, or has no ending: then it becomes a folder in Hugging Face's layout.

examples:
  rft-ray export runs/quickstart -o rft.jsonl --format query-response
  rft-ray export runs/quickstart/round-000/selected -o rft-chat --format messages
  rft-ray export selected.parquet -o pairs.parquet --format preference"""
INSPECT_EXAMPLE = """\
SOURCE is a groups file, or a run directory, of which the newest round is taken.

examples:
  rft-ray inspect runs/quickstart
  rft-ray inspect runs/quickstart --problem train-12 --round 0 | less"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code (0 done, 2 wrong input, 130 interrupted, 1 by traceback)."""
    args = _build_parser().parse_args(arguments)
    try:
        return args.command(args)
    except InputError as error:
        print(f"rft-ray: error: {one_line(str(error))}", file=sys.stderr)
        return EXIT_INPUT
    except KeyboardInterrupt:
        print("rft-ray: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    from rft_ray.config_file import load_config

    config = load_config(args.config, args.overrides)
    if config.mode == "online":
        return _run_online(args.part, config)
    from rft_ray import offline

    parts = {
        "run": offline.run_offline,
        "sample": offline.run_sample,
        "train": offline.run_train,
        "evaluate": offline.run_evaluate,
    }
    parts[args.part](config)
    return EXIT_DONE


def _plan(args: argparse.Namespace) -> int:
    from rft_ray.budget_plan import print_budget
    from rft_ray.config_file import load_config
    from rft_ray.inspection import find_source
    from rft_ray.plan import print_plan

    config = load_config(args.config, args.overrides)
    source = find_source(args.pass_rates, sampled=False) if args.pass_rates else None
    if config.mode == "offline":
        print_budget(config, source)
    return print_plan(config)


def _run_online(part: str, config: "RunConfig") -> int:
    if part != "run":
        raise InputError(f"mode online samples and trains at once: use `rft-ray run`, not {part}")
    from rft_ray.online import run_online

    run_online(config)
    return EXIT_DONE


def _verify(args: argparse.Namespace) -> int:
    from rft_ray.records import check_output, read_groups
    from rft_ray.verification import verify_file

    config = verify_config(args)
    check_output(args.out, source=args.groups)
    groups = read_groups(args.groups, skip_bad=args.skip_bad)
    counts = verify_file(_with_progress("verify", groups), args.out, config)
    print(f"verified {counts.verdicts.total()} rollouts of {counts.problems} problems")
    _print_counts(counts.verdicts)
    for name, count in sorted(counts.notes.items()):
        what = "correct only by a leniency" if name == "lenient" else f"correct, refused: {name}"
        print(f"{count:10d}  {what}")
    _print_end(groups, args.out)
    return EXIT_DONE


def _select(args: argparse.Namespace) -> int:
    from rft_ray.records import check_output, read_groups, write_groups

    check_output(args.out, source=args.groups)
    groups = read_groups(args.groups, skip_bad=args.skip_bad)
    pooled: Counter[str] = Counter()
    policies: dict[str, Counter[str]] = {}
    selected = _select_each(_with_progress("select", groups), args.rule, pooled, policies)
    problems = write_groups(args.out, selected)
    print(f"selected {pooled['selected']} of {pooled['rollouts']} rollouts of {problems} problems")
    columns = ("rollouts", "correct", "accepted", "distinct_paths", "selected")
    print(" ".join(f"{column:>14}" for column in columns))
    for name, row in [*policies.items(), ("(all)", pooled)]:
        print(" ".join(f"{row[column]:14d}" for column in columns), "", one_line(name))
    _print_end(groups, args.out)
    return EXIT_DONE


def _export(args: argparse.Namespace) -> int:
    from rft_ray.dataset import check_dataset_output, export_dataset
    from rft_ray.inspection import find_source
    from rft_ray.records import read_groups

    source = find_source(args.groups, sampled=False)
    check_dataset_output(args.out, source)
    groups = read_groups(source, skip_bad=args.skip_bad, with_tokens=False)
    counts = export_dataset(_with_progress("export", groups), args.out, args.format, source)
    print(f"exported {counts.rows} rows of {counts.problems} problems")
    print(f"{counts.gold:10d}  gold solutions")
    print(f"{counts.selected.total():10d}  selected rollouts")
    print(f"{counts.left_out:10d}  problems left out")
    _print_end(groups, args.out)
    return EXIT_DONE


def _inspect(args: argparse.Namespace) -> int:
    from rft_ray.inspection import (
        describe_problem,
        find_problem,
        find_source,
        open_source,
        problem_table,
        show,
    )

    source = find_source(args.source, args.round)
    groups = open_source(source)
    if args.problem is None:
        head = [f"groups: {one_line(str(source))}", ""]
        show(chain(head, problem_table(_with_progress("inspect", groups))))
    else:
        show(describe_problem(find_problem(groups, args.problem, source)))
    return EXIT_DONE


def _report(args: argparse.Namespace) -> int:
    from rft_ray.report import write_report

    print(write_report(args.run_dir))
    return EXIT_DONE


def _doctor(args: argparse.Namespace) -> int:
    from rft_ray.doctor import run_doctor

    return run_doctor()


def _select_each(
    groups: Iterable["Group"],
    rule: str,
    pooled: Counter[str],
    policies: dict[str, Counter[str]],
) -> Iterator["Group"]:
    """Raises InputError at the end where no rollout had a verdict, so that nothing is written."""
    from rft_ray.selection import group_statistics, select_group
    from rft_ray.types import VERDICTS

    for group in groups:
        chosen = select_group(group, rule)
        statistics = group_statistics(chosen)
        pooled.update(statistics["pooled"])
        for name, row in statistics["policies"].items():
            policies.setdefault(name, Counter()).update(row)
        yield chosen
    if not any(pooled[verdict] for verdict in VERDICTS):
        raise InputError("no rollout has a verdict: grade the file with `rft-ray verify` first")


def _with_progress(label: str, groups: "GroupReader | Pool") -> Iterator["Group"]:
    from rft_ray.console import progress
    from rft_ray.pool import Pool
    from rft_ray.records import count_groups

    total = len(groups) if isinstance(groups, Pool) else count_groups(groups.path)
    with progress(label, total, "problem") as advance:
        for group in groups:
            yield group
            advance(1)


def _print_counts(counts: Counter[str]) -> None:
    from rft_ray.types import VERDICTS

    for verdict in VERDICTS:
        print(f"{counts[verdict]:10d}  {verdict}")


def _print_end(groups: "GroupReader", out: str) -> None:
    if groups.skipped:
        first = one_line(groups.first_skipped)
        print(f"skipped {groups.skipped} bad records, the first: {first}")
    print(f"wrote {one_line(out)}")


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rft-ray", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"rft-ray {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run_commands(commands)
    _add_groups_commands(commands)
    _add_inspect_command(commands)
    report = _add_command(commands, "report", "rebuild the HTML report of a run", _report)
    report.add_argument("run_dir", metavar="RUN_DIR", help="directory of a run, finished or not")
    _add_command(commands, "doctor", "check versions, devices and Ray, a line each", _doctor)
    return parser


def _add_run_commands(commands: "argparse._SubParsersAction") -> None:
    helps = {
        "run": "the whole job: sample, verify, select, train, evaluate; continues where it stopped",
        "sample": "sample, verify and select rollouts of a run",
        "train": "train the target of a run on what was selected",
        "evaluate": "score the checkpoints of a run on held-out problems",
        "plan": "does a run fit on its machines, and how much will its budget sample",
    }
    for part, text in helps.items():
        example = CONFIG_EXAMPLE.format(command=part)
        function = _plan if part == "plan" else _run
        command = _add_command(commands, part, text, function, example)
        command.set_defaults(part=part)
        command.add_argument("config", metavar="CONFIG", help="YAML file, see configs/")
        command.add_argument(
            "overrides", metavar="key=value", nargs="*", help="config fields to change"
        )
        if part == "plan":
            command.add_argument(
                "--pass-rates",
                metavar="SOURCE",
                help="run directory or graded groups file that says how hard the problems are",
            )


def _add_groups_commands(commands: "argparse._SubParsersAction") -> None:
    verify = _add_command(
        commands, "verify", "grade the rollouts of a groups file", _verify, VERIFY_EXAMPLE
    )
    select = _add_command(
        commands, "select", "mark the diverse subset of a groups file", _select, SELECT_EXAMPLE
    )
    export = _add_command(
        commands, "export", "write the selected rollouts as a dataset", _export, EXPORT_EXAMPLE
    )
    for command in (verify, select, export):
        command.add_argument("groups", metavar="GROUPS", help="groups file to read")
        command.add_argument("-o", "--out", metavar="OUT", required=True, help="what to write")
        command.add_argument(
            "--skip-bad", action="store_true", help="skip and count malformed records"
        )
    add_verify_options(verify)
    select.add_argument(
        "--rule", choices=["paper", "none"], default="paper", help="default: %(default)s"
    )
    export.add_argument(
        "--format", choices=EXPORT_FORMATS, default=EXPORT_FORMATS[0], help="default: %(default)s"
    )


def _add_inspect_command(commands: "argparse._SubParsersAction") -> None:
    text = "show why each rollout was kept or dropped"
    inspect = _add_command(commands, "inspect", text, _inspect, INSPECT_EXAMPLE)
    inspect.add_argument("source", metavar="SOURCE", help="run directory or groups file")
    inspect.add_argument("--problem", metavar="ID", help="show this problem's rollouts and texts")
    inspect.add_argument("--round", metavar="N", type=int, help="round of a run (default: newest)")


def _add_command(
    commands: "argparse._SubParsersAction",
    name: str,
    text: str,
    function: Callable[[argparse.Namespace], int],
    epilog: str = "",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    return parser
