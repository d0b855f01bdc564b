"""Filters refuse what nobody wants to learn from, and leave ordinary solutions alone."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_ray.readability import FILTERS, MAX_READABLE_CHARS, first_objection

GSM8K = Path(__file__).parents[2] / "shared/data/gsm8k"
CHINESE = "\u5c0f\u660e\u6709\u4e09\u4e2a\u82f9\u679c\uff0c\u6240\u4ee5\u7b54\u6848\u662f"


@pytest.mark.parametrize(
    ("text", "objection"),
    [
        ("She has 3 + 4 = 7 eggs.\n#### 7", None),
        ("The caf\u00e9 sells \u03c0 \u2248 3.14 pies, \u0394x = 2.", None),
        (f"{CHINESE * 2} x = 18 (Janet)", None),
        (f"So she has {CHINESE} 18", "mixed_languages"),
        (f"{CHINESE} and therefore the whole answer is eighteen", "mixed_languages"),
        ("\u041e\u0442\u0432\u0435\u0442 is eighteen", "mixed_languages"),
        ("and so on and so on and so on " * 20, "repetition"),
        (CHINESE * 20, "repetition"),
        ("=" * 200, "repetition"),
        ("".join(f"step {n}: {n} + 1 = {n + 1}\n" for n in range(400)), "length"),
    ],
)
def test_the_objection_to_a_text(text: str, objection: str | None) -> None:
    assert first_objection(text, FILTERS) == objection


def test_only_the_named_filters_object() -> None:
    text = "and so on and so on " * 400
    assert first_objection(text, []) is None
    assert first_objection(text, ["mixed_languages"]) is None
    assert first_objection(text, ["length", "repetition"]) == "length"


@settings(deadline=None)
@given(st.text() | st.text(alphabet="\ud800\u0661a \u202e\u5c0f", max_size=200))
def test_every_filter_takes_any_text(text: str) -> None:
    assert all(is_refused(text) in (True, False) for is_refused in FILTERS.values())


@pytest.mark.parametrize("text", ["\u5c0fa" * 10**6, "a " * 10**6, "a" * 2 * 10**6])
def test_two_megabytes_take_linear_time(text: str) -> None:
    start = time.perf_counter()
    assert first_objection(text, FILTERS) is not None
    assert time.perf_counter() - start < 20
    assert len(text) > MAX_READABLE_CHARS


@pytest.mark.skipif(not GSM8K.exists(), reason="shared data is not here")
def test_published_solutions_are_readable() -> None:
    texts = [json.loads(line)["answer"] for line in (GSM8K / "train.jsonl").open()][:1000]
    refused = [text for text in texts if first_objection(text, FILTERS)]
    assert len(refused) <= 5
