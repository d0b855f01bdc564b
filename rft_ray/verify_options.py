"""The options of `rft-ray verify`, and the verifier config that they make."""

import argparse
import math
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rft_ray.verifier_config import VerifierConfig

STYLES = ("gsm8k", "math", "reward")
FILTERS = ("mixed_languages", "repetition", "length")
EXAMPLE = """\
GROUPS is a .jsonl or .parquet file, a folder of .parquet files, or a run directory, of which the
newest rollouts are taken; the ending of OUT chooses its format. A rollout needs only `policy` and
`completion`, a problem only `id`, `prompt`, `answer`.
Styles: gsm8k wants a plain number after ####, in \\boxed{} or after "the answer is"; math reads
LaTeX; reward accepts by the `reward` that the rollouts have.

examples:
  rft-ray verify samples.jsonl -o verified.parquet
  rft-ray verify samples/ -o verified.jsonl --style math --timeout 2 --workers 8 --skip-bad
  rft-ray verify samples.jsonl -o verified.jsonl --function my_rewards:score --accept-at 0.7
  rft-ray verify scored.jsonl -o best.jsonl --style reward --best-of 4
  rft-ray verify unlabelled.jsonl -o voted.jsonl --majority 0.5 --filter repetition"""


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides the verdicts, and the limits of the processes."""
    add = parser.add_argument
    add("--style", choices=STYLES, default="gsm8k", help="form of the answers (%(default)s)")
    add("--function", metavar="MODULE:NAME", help="your (completion, answer) -> verdict or reward")
    add("--compat", choices=["paper"], help="style gsm8k as the code of Yuan et al. (2023)")
    add("--no-calculations", action="store_true", help="do not check <<lhs=rhs>>")
    add("--equations", action="store_true", help='check plain equations too ("3 + 4 = 7")')
    add("--percent", action="store_true", help="leniency: 28%% may stand for 28")
    add("--units", action="store_true", help="leniency: a unit that one side lacks is ignored")
    add("--tolerance", metavar="X", type=float, default=0.0, help="leniency: relative difference")
    add("--majority", metavar="SHARE", type=float, help="vote where a problem's answer is blank")
    add("--accept-at", metavar="X", type=float, help="smallest reward that is correct (1)")
    add("--best-of", metavar="N", type=positive_int, help="accept only the N highest rewards")
    add("--filter", choices=FILTERS, action="append", default=[], help="refuse; may be repeated")
    add(
        "--timeout",
        metavar="SECONDS",
        type=positive_float,
        default=5.0,
        help="wall-clock limit for one completion (default: %(default)s)",
    )
    add(
        "--workers",
        metavar="N",
        type=positive_int,
        default=os.cpu_count() or 1,
        help="worker processes (default: the number of cores, %(default)s)",
    )
    add("--max-chars", metavar="N", type=positive_int, help="longest completion that is read")


def verify_config(args: argparse.Namespace) -> "VerifierConfig":
    """The config of a parsed command line; InputError for options that do not go together."""
    from rft_ray.verification import make_config

    options: dict[str, Any] = {
        "style": args.style,
        "function": args.function,
        "compat": args.compat,
        "check_calculations": not args.no_calculations,
        "check_equations": args.equations,
        "leniencies": {
            "percent": args.percent,
            "units": args.units,
            "tolerance": args.tolerance,
        },
        "majority": args.majority,
        "accept_at": args.accept_at,
        "best_of": args.best_of,
        "filters": args.filter,
        "timeout_s": args.timeout,
        "workers": args.workers,
    }
    if args.max_chars:
        options["max_chars"] = args.max_chars
    return make_config(options)


def positive_float(text: str) -> float:
    """A finite number above 0, for argparse."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


def positive_int(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


# argparse names the expectation after the function: "invalid positive number value: '-1'"
positive_float.__name__, positive_int.__name__ = "positive number", "positive whole number"
