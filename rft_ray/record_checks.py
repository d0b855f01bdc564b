"""What a record from a user must look like: plain data in, frozen records or one-line errors out.

Every field of the contract is in one of two tables below: how it is checked, how the expectation
reads in an error, and what a missing one becomes (null counts as missing). No coercion: a number
where a string belongs is an error, because "007" and "1.50" do not survive as numbers.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, get_args

from rft_ray.errors import InputError
from rft_ray.types import VERDICTS, FinishReason, Group, Problem, Rollout

REQUIRED = object()
LARGEST = sys.float_info.max


def parse_json(line: bytes) -> Any:
    """The value of a line or file of JSON in UTF-8; InputError for all else, NaN included."""
    try:
        # Without its end: where a line is cut, json would name the column after that.
        text = line.decode("utf-8").rstrip(" \t\r\n")
        return json.loads(text, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        line_number = f"line {error.lineno}, " if "\n" in error.doc else ""
        place = f"{line_number}column {error.colno}"
        raise InputError(f"not valid JSON: {error.msg} ({place})") from None
    except RecursionError:
        raise InputError("not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"not valid JSON: {error}") from None


def parse_group(raw: Any) -> Group:
    """A checked group from untrusted plain data, missing optional fields filled.

    Raises InputError naming the field: "rollouts[3].policy: expected ..., found ...".
    """
    if not isinstance(raw, dict):
        raise InputError(f"expected an object, found {describe(raw)}")
    problem = Problem(**_read_fields(raw.get("problem"), PROBLEM_FIELDS, "problem"))
    items = raw.get("rollouts")
    if not isinstance(items, list):
        raise InputError(f"rollouts: expected a list, found {describe(items)}")
    rollouts, positions = [], Counter[str]()
    for index, item in enumerate(items):
        values = _read_fields(item, ROLLOUT_FIELDS, f"rollouts[{index}]")
        policy, ids, logprobs = values["policy"], values["token_ids"], values["logprobs"]
        if ids is not None and logprobs is not None and len(ids) != len(logprobs):
            counts = f"{len(logprobs)} for {len(ids)} token_ids"
            raise InputError(f"rollouts[{index}].logprobs: {counts}")
        if values["sample"] is None:
            values["sample"] = positions[policy]
        positions[policy] += 1
        rollouts.append(Rollout(**values))
    return Group(problem, rollouts)


def describe(value: Any) -> str:
    """A short name for a wrong value: "the number 7", "a list", "nothing"."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the text {value[:40]!r}" + ("..." if len(value) > 40 else "")
    if isinstance(value, bool):
        return f"the boolean {value}"
    if isinstance(value, int | float):
        number = repr(value) if isinstance(value, float) or abs(value) < 10**20 else "(a huge one)"
        return f"the number {number}"
    kinds = {list: "a list", dict: "an object", bytes: "bytes"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _are_finite(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_finite, value))


def _one_of(names: tuple[str, ...]) -> tuple[Callable[[Any], bool], str, None]:
    return (lambda value: isinstance(value, str) and value in names), " | ".join(names), None


# name -> (check, what is expected, what a missing one becomes)
Fields = dict[str, tuple[Callable[[Any], bool], str, Any]]
PROBLEM_FIELDS: Fields = {
    "id": (_is_name, "a string that is not empty", REQUIRED),
    "prompt": (_is_text, "a string", REQUIRED),
    "answer": (_is_text, "a string", REQUIRED),
    "source": (_is_text, "a string", ""),
    "solution": (_is_text, "a string", None),
}
ROLLOUT_FIELDS: Fields = {
    "policy": (_is_name, "a string that is not empty", REQUIRED),
    "completion": (_is_text, "a string", REQUIRED),
    "policy_version": (_is_count, "a whole number", 0),
    "round": (_is_count, "a whole number", 0),
    "sample": (_is_count, "a whole number", None),
    "token_ids": (_are_counts, "a list of whole numbers", None),
    "logprobs": (_are_finite, "a list of numbers", None),
    "finish_reason": _one_of(get_args(FinishReason)),
    "verdict": _one_of(VERDICTS),
    "reward": (_is_finite, "a number", None),
    "selected": (_is_bool, "true or false", None),
}


def _read_fields(raw: Any, expected_fields: Fields, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected an object, found {describe(raw)}")
    values = {}
    for name, (is_valid, expected, default) in expected_fields.items():
        value = raw.get(name)
        if value is None:
            if default is REQUIRED:
                raise InputError(f"{where}.{name}: missing (expected {expected})")
            value = default
        elif not is_valid(value):
            raise InputError(
                f"{where}.{name}: expected {expected}, found {_describe_bad(value, is_valid)}"
            )
        values[name] = value
    return values


def _describe_bad(value: Any, is_valid: Callable[[Any], bool]) -> str:
    """The first bad item where a list was expected and given, or else the value itself."""
    is_valid_item = {_are_counts: _is_count, _are_finite: _is_finite}.get(is_valid)
    if is_valid_item is None or not isinstance(value, list):
        return describe(value)
    index = next(index for index, item in enumerate(value) if not is_valid_item(item))
    return f"{describe(value[index])} at [{index}]"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
