import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1parallel.checkpoint.formats.dtypes import DTYPES, cast, dtype_name
from r1parallel.errors import UserError


def test_every_type_has_its_name():
    assert [dtype_name(dtype) for dtype in DTYPES.values()] == list(DTYPES)
    with pytest.raises(ValueError, match="complex64"):
        dtype_name(np.dtype(np.complex64))


@given(st.lists(st.floats(width=16, allow_nan=False), min_size=1))
def test_wider_and_back_changes_nothing(values):
    array = np.array(values, np.float16)
    assert cast(cast(array, "F32", "x"), "F16", "x").tobytes() == array.tobytes()


@given(st.floats(width=32, min_value=-(2.0**126), max_value=2.0**126))
def test_bf16_is_rounded_to_the_nearest(value):
    array = np.array([value], np.float32)
    error = abs(cast(array, "BF16", "x").astype(np.float64)[0] - np.float64(array[0]))
    assert error <= max(abs(np.float64(array[0])) * 2.0**-8, 2.0**-134)


def test_same_type_is_not_copied():
    array = np.ones(3, np.float16)
    assert cast(array, "F16", "x") is array


def test_overflow_names_the_tensor():
    with pytest.raises(UserError, match=r"layer.weight: 70000 does not fit into F16"):
        cast(np.array([1.0, -70000.0], np.float32), "F16", "layer.weight")
    with pytest.raises(UserError, match="does not fit into F16"):
        cast(np.array([1e6], ml_dtypes.bfloat16), "F16", "w")
    with pytest.raises(UserError, match="does not fit into BF16"):
        cast(np.array([np.finfo(np.float32).max]), "BF16", "w")


def test_infinities_that_were_there_stay():
    assert np.isinf(cast(np.array([np.inf, 1.0], np.float32), "F16", "x")).tolist() == [True, False]
