"""Plans of buckets: every tensor once, in order, and no bucket over its cap without need."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rft_ray.buckets import TensorSpec, bytes_per_element, plan_buckets

shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
tensors = st.builds(
    TensorSpec,
    name=st.text(max_size=4),
    shape=shapes,
    dtype=st.sampled_from(["float32", "bfloat16", "int64", "bool", "float8_e4m3fn"]),
)


@given(st.lists(tensors, max_size=40), st.integers(1, 2000))
def test_every_tensor_travels_once_in_order_under_the_cap(own: list[TensorSpec], cap: int) -> None:
    buckets = plan_buckets(own, cap)
    assert [tensor for bucket in buckets for tensor in bucket] == own
    for bucket in buckets:
        assert bucket
        assert len(bucket) == 1 or sum(tensor.num_bytes for tensor in bucket) <= cap


@given(st.lists(tensors, max_size=40), st.integers(1, 2000))
def test_no_bucket_could_have_taken_the_next_tensor(own: list[TensorSpec], cap: int) -> None:
    buckets = plan_buckets(own, cap)
    for bucket, following in pairwise(buckets):
        assert sum(t.num_bytes for t in [*bucket, following[0]]) > cap


@given(shapes, st.sampled_from(["float32", "bfloat16", "float16", "int64", "bool", "uint8"]))
def test_bytes_are_those_torch_counts(shape: tuple[int, ...], dtype: str) -> None:
    data = torch.empty(shape, dtype=getattr(torch, dtype))
    assert TensorSpec("x", shape, dtype).num_bytes == data.nbytes


def test_unknown_types_and_caps_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown tensor type 'float'"):
        bytes_per_element("float")
    with pytest.raises(ValueError, match="cap_bytes"):
        plan_buckets([], 0)
