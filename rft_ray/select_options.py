"""The options of `rft-ray select`, and what they mean as a config.

Light enough for --help: what reads files is imported by the functions that need it.
"""

import argparse
from typing import TYPE_CHECKING

from rft_ray.verify_options import positive_int

if TYPE_CHECKING:
    from rft_ray.config_sections import SelectionConfig
    from rft_ray.decontamination import TestText

RULES = ("paper", "none", "text", "equation_set", "equations", "random", "shortest", "longest",
         "reward", "max_min")  # fmt: skip
TEST_FORMATS = ("gsm8k", "gsm8k_screl", "math", "svamp", "jsonl", "parquet")
SELECT_EXAMPLE = """\
GROUPS must have verdicts (rft-ray verify); only accepted rollouts are selected. Rules:
  paper         one per ordered list of calculations, the text furthest from the others (Yuan et
                al. 2023, Algorithm 1)
  equation_set  the same, whatever the order of the calculations
  equations     the same, whatever the order of operands; equations in plain text count where there
                are no <<...>>
  text          one per text
  none          every accepted rollout
  random, shortest, longest, reward (highest first), max_min (furthest apart)
                as many as there are paths, or --cap

examples:
  rft-ray select verified.parquet -o selected.parquet
  rft-ray select verified.parquet -o selected.parquet --rule random --cap 4 --seed 1
  rft-ray select verified.parquet -o selected.parquet --decontaminate test.jsonl"""


def add_select_options(select: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    select.add_argument("--rule", choices=RULES, default=RULES[0], help="default: %(default)s")
    select.add_argument(
        "--without-calculations",
        choices=["one_path", "text"],
        default="one_path",
        help="what rollouts without calculations are: one path, or one for each text",
    )
    for option, text in (
        ("--cap", "most rollouts kept of a problem"),
        ("--cap-per-policy", "most rollouts kept of a problem by one policy"),
    ):
        select.add_argument(option, metavar="M", type=positive_int, help=text)
    select.add_argument(
        "--balance-policies", action="store_true", help="the cap takes from each policy in turn"
    )
    select.add_argument("--seed", type=int, default=0, help="of rule random (default: 0)")
    select.add_argument(
        "--decontaminate", metavar="TEST", help="leave out what shares words with these problems"
    )
    select.add_argument(
        "--test-format", choices=TEST_FORMATS, default="gsm8k", help="of TEST (default: gsm8k)"
    )
    select.add_argument(
        "--words", metavar="N", type=positive_int, default=13,
        help="words in a row that may not be shared (default: 13)",
    )  # fmt: skip


def selection_config(args: argparse.Namespace) -> "SelectionConfig":
    """What the options ask for."""
    from rft_ray.config_sections import SelectionConfig

    return SelectionConfig(
        rule=args.rule,
        without_calculations=args.without_calculations,
        cap=args.cap,
        cap_per_policy=args.cap_per_policy,
        balance_policies=args.balance_policies,
        seed=args.seed,
    )


def read_test_text(args: argparse.Namespace) -> "TestText | None":
    """What `--decontaminate` names, as the words that must not be in what is selected."""
    if args.decontaminate is None:
        return None
    from rft_ray.config import ProblemSetConfig
    from rft_ray.decontamination import TestText
    from rft_ray.problems import load_problems

    chosen = ProblemSetConfig(format=args.test_format, path=args.decontaminate)
    return TestText(load_problems(chosen), args.words)
