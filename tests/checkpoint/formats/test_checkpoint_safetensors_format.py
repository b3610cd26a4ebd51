import os
import struct

import ml_dtypes
import numpy as np
import pytest
from header_mutations import TERABYTE, with_length
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import r1parallel.checkpoint.formats.safetensors_format as safetensors_format
from r1parallel.checkpoint.formats.dtypes import DTYPES
from r1parallel.checkpoint.formats.safetensors_format import plan_file, read_header
from r1parallel.errors import UserError

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(SHAPES, st.sampled_from(list(DTYPES))),
        max_size=6,
    )
)
def test_what_is_planned_is_read_by_us_and_by_safetensors(tmp_path, tensors):
    plan = plan_file([(name, shape, dtype) for name, (shape, dtype) in tensors.items()], {"a": "b"})
    content = bytearray(np.random.default_rng(0).bytes(plan.size))
    for offset, blob in plan.blobs:
        content[offset : offset + len(blob)] = blob
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    entries, metadata = read_header(file)
    assert metadata == {"a": "b"}
    assert {name: (entry.shape, entry.dtype) for name, entry in entries.items()} == tensors
    assert {name: entry.extents for name, entry in entries.items()} == plan.extents
    theirs = load_file(file)
    for name, entry in entries.items():
        ((offset, nbytes),) = entry.extents
        assert theirs[name].tobytes() == content[offset : offset + nbytes]
        assert offset % DTYPES[entry.dtype].itemsize == 0


def one(name="w", dtype='"F32"', shape="[2]", data_offsets="[0,8]"):
    """A header of one tensor, in JSON that no encoder would write."""
    return f'{{"{name}":{{"dtype":{dtype},"shape":{shape},"data_offsets":{data_offsets}}}}}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "header is not readable"),
        ('{"w":' * 100_000, "header is not readable"),
        ("9" * 5000, "header is not readable"),
        (one(shape=f"[{'9' * 4000}]"), r"w: shape \[9+… or data_offsets"),
        (one(shape=f"[{2**63}]"), "are no counts"),
        (one(shape=f"[{'1,' * 32}1]"), "w: 33 dims are more than 32"),
        (one(shape=f"[{'1,' * 10**6}1]"), "its header has more than 1000000 times ,"),
        (one(shape=f"[0,{2**62}]", data_offsets="[0,0]"), "is larger than any memory"),
        (one(data_offsets="[8,0]"), "needs 8 bytes, data_offsets give -8"),
        (one(dtype="[]"), r"w: dtype \[\] is not supported"),
        (one(dtype=f'"{"Z" * 9999}"'), "w: dtype 'Z+… is not supported"),
        (one(name="\\ud800"), "surrogates not allowed"),
        (one(name="n" * 4097), "is longer than 4096 bytes"),
        ('{"a\\nb":1}', r"'a\\nb': expected dtype, shape"),
        ('{"__metadata__":null}', "__metadata__ must map"),
    ],
)
def test_claims_that_cannot_be(tmp_path, text, message):
    (tmp_path / "x.safetensors").write_bytes(with_length(text.encode(), bytes(8)))
    with pytest.raises(UserError, match=message) as caught:
        read_header(tmp_path / "x.safetensors")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 800


def test_a_header_is_not_longer_than_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_format, "_MAX_HEADER", 200)
    file = tmp_path / "x.safetensors"
    text = one().encode()
    file.write_bytes(with_length(text.ljust(200), bytes(8)))
    assert read_header(file)[0]["w"].extents == ((208, 8),)
    file.write_bytes(with_length(text.ljust(201), bytes(8)))
    with pytest.raises(UserError, match="its header claims 201 bytes, at most 200 are read"):
        read_header(file)


def test_terabytes(tmp_path):
    file = tmp_path / "x.safetensors"
    plan = plan_file([("w", (TERABYTE,), "BF16")], {})
    file.write_bytes(plan.blobs[0][1])
    os.truncate(file, plan.size)
    assert read_header(file)[0]["w"].nbytes == 2 * TERABYTE
    file.write_bytes(struct.pack("<Q", TERABYTE) + b"{}")
    with pytest.raises(UserError, match="its header claims 1099511627776 bytes, the file has 10"):
        read_header(file)
    os.truncate(file, 2 * TERABYTE)
    with pytest.raises(UserError, match="its header claims 1099511627776 bytes, at most 16777216 are read"):
        read_header(file)


def test_bf16_is_what_safetensors_calls_so():
    assert DTYPES["BF16"] == ml_dtypes.bfloat16
