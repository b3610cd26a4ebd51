import json
import struct

import ml_dtypes
import numpy as np
import pytest
from helpers.stored import read_entry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from r1parallel.checkpoint.formats.dtypes import DTYPES, dtype_name
from r1parallel.checkpoint.formats.manifest import manifest_path
from r1parallel.checkpoint.formats.tensor_file import open_checkpoint
from r1parallel.checkpoint.writing.tensor_writer import write_checkpoint, write_tensor_file
from r1parallel.errors import UserError


def entry(name, array):
    return (name, array.shape, dtype_name(array.dtype), array)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__"),
        st.sampled_from(["F64", "F32", "F16", "I32", "U8", "BOOL"]).flatmap(
            lambda name: hnp.arrays(DTYPES[name], hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
        ),
        max_size=5,
    )
)
def test_what_is_written_is_read_by_us_and_by_safetensors(tmp_path, arrays):
    file = tmp_path / "x.safetensors"
    file.unlink(missing_ok=True)
    manifest_path(file).unlink(missing_ok=True)
    write_tensor_file(file, [entry(name, array) for name, array in arrays.items()], {"a": "b"})
    checkpoint, theirs = open_checkpoint(file), load_file(file)
    assert set(checkpoint) == set(theirs) == set(arrays)
    assert checkpoint.metadata == {"a": "b"}
    for name, array in arrays.items():
        read = read_entry(checkpoint[name])
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tobytes() == array.tobytes() == theirs[name].tobytes()


def test_bf16_and_files_of_safetensors(tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"w": values.astype(ml_dtypes.bfloat16), "v": values}, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert (checkpoint["w"].dtype, checkpoint["w"].shape, checkpoint["w"].nbytes) == ("BF16", (2, 3), 12)
    assert read_entry(checkpoint["w"]).dtype == ml_dtypes.bfloat16
    assert read_entry(checkpoint["w"]).astype(np.float32).tolist() == values.tolist()
    assert checkpoint.nbytes == 36
    assert len(checkpoint) == 2


def test_a_slice_is_a_contiguous_copy(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    write_tensor_file(tmp_path / "x.safetensors", [entry("w", values)])
    part = read_entry(open_checkpoint(tmp_path / "x.safetensors")["w"], (slice(1, 3), slice(2, 5)))
    assert part.tolist() == values[1:3, 2:5].tolist()
    assert part.flags.c_contiguous and type(part) is np.ndarray


def test_a_slice_with_gaps_is_written_in_row_order(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    write_tensor_file(tmp_path / "x.safetensors", [entry("w", values[:, 1:3])])
    assert load_file(tmp_path / "x.safetensors")["w"].tolist() == values[:, 1:3].tolist()


def test_narrow_elements_come_after_wide_ones(tmp_path):
    arrays = {"a": np.ones(3, np.float16), "b": np.ones(2, np.float32), "c": np.ones(1, np.int64)}
    write_tensor_file(tmp_path / "x.safetensors", [entry(name, array) for name, array in arrays.items()])
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert all(checkpoint[name].extents[0][0] % array.itemsize == 0 for name, array in arrays.items())


def test_shards_and_their_index(tmp_path):
    arrays = {f"t{i}": np.full(10, i, np.float32) for i in range(5)}
    write_checkpoint(tmp_path, [entry(name, array) for name, array in arrays.items()], 80)
    shards = [f"model-0000{shard}-of-00003.safetensors" for shard in (1, 2, 3)]
    files = [shard + end for shard in shards for end in ("", ".manifest.json")] + ["model.safetensors.index.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == files
    index = json.loads((tmp_path / files[-1]).read_text())
    assert index["metadata"]["total_size"] == 200
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint) == list(arrays)
    assert {name: entry.file.name for name, entry in checkpoint.items()} == index["weight_map"]
    assert all(read_entry(checkpoint[name]).tolist() == array.tolist() for name, array in arrays.items())
    write_checkpoint(tmp_path, [entry("t", arrays["t0"])])  # a single file takes the place of the shards
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.safetensors", "model.safetensors.manifest.json"]
    assert list(open_checkpoint(tmp_path)) == ["t"]


@pytest.mark.parametrize("array", [np.zeros((2, 3), np.float32), np.zeros(6, np.float16)])
def test_a_tensor_that_breaks_its_promise_leaves_nothing(tmp_path, array):
    with pytest.raises(ValueError, match=r"w: F32 \(6,\) was announced"):
        write_checkpoint(tmp_path, [("w", (6,), "F32", array)])
    assert list(tmp_path.iterdir()) == []


def write_raw(file, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        (b"{", 0, "header is not readable"),
        (b"\xff\xfe", 0, "header is not readable"),
        (b'{"a": 1, "a": 1}', 0, "a name occurs twice"),
        ([1], 0, "no table of tensors"),
        ({"__metadata__": {"a": 1}}, 0, "__metadata__ must map"),
        ({"w": [1]}, 8, "w: expected dtype, shape and data_offsets"),
        ({"w": {**GOOD, "more": 1}}, 8, "w: expected dtype"),
        ({"w": {**GOOD, "dtype": "F8_E4M3"}}, 8, "w: dtype 'F8_E4M3' is not supported"),
        ({"w": {**GOOD, "shape": [-2]}}, 8, "w: shape"),
        ({"w": {**GOOD, "shape": [True]}}, 8, "w: shape"),
        ({"w": {**GOOD, "shape": 2}}, 8, "w: shape"),
        ({"w": {**GOOD, "data_offsets": [0]}}, 8, "w: shape"),
        ({"w": {**GOOD, "shape": [3]}}, 8, "needs 12 bytes, data_offsets give 8"),
        ({"w": GOOD}, 7, "ends at byte 8, the file has only 7"),
        ({"w": GOOD}, 9, "1 bytes belong to no tensor"),
        ({"w": GOOD, "x": GOOD}, 8, "x: its data starts at byte 0, expected 8"),
        ({"w": GOOD, "x": {**GOOD, "data_offsets": [12, 20]}}, 20, "x: its data starts at byte 12"),
    ],
)
def test_damaged_files_are_refused(tmp_path, header, size, message):
    file = write_raw(tmp_path / "x.safetensors", header, bytes(size))
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(file)
    assert str(file) in str(caught.value)


def test_any_truncation_is_noticed(tmp_path):
    file = tmp_path / "x.safetensors"
    write_tensor_file(file, [entry("w", np.arange(8, dtype=np.float32))])
    content = file.read_bytes()
    for size in range(len(content)):
        file.write_bytes(content[:size])
        with pytest.raises(UserError, match="damaged"):
            open_checkpoint(file)


def test_wrong_places_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        open_checkpoint(tmp_path / "missing")
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"neither \.safetensors nor \.ckpt"):
        open_checkpoint(tmp_path / "x.bin")
    with pytest.raises(UserError, match="holds none of"):
        open_checkpoint(tmp_path)


def shard_folder(tmp_path):
    write_checkpoint(tmp_path, [entry(name, np.ones(10, np.float32)) for name in "ab"], 40)
    return tmp_path / "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no index of shards"),
        ("[]", "no index of shards"),
        ("{}", "no index of shards"),
        ('{"weight_map": {}}', "weight_map is empty"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "no file name in this folder"),
        ('{"weight_map": {"a": 1}}', "no file name in this folder"),
        ('{"weight_map": {"a": "y.safetensors"}}', "names y.safetensors, which is missing"),
        (
            '{"weight_map": {"a": "model-00001-of-00002.safetensors", "c": "model-00001-of-00002.safetensors"}}',
            "places c in model-00001-of-00002.safetensors, which does not hold it",
        ),
        ('{"weight_map": {"b": "model-00001-of-00002.safetensors"}}', "holds a, which"),
    ],
)
def test_bad_indexes_are_refused(tmp_path, text, message):
    shard_folder(tmp_path).write_text(text)
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path)


def test_two_checkpoints_in_one_folder_are_refused(tmp_path):
    shard_folder(tmp_path)
    write_tensor_file(tmp_path / "model.safetensors", [entry("a", np.ones(1, np.float32))])
    with pytest.raises(UserError, match="holds both"):
        open_checkpoint(tmp_path)


def test_ranks(tmp_path):
    (tmp_path / "rank_0").mkdir()
    with pytest.raises(UserError, match=r"exactly one .safetensors or .ckpt file, found none"):
        open_checkpoint(tmp_path)
    write_tensor_file(tmp_path / "rank_0" / "checkpoint_0.safetensors", [entry("a", np.ones(1, np.float32))])
    assert list(open_checkpoint(tmp_path)) == ["a"]
    assert open_checkpoint(tmp_path).folder == tmp_path
    (tmp_path / "rank_1").mkdir()
    (tmp_path / "rank_x").mkdir()
    with pytest.raises(UserError, match=r"is cut into 2 ranks, and no strategy.ckpt there"):
        open_checkpoint(tmp_path)
