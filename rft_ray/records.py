"""Groups files: JSON Lines or Parquet in, frozen records out, and back; one group at a time.

A row is a plain dict of the contract's fields with `problem_id` on top, which Ray Data's checkpoint
reads. Parquet always has the one nested schema below, whatever is null in the data. What comes from
a user is checked field by field and named with file and line; rows that this module made are trusted
(`row_to_group`). Text that UTF-8 cannot hold (lone surrogates) survives JSON Lines as it is and
becomes U+FFFD in Arrow. Fields outside the contract are not carried over.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from rft_ray.errors import InputError
from rft_ray.record_checks import parse_group, parse_json
from rft_ray.types import Group, Problem, Rollout

SUFFIXES = (".jsonl", ".parquet")
READ_ROWS = 16
ROW_GROUP_ROWS = 256
ROW_GROUP_CHARS = 8_000_000

GROUP_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        (
            "problem",
            pa.struct(
                [
                    ("id", pa.string()),
                    ("prompt", pa.string()),
                    ("answer", pa.string()),
                    ("source", pa.string()),
                    ("solution", pa.string()),
                ]
            ),
        ),
        (
            "rollouts",
            pa.list_(
                pa.struct(
                    [
                        ("policy", pa.string()),
                        ("policy_version", pa.int64()),
                        ("round", pa.int64()),
                        ("sample", pa.int64()),
                        ("completion", pa.string()),
                        ("token_ids", pa.list_(pa.int64())),
                        ("logprobs", pa.list_(pa.float64())),
                        ("finish_reason", pa.string()),
                        ("verdict", pa.string()),
                        ("reward", pa.float64()),
                        ("selected", pa.bool_()),
                    ]
                )
            ),
        ),
    ]
)
