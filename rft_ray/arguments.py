"""What the command line takes: every command with its arguments, help and examples.

Nothing but argparse is imported, so that --help is instant; what commands do is `cli.py`.
"""

import argparse

from rft_ray import __version__
from rft_ray.select_options import SELECT_EXAMPLE, add_select_options
from rft_ray.verify_options import EXAMPLE as VERIFY_EXAMPLE
from rft_ray.verify_options import add_verify_options, positive_float

EXPORT_FORMATS = ("query-response", "messages", "preference")
DESCRIPTION = """\
Rejection-sampling fine-tuning on a Ray cluster: sample solutions, verify them, select a diverse
subset, train on it, evaluate."""
CONFIG_EXAMPLE = """\
examples:
  rft-ray {command} configs/quickstart.yaml
  rft-ray {command} configs/quickstart.yaml run_dir=runs/a sampling.k=8 policies.0.name=small"""
EXPORT_EXAMPLE = """\
GROUPS is a selected groups file (rft-ray select) or a run directory, of which the newest selected
rollouts are taken. The gold solution of a problem comes first, then its selected rollouts. OUT
ends in .jsonl or .parquet, or has no ending: then it becomes a folder in Hugging Face's layout.

examples:
  rft-ray export runs/quickstart -o rft.jsonl --format query-response
  rft-ray export runs/quickstart/round-000/selected -o rft-chat --format messages
  rft-ray export selected.parquet -o pairs.parquet --format preference"""
SUBMIT_EXAMPLE = """\
Uploads the working directory without .git, .venv, runs, models and files over 20 MiB; the nodes
install requirements/gpu.txt or cpu.txt, unless they have an image. run_dir has to be an absolute
path on storage that all nodes share; submitting it again continues the run, or follows its job.

examples:
  rft-ray submit configs/quickstart.yaml --address http://127.0.0.1:8265 run_dir=/mnt/cluster/a
  rft-ray submit configs/llama2_7b_gsm8k.yaml --address http://127.0.0.1:8265 --detach \\
      --wait 1800 run_dir=/mnt/cluster/7b"""
INSPECT_EXAMPLE = """\
SOURCE is a groups file, or a run directory, of which the newest round is taken.

examples:
  rft-ray inspect runs/quickstart
  rft-ray inspect runs/quickstart --problem train-12 --round 0 | less
  rft-ray inspect verified.parquet --paths"""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """What was asked for; argparse ends the process where it is not a command of ours.

    `command` is the name of one, and `overrides`, where it takes a config, are those given as
    `key=value` and those that a flag is short for.
    """
    parser = _build_parser()
    args, rest = parser.parse_known_args(arguments)
    late = [text for text in rest if "=" in text and not text.startswith("-")]
    if len(late) < len(rest) or (late and "overrides" not in args):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if "overrides" in args:
        # argparse does not see that `key=value` after an option belongs to the overrides too.
        args.overrides = [*args.overrides, *late]
        if "wait" in args and args.wait is not None:
            args.overrides.append(f"wait_for_cluster_s={args.wait:g}")
    return args


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rft-ray", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"rft-ray {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run_commands(commands)
    _add_groups_commands(commands)
    _add_inspect_command(commands)
    report = _add_command(commands, "report", "rebuild the HTML report of a run")
    report.add_argument("run_dir", metavar="RUN_DIR", help="directory of a run, finished or not")
    _add_command(commands, "doctor", "check versions, devices and Ray, a line each")
    return parser


def _add_run_commands(commands: "argparse._SubParsersAction") -> None:
    helps = {
        "run": "the whole job: sample, verify, select, train, evaluate; continues where it stopped",
        "sample": "sample, verify and select rollouts of a run",
        "train": "train the target of a run on what was selected",
        "evaluate": "score the checkpoints of a run on held-out problems",
        "plan": "does a run fit on its machines, how long will it take, at what cost",
    }
    for part, text in helps.items():
        example = CONFIG_EXAMPLE.format(command=part)
        command = _add_command(commands, part, text, example)
        _add_config_arguments(command)
        if part == "plan":
            command.add_argument(
                "--pass-rates",
                metavar="SOURCE",
                help="run directory or graded groups file that says how hard the problems are",
            )
            command.add_argument(
                "--gpus",
                metavar="N,N,...",
                type=_counts,
                help="instead: hours and cost on these numbers of GPUs, each used in its best way",
            )
        else:
            _add_wait(command)
    _add_submit_command(commands)


def _counts(text: str) -> list[int]:
    """ "1,8,64" -> [1, 8, 64] """
    counts = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(counts) <= text.count(",") or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,8,64")
    return counts


def _add_config_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG", help="YAML file, see configs/")
    command.add_argument(
        "overrides", metavar="key=value", nargs="*", help="config fields to change"
    )


def _add_wait(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--wait",
        metavar="SECONDS",
        type=positive_float,
        help="wait for the cluster to grow, where it is too small; short for wait_for_cluster_s",
    )


def _add_submit_command(commands: "argparse._SubParsersAction") -> None:
    text = "run on a cluster: the same as a Ray job, followed until it ends"
    submit = _add_command(commands, "submit", text, SUBMIT_EXAMPLE)
    _add_config_arguments(submit)
    submit.add_argument("--address", metavar="URL", required=True, help="of the dashboard")
    submit.add_argument("--detach", action="store_true", help="do not follow the job")
    lock = submit.add_mutually_exclusive_group()
    lock.add_argument("--image", help="container image to run in; nothing is uploaded")
    lock.add_argument("--no-install", action="store_true", help="the nodes have all packages")
    _add_wait(submit)


def _add_groups_commands(commands: "argparse._SubParsersAction") -> None:
    verify = _add_command(
        commands, "verify", "grade the rollouts of a groups file", VERIFY_EXAMPLE
    )
    select = _add_command(
        commands, "select", "mark the diverse subset of a groups file", SELECT_EXAMPLE
    )
    export = _add_command(
        commands, "export", "write the selected rollouts as a dataset", EXPORT_EXAMPLE
    )
    for command in (verify, select, export):
        command.add_argument("groups", metavar="GROUPS", help="groups file or run directory")
        command.add_argument("-o", "--out", metavar="OUT", required=True, help="what to write")
        command.add_argument(
            "--skip-bad", action="store_true", help="skip and count malformed records"
        )
    add_verify_options(verify)
    add_select_options(select)
    export.add_argument(
        "--format", choices=EXPORT_FORMATS, default=EXPORT_FORMATS[0], help="default: %(default)s"
    )


def _add_inspect_command(commands: "argparse._SubParsersAction") -> None:
    text = "show why each rollout was kept or dropped"
    inspect = _add_command(commands, "inspect", text, INSPECT_EXAMPLE)
    inspect.add_argument("source", metavar="SOURCE", help="run directory or groups file")
    inspect.add_argument("--problem", metavar="ID", help="show this problem's rollouts and texts")
    inspect.add_argument("--paths", action="store_true", help="distinct paths, also against k")
    inspect.add_argument("--round", metavar="N", type=int, help="round of a run (default: newest)")


def _add_command(
    commands: "argparse._SubParsersAction",
    name: str,
    text: str,
    epilog: str = "",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=name)
    return parser
