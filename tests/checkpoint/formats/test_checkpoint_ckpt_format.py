import os
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import r1parallel.checkpoint.formats.ckpt_format as ckpt
from r1parallel.checkpoint.formats.ckpt_format import plan_file, read_header
from r1parallel.checkpoint.formats.dtypes import CKPT_DTYPES, DTYPES, dtype_name
from r1parallel.checkpoint.formats.tensor_entry import as_bytes
from r1parallel.errors import UserError
from r1parallel.wire import WireError, WireFile, encode_bytes, encode_length, encode_varint

pytestmark = pytest.mark.usefixtures("mindspore_cpu")  # set up as other tests of this process need it
MINDSPORE_DTYPES = [name for name in DTYPES if name != "BF16"]  # hypothesis makes no bfloat16


def write(file: Path, arrays: dict[str, np.ndarray]) -> Path:
    """What the plan says, by pwrite."""
    plan = plan_file([(name, array.shape, dtype_name(array.dtype)) for name, array in arrays.items()], {"a": "b"})
    with file.open("wb") as stream:
        for offset, blob in plan.blobs:
            os.pwrite(stream.fileno(), blob, offset)
        for name, array in arrays.items():
            content = as_bytes(np.ascontiguousarray(array)) if array.size else b""
            done = 0
            for offset, nbytes in plan.extents[name]:
                done += os.pwrite(stream.fileno(), content[done : done + nbytes], offset)
            assert done == array.nbytes
    assert file.stat().st_size == plan.size
    return file


def read(file: Path) -> dict[str, np.ndarray]:
    tensors, metadata = read_header(file)
    assert metadata == {}
    arrays = {}
    with file.open("rb") as stream:
        for name, entry in tensors.items():
            assert (entry.name, entry.file) == (name, file)
            content = bytearray(entry.nbytes)
            entry.read_bytes(stream.fileno(), 0, memoryview(content))
            arrays[name] = np.frombuffer(content, DTYPES[entry.dtype]).reshape(entry.shape)
    return arrays


def check_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert list(one) == list(other)
    for name, array in one.items():
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape)
        assert array.tobytes() == other[name].tobytes()


def one_of_each() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 2, (3, 5)).astype(dtype) for name, dtype in DTYPES.items()}
    arrays |= {name: rng.standard_normal((3, 5)).astype(DTYPES[name]) for name in ("F64", "F32", "F16", "BF16")}
    scalars = {"scalar": np.array(2.5, np.float32), "step": np.array(7, np.int64), "one": np.ones(1, np.float16)}
    return arrays | scalars


def mindspore():
    return pytest.importorskip("mindspore")


def save_by_mindspore(file: Path, arrays: dict[str, np.ndarray], **options) -> Path:
    ms = mindspore()
    tensors = {
        name: ms.Tensor(array.astype(np.float32)).astype(ms.bfloat16)
        if array.dtype == ml_dtypes.bfloat16
        else ms.Tensor(array)
        for name, array in arrays.items()
    }
    ms.save_checkpoint([{"name": name, "data": data} for name, data in tensors.items()], str(file), **options)
    return file


def load_by_mindspore(file: Path) -> dict[str, np.ndarray]:
    parameters = mindspore().load_checkpoint(str(file))
    # MindSpore's bfloat16 is a numpy type of its own.
    return {
        name: array.view(ml_dtypes.bfloat16) if array.dtype.name == "bfloat16" else array
        for name, array in ((name, parameter.asnumpy()) for name, parameter in parameters.items())
    }


@pytest.mark.parametrize("crc", [False, True])
def test_what_mindspore_writes_is_read(tmp_path, crc):
    arrays = one_of_each()
    file = save_by_mindspore(tmp_path / "x.ckpt", arrays, crc_check=crc)
    assert (file.read_bytes()[-17:-10] == b"crc_num") == crc
    check_equal(read(file), arrays)


def test_what_mindspore_writes_in_chunks_is_read(tmp_path, monkeypatch):
    mindspore()
    import mindspore.train.serialization as serialization

    monkeypatch.setattr(serialization, "SLICE_SIZE", 1)  # KB
    arrays = {
        "small": np.arange(9, dtype=np.int32),
        "big": np.random.default_rng(0).standard_normal((70, 30)).astype(np.float32),
        "exact": np.zeros(2048, np.uint8),
    }
    file = save_by_mindspore(tmp_path / "x.ckpt", arrays)
    tensors, _ = read_header(file)
    assert [len(tensors[name].extents) for name in arrays] == [1, 9, 2]
    check_equal(read(file), arrays)


@pytest.mark.parametrize("chunk", [ckpt.CHUNK, 8])
def test_mindspore_loads_what_we_write(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(ckpt, "CHUNK", chunk)
    arrays = one_of_each()
    check_equal(load_by_mindspore(write(tmp_path / "x.ckpt", arrays)), arrays)


def test_we_write_what_mindspore_does(tmp_path):
    arrays = one_of_each()
    theirs = save_by_mindspore(tmp_path / "theirs.ckpt", arrays).read_bytes()
    assert write(tmp_path / "ours.ckpt", arrays).read_bytes() == theirs


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.sampled_from(MINDSPORE_DTYPES).flatmap(
            lambda name: hnp.arrays(DTYPES[name], hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 64),
)
def test_what_is_written_is_read(tmp_path, arrays, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ckpt, "CHUNK", chunk)
        check_equal(read(write(tmp_path / "x.ckpt", arrays)), arrays)


def test_every_type_has_a_name_in_a_ckpt():
    assert sorted(CKPT_DTYPES.values()) == sorted(DTYPES)


DIMS_2 = encode_varint(1 << 3) + encode_varint(2)


def value(
    name: str | None = "w",
    dims: bytes = DIMS_2,
    dtype: str | None = "Float32",
    content: bytes | None = bytes(8),
    more: bytes = b"",
    more_tensor: bytes = b"",
) -> bytes:
    tensor = dims + (b"" if dtype is None else encode_bytes(2, dtype.encode()))
    tensor += b"" if content is None else encode_bytes(3, content)
    tag = b"" if name is None else encode_bytes(1, name.encode())
    return encode_bytes(1, tag + encode_bytes(2, tensor + more_tensor) + more)


@pytest.mark.parametrize(
    ("dims", "content", "shape"),
    [
        (b"", bytes(4), ()),
        (encode_bytes(1, b"\0"), bytes(4), ()),  # MindSpore means a scalar
        (encode_bytes(1, b"\0"), b"", (0,)),
        (encode_bytes(1, b"\1\2"), bytes(8), (1, 2)),  # packed
        (b"\x08\1\x08\2", bytes(8), (1, 2)),
    ],
)
def test_dims_in_every_form(tmp_path, dims, content, shape):
    (tmp_path / "x.ckpt").write_bytes(value(dims=dims, content=content))
    tensors, _ = read_header(tmp_path / "x.ckpt")
    assert tensors["w"].shape == shape


def test_more_than_a_window_of_dims_and_names(tmp_path):
    """Fields that lie across the borders of what is read at once."""
    content = b"".join(value(f"{'n' * 400}{index}") for index in range(50))
    (tmp_path / "x.ckpt").write_bytes(content)
    assert len(read(tmp_path / "x.ckpt")) == 50


HUGE = encode_varint(2**64 - 1)
NEGATIVE = encode_varint(1 << 3) + HUGE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged .ckpt file: it is empty"),
        (b"\0" * 100, "byte 0 begins no field"),
        (b"\x0b", "byte 0 begins no field"),  # a group
        (b"\x0a" + HUGE, "claims 18446744073709551615 bytes, 0 are there"),
        (b"\x0a" + b"\xff" * 11, "the number at byte 1 does not end"),
        (b"\x0a\xff", "the number at byte 1 does not end"),
        (b"\x08\1", "byte 0 begins no tensor; the file may be of another format or encrypted"),
        (b"\x15\0\0\0\0", "byte 0 begins no tensor"),
        (b"\x11\0\0\0\0", "the field at byte 0 claims 8 bytes, 4 are there"),
        (value() + value("v") + value(), "w occurs twice"),
        (value() + value(), "w: Float32 .2. needs 8 bytes, its content has 16"),
        (
            value(content=bytes(4)) + value(dims=b"\x08\4", content=bytes(4)),
            "w goes on with another type or other dims",
        ),
        (value(content=bytes(4)) + value(dtype="Int32", content=bytes(4)), "w goes on with another type or other dims"),
        (value(content=bytes(7)), "needs 8 bytes, its content has 7"),
        (value(dims=encode_bytes(1, b"\0"), content=bytes(8)), "Float32 .0. needs 4 bytes, its content has 8"),
        (value(dims=b"\x08" + encode_varint(2**40)), "needs 4398046511104 bytes"),
        (value(dims=(b"\x08" + encode_varint(2**40)) * 2), "larger than any memory"),
        (value(dims=b"\x08\0" + b"\x08" + encode_varint(2**62), content=b""), "larger than any memory"),
        (value(dims=NEGATIVE), "a dim that is no size"),
        (value(dims=b"\x08\1" * 33), "33 dims are more than 32"),
        (value(dims=encode_bytes(1, b"\1" * 400)), "the dims at byte 9 are not readable"),
        (value(dims=encode_bytes(1, b"")), "the dims at byte 7 are not readable"),
        (value(dims=encode_bytes(1, b"\xff")), "the number at byte 9 does not end"),
        (value(name=None), "the tensor at byte 0 has no name"),
        (value(dtype=None), "w lacks its type or its content"),
        (value(content=None), "w lacks its type or its content"),
        (value(more_tensor=encode_bytes(3, b"")), "w has more than one type and content"),
        (value(content=None, more_tensor=encode_bytes(2, b"")), "has field 2 where none is expected"),
        (value(more=encode_bytes(1, b"v")), "has field 1 where none is expected"),
        (value(more=b"\x20\1"), "has field 4 where none is expected"),
        (encode_bytes(1, encode_bytes(1, b"w")), "w has no content"),
        (encode_bytes(1, encode_bytes(1, b"\xff")), "can't decode byte 0xff"),
        (value(name="__metadata__"), "a tensor cannot be called __metadata__"),
        (value(name="n" * 5000), "has 5000 bytes, at most 4096 are expected"),
        (value(name="a\nb", content=b""), re.escape("'a\\nb': Float32 [2] needs")),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    file = tmp_path / "x.ckpt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_header(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: damaged .ckpt file: ") and "\n" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (value(dtype="str", content=b"h\0\0\0"), "w: type str is not supported; known: Float64, "),
        (value(dtype="Int4"), "w: type Int4 is not supported"),
        (encode_bytes(1, encode_bytes(1, b"m") + encode_bytes(3, b"")), "m is a MapParameter, which is not supported"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, content, message):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_header(tmp_path / "x.ckpt")


def test_truncations_within_a_tensor_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(ckpt, "CHUNK", 16)
    arrays = {"a": np.arange(10, dtype=np.float32), "b": np.arange(4, dtype=np.float16)}
    content = write(tmp_path / "x.ckpt", arrays).read_bytes()
    whole = len(write(tmp_path / "y.ckpt", {"a": arrays["a"]}).read_bytes())
    for size in range(len(content)):
        (tmp_path / "x.ckpt").write_bytes(content[:size])
        if size == whole:  # nothing in the format tells that b is missing
            assert list(read(tmp_path / "x.ckpt")) == ["a"]
        else:
            with pytest.raises(UserError, match="damaged"):
                read_header(tmp_path / "x.ckpt")


def test_too_many_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(ckpt, "MAX_TENSORS", 3)
    write(tmp_path / "x.ckpt", {str(index): np.ones(1, np.int8) for index in range(3)})
    assert len(read(tmp_path / "x.ckpt")) == 3
    write(tmp_path / "x.ckpt", {str(index): np.ones(1, np.int8) for index in range(4)})
    with pytest.raises(UserError, match="more than 3 tensors"):
        read_header(tmp_path / "x.ckpt")


def test_terabytes_are_passed_over(tmp_path):
    """A file that really has what it claims is read in no time; one that has less is refused."""
    size = 2**41
    plan = plan_file([("w", (size,), "U8"), ("v", (3,), "U8")], {})
    with (tmp_path / "x.ckpt").open("wb") as stream:
        for offset, blob in plan.blobs:
            os.pwrite(stream.fileno(), blob, offset)
        os.truncate(stream.fileno(), plan.size)
        tensors, _ = read_header(tmp_path / "x.ckpt")
        assert (tensors["w"].nbytes, len(tensors["w"].extents)) == (size, size // ckpt.CHUNK)
        os.truncate(stream.fileno(), plan.size - 1)
    with pytest.raises(UserError, match="claims 19 bytes, 18 are there"):
        read_header(tmp_path / "x.ckpt")


def test_a_file_that_is_cut_short_while_it_is_read(tmp_path):
    file = write(tmp_path / "x.ckpt", {str(index): np.ones(2000, np.float32) for index in range(3)})
    with file.open("rb") as stream:
        fields = WireFile(stream.fileno()).fields(0, file.stat().st_size)
        first = next(fields)
        os.truncate(file, first.end)
        with pytest.raises(WireError, match=f"the file ends before byte {first.end + 1}"):
            next(fields)
        with pytest.raises(WireError, match=f"the file ends before byte {first.end + 9}"):
            WireFile(stream.fileno()).read_bytes(first.begin, first.end + 9)


def test_a_length_of_its_own():
    assert encode_length(1, 300) == b"\x0a\xac\x02"
