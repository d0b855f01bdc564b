"""The command line: `rft-ray COMMAND ...`, one function per command.

Nothing heavy is imported before the command that needs it, so that --help is instant. Wrong input
ends in one line on standard error and exit code 2, a run that stops itself in one after the place
of the logs; results go to standard output, progress to standard error. Where nobody reads on
(`| head`), a command ends quietly.
"""

import argparse
import os
import select
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from rft_ray.arguments import parse_arguments
from rft_ray.errors import InputError, one_line
from rft_ray.full_disk import is_disk_full
from rft_ray.select_options import read_test_text, selection_config
from rft_ray.stop_reason import stop_reason
from rft_ray.verify_options import verify_config

if TYPE_CHECKING:
    from rft_ray.config import RunConfig
    from rft_ray.group_source import JoinedGroups
    from rft_ray.records import GroupReader
    from rft_ray.types import Group

EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
EXIT_UNREAD = 141
"""What a shell says of a command that SIGPIPE ended."""
FULL_DISK = "the disk is full; make room, and the same command goes on from what is there"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code.

    0 done, 2 wrong input, 130 interrupted, 141 where nobody reads what it prints, 1 all else.
    """
    try:
        return _run_command(arguments)
    except InputError as error:
        print(f"rft-ray: error: {one_line(str(error))}", file=sys.stderr)
        return EXIT_INPUT
    except KeyboardInterrupt:
        print("rft-ray: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)  # takes what is still buffered
        return EXIT_UNREAD
    except Exception as error:
        reason = FULL_DISK if is_disk_full(error) else stop_reason(error)
        if reason is None:
            raise
        for note in getattr(error, "__notes__", []):
            print(one_line(note), file=sys.stderr)
        print(f"rft-ray: error: {one_line(reason)}", file=sys.stderr)
        return EXIT_FAILED


def _run_command(arguments: list[str] | None) -> int:
    try:
        args = parse_arguments(arguments)
        return COMMANDS[args.command](args)
    finally:
        # What cannot be written fails here: at the interpreter's exit nobody could catch it.
        print(end="", flush=True)


def _nobody_reads() -> bool:
    """Whether the reader of standard output or standard error has gone."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _run(args: argparse.Namespace) -> int:
    from rft_ray.config_file import load_config

    config = load_config(args.config, args.overrides)
    if config.mode == "online":
        return _run_online(args.command, config)
    from rft_ray import offline

    parts = {
        "run": offline.run_offline,
        "sample": offline.run_sample,
        "train": offline.run_train,
        "evaluate": offline.run_evaluate,
    }
    parts[args.command](config)
    return EXIT_DONE


def _submit(args: argparse.Namespace) -> int:
    from rft_ray.submit import submit_run

    return submit_run(
        args.config,
        args.overrides,
        args.address,
        image=args.image,
        install=not args.no_install,
        detach=args.detach,
    )


def _plan(args: argparse.Namespace) -> int:
    from rft_ray.budget_plan import print_budget
    from rft_ray.config_file import load_config
    from rft_ray.group_source import find_source
    from rft_ray.plan import print_capacity, print_plan

    config = load_config(args.config, args.overrides)
    if args.gpus:
        return print_capacity(config, args.gpus)
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
    from rft_ray.group_source import find_source, open_source
    from rft_ray.records import check_output
    from rft_ray.verification import verify_file

    config, source = verify_config(args), find_source(args.groups)
    check_output(args.out, source)
    groups = open_source(source, args.skip_bad, with_tokens=True)
    counts = verify_file(_with_progress("verify", groups), args.out, config)
    print(f"verified {counts.verdicts.total()} rollouts of {counts.problems} problems")
    _print_counts(counts.verdicts)
    for name, count in sorted(counts.notes.items()):
        what = "correct only by a leniency" if name == "lenient" else f"correct, refused: {name}"
        print(f"{count:10d}  {what}")
    _print_end(groups, args.out)
    return EXIT_DONE


def _select(args: argparse.Namespace) -> int:
    from rft_ray.group_source import find_source, open_source
    from rft_ray.records import check_output, write_groups
    from rft_ray.selection_counts import SelectionCounts, select_each

    source = find_source(args.groups, sampled=False)
    check_output(args.out, source)
    config, test = selection_config(args), read_test_text(args)
    groups = open_source(source, args.skip_bad, with_tokens=True)
    counts = SelectionCounts()
    selected = select_each(_with_progress("select", groups), config, counts, test)
    problems = write_groups(args.out, selected)
    pooled = counts.pooled
    print(f"selected {pooled['selected']} of {pooled['rollouts']} rollouts of {problems} problems")
    print("\n".join(counts.table()))
    if test is not None:
        left_out = counts.contaminated
        print(
            f"overlapping with test problems: {left_out['problems']} problems, "
            f"{left_out['rollouts']} accepted rollouts left out"
        )
    _print_end(groups, args.out)
    return EXIT_DONE


def _export(args: argparse.Namespace) -> int:
    from rft_ray.dataset import check_dataset_output, export_dataset
    from rft_ray.group_source import find_source, open_source

    source = find_source(args.groups, sampled=False)
    check_dataset_output(args.out, source)
    groups = open_source(source, args.skip_bad)
    counts = export_dataset(_with_progress("export", groups), args.out, args.format, source)
    print(f"exported {counts.rows} rows of {counts.problems} problems")
    print(f"{counts.gold:10d}  gold solutions")
    print(f"{counts.selected.total():10d}  selected rollouts")
    print(f"{counts.left_out:10d}  problems left out")
    _print_end(groups, args.out)
    return EXIT_DONE


def _inspect(args: argparse.Namespace) -> int:
    from rft_ray.group_source import find_source, open_source
    from rft_ray.inspection import describe_problem, find_problem, problem_table, show

    source = find_source(args.source, args.round)
    groups = open_source(source)
    if args.paths:
        from rft_ray.path_table import path_tables

        show(path_tables(_with_progress("inspect", groups)))
    elif args.problem is None:
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


def _with_progress(label: str, groups: "GroupReader | JoinedGroups") -> Iterator["Group"]:
    from rft_ray.console import progress
    from rft_ray.records import GroupReader, count_groups

    total = count_groups(groups.path) if isinstance(groups, GroupReader) else len(groups)
    with progress(label, total, "problem") as advance:
        for group in groups:
            yield group
            advance(1)


def _print_counts(counts: Counter[str]) -> None:
    from rft_ray.types import VERDICTS

    for verdict in VERDICTS:
        print(f"{counts[verdict]:10d}  {verdict}")


def _print_end(groups: "GroupReader | JoinedGroups", out: str) -> None:
    from rft_ray.records import GroupReader

    if isinstance(groups, GroupReader) and groups.skipped:
        first = one_line(groups.first_skipped)
        print(f"skipped {groups.skipped} bad records, the first: {first}")
    print(f"wrote {one_line(out)}")


COMMANDS = {
    "run": _run,
    "sample": _run,
    "train": _run,
    "evaluate": _run,
    "plan": _plan,
    "submit": _submit,
    "verify": _verify,
    "select": _select,
    "export": _export,
    "inspect": _inspect,
    "report": _report,
    "doctor": _doctor,
}
