"""Tensors that are read window by window, against plain numpy."""

import os
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1parallel.checkpoint.formats.dtypes import DTYPES, cast
from r1parallel.checkpoint.formats.manifest import manifest_path
from r1parallel.checkpoint.formats.tensor_file import read_file
from r1parallel.checkpoint.reading import windows as module
from r1parallel.checkpoint.reading.streams import Streams
from r1parallel.checkpoint.reading.tensor_rows import (
    ArrayRows,
    CastRows,
    InterleavedRows,
    PartRows,
    StoredRows,
    cast_rows,
)
from r1parallel.checkpoint.reading.windows import are_equal, read_rows, windows
from r1parallel.checkpoint.writing.tensor_writer import write_tensor_file
from r1parallel.errors import UserError
from r1parallel.parallel.layout.regions import whole

FLOATS = ("F32", "F16", "BF16")
SMALL = st.integers(1, 300)  # bytes of a window


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 64)


def array_of(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    nbytes = int(np.prod(shape)) * DTYPES[dtype].itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(nbytes), DTYPES[dtype]).reshape(shape)


def read_in(window: int, rows, region=None) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", window)
        return read_rows(rows, region)


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


@st.composite
def regions(draw, shape):
    region = []
    for size in shape:
        begin = draw(st.integers(0, size - 1))
        region.append(slice(begin, draw(st.integers(begin + 1, size))))
    return tuple(region)


def store(folder: Path, name: str, array: np.ndarray, dtype: str):
    """The entry of an array in a file of its own."""
    file = folder / f"{name}.safetensors"
    write_tensor_file(file, [("w", array.shape, dtype, array)])
    return read_file(file)[0]["w"]


def store_pieces(folder: Path, array: np.ndarray, dtype: str, cuts, copies: int = 1) -> StoredRows:
    """An array cut at `cuts`, one list of edges for each dim, every piece in files of its own."""
    pieces = {}
    for number, span in enumerate(product(*(pairwise(edges) for edges in cuts))):
        piece = np.ascontiguousarray(array[tuple(slice(*part) for part in span)])
        pieces[span] = [store(folder, f"{number}-{copy}", piece, dtype) for copy in range(copies)]
    return StoredRows(array.shape, dtype, pieces)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.lists(st.integers(1, 9), min_size=1, max_size=3), st.sampled_from(list(DTYPES)), SMALL)
def test_any_region_of_a_tensor_in_pieces(data, shape, dtype, window):
    array = array_of(len(shape), tuple(shape), dtype)
    cuts = [sorted({0, size, *data.draw(st.sets(st.integers(0, size), max_size=2))}) for size in shape]
    region = data.draw(regions(shape))
    with TemporaryDirectory() as folder:
        rows = store_pieces(Path(folder), array, dtype, cuts, copies=data.draw(st.integers(1, 2)))
        assert same(read_in(window, rows, region), array[region])
        assert same(read_in(window, rows.first_copies()), array)


def test_a_number_without_dims(tmp_path):
    entry = store(tmp_path, "x", np.array(2.5, np.float32), "F32")
    assert same(read_rows(StoredRows((), "F32", {(): [entry, entry]})), np.array(2.5, np.float32))
    assert same(read_rows(ArrayRows(np.array(7), "I64")), np.array(7))
    assert list(windows(ArrayRows(np.array(7), "I64"), ())) == [()]


@st.composite
def interleaved(draw):
    """Parts, rows of each in a group, and numpy's version of the whole."""
    group = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    groups, rest, dtype = (
        draw(st.integers(1, 5)),
        draw(st.sampled_from([(), (1,), (3,), (2, 2)])),
        draw(st.sampled_from(FLOATS)),
    )
    parts = [array_of(index, (groups * rows, *rest), dtype) for index, rows in enumerate(group)]
    blocks = [part.reshape(groups, rows, *rest) for part, rows in zip(parts, group, strict=True)]
    return parts, group, np.concatenate(blocks, axis=1).reshape(-1, *rest), dtype


@settings(deadline=None, max_examples=100)
@given(st.data(), interleaved(), SMALL)
def test_interleaving_and_taking_apart_are_inverse(data, case, window):
    parts, group, whole_array, dtype = case
    together = InterleavedRows(tuple(ArrayRows(part, dtype) for part in parts), group)
    assert (together.shape, together.dtype, together.row_step) == (whole_array.shape, dtype, 1)
    region = data.draw(regions(whole_array.shape))
    assert same(read_in(window, together, region), whole_array[region])
    for index, part in enumerate(parts):
        region = data.draw(regions(part.shape))
        for source in (together, ArrayRows(whole_array, dtype)):
            apart = PartRows(source, group, index)
            assert (apart.shape, apart.dtype, apart.row_step) == (part.shape, dtype, group[index])
            assert same(read_in(window, apart, region), part[region])
    back = InterleavedRows(tuple(PartRows(together, group, index) for index in range(len(group))), group)
    assert same(read_in(window, back), whole_array)


@settings(deadline=None, max_examples=60)
@given(st.data(), interleaved(), SMALL)
def test_parts_of_stored_tensors_are_checked_as_they_are_read(data, case, window):
    """In order and once, whatever is made of them: else a flipped bit would not be found."""
    parts, group, whole_array, dtype = case
    index = data.draw(st.integers(0, len(parts) - 1))
    with TemporaryDirectory() as folder:
        file = store(Path(folder), "x", whole_array, dtype).file
        entry = read_file(file)[0]["w"]
        rows = PartRows(
            StoredRows(whole_array.shape, dtype, {tuple((0, n) for n in whole_array.shape): [entry]}), group, index
        )
        assert same(read_in(window, rows), parts[index])
        content = bytearray(file.read_bytes())
        begin, size = entry.extents[0]
        content[begin + data.draw(st.integers(0, size - 1))] ^= 1
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"w is not what x.safetensors.manifest.json says"):
            read_in(window, rows)


@settings(deadline=None, max_examples=40)
@given(st.data(), interleaved(), SMALL)
def test_stored_parts_are_checked_as_they_are_put_together(data, case, window):
    parts, group, whole_array, dtype = case
    with TemporaryDirectory() as folder:
        entries = [store(Path(folder), f"{index}", part, dtype) for index, part in enumerate(parts)]
        pieces = [{tuple((0, size) for size in entry.shape): [entry]} for entry in entries]
        stored = (StoredRows(part.shape, dtype, piece) for part, piece in zip(parts, pieces, strict=True))
        rows = InterleavedRows(tuple(stored), group)
        assert same(read_in(window, rows), whole_array)
        entry = data.draw(st.sampled_from(entries))
        content = bytearray(entry.file.read_bytes())
        content[data.draw(st.integers(entry.extents[0][0], len(content) - 1))] ^= 128
        entry.file.write_bytes(content)
        with pytest.raises(UserError, match=rf"w is not what {entry.file.name}.manifest.json says"):
            read_in(window, rows)


def test_plain_concatenation():
    parts = [array_of(index, (rows, 3), "F32") for index, rows in enumerate((2, 5))]
    rows = InterleavedRows(tuple(ArrayRows(part, "F32") for part in parts), (2, 5))
    assert same(read_in(30, rows), np.concatenate(parts))


@pytest.mark.parametrize(("stored", "wanted"), product(FLOATS, FLOATS))
def test_cast_on_the_way(small_windows, stored, wanted):
    array = np.random.default_rng(0).standard_normal((7, 5)).astype(DTYPES[stored])
    rows = cast_rows(ArrayRows(array, stored, row_step=2), wanted, "x: w")
    assert isinstance(rows, CastRows) == (stored != wanted)
    assert (rows.shape, rows.dtype, rows.row_step) == ((7, 5), wanted, 2)
    region = (slice(1, 7), slice(2, 5))
    assert same(read_rows(rows), cast(array, wanted, "w"))
    assert same(read_rows(rows, region), cast(array, wanted, "w")[region])


def test_what_does_not_fit_is_named(small_windows):
    array = np.zeros((40, 4), np.float32)
    array[39, 3] = 1e5
    rows = cast_rows(ArrayRows(array, "F32"), "F16", "x: w")
    assert read_rows(rows, (slice(0, 39), slice(0, 4))).max() == 0
    with pytest.raises(UserError, match=r"^x: w: 100000 does not fit into F16; choose bf16 or fp32$"):
        read_rows(rows)


@dataclass(frozen=True)
class Sizes:
    """TensorRows of which only the sizes matter."""

    shape: tuple[int, ...]
    row_step: int
    row_bytes: int
    dtype: str = "F32"


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 200), st.integers(1, 12), st.integers(0, 500), st.integers(1, 3000), st.data())
def test_windows_are_aligned_bounded_and_cover_all_in_order(rows, step, row_bytes, window, data):
    region = data.draw(regions((rows, 7)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", window)
        found = list(windows(Sizes((rows, 7), step, row_bytes), region))
    assert [part[1] for part in found] == [region[1]] * len(found)
    edges = [region[0].start, *(part[0].stop for part in found)]
    assert [part[0].start for part in found] == edges[:-1]
    assert edges[-1] == region[0].stop
    assert all(edge % step == 0 for edge in edges[1:-1])
    for part in found:
        count = part[0].stop - part[0].start
        assert count > 0
        assert count * row_bytes <= window or count <= step


def test_no_rows_no_windows():
    assert list(windows(Sizes((0, 3), 1, 12), whole((0, 3)))) == []
    assert same(read_rows(ArrayRows(np.zeros((0, 3), np.float32), "F32")), np.zeros((0, 3), np.float32))


@pytest.mark.parametrize(
    "rows",
    [
        StoredRows((2, 2**28), "F32", {}),
        PartRows(StoredRows((2**22, 2**7), "F32", {}), (2**21, 2**21), 0),
    ],
)
def test_rows_too_long_for_the_memory_are_refused(rows):
    with pytest.raises(UserError, match=rf"a tensor \[{rows.shape[0]}, {rows.shape[1]}\] has rows of \d+ bytes"):
        next(windows(rows, whole(rows.shape)))


@pytest.mark.parametrize("spoilt", [0, -1])
@pytest.mark.parametrize("which", [1, 2])
def test_copies_that_differ_are_refused(tmp_path, small_windows, spoilt, which):
    array = np.arange(120, dtype=np.float32).reshape(20, 6)
    other = array.copy()
    other.reshape(-1)[spoilt] += 1
    span = ((0, 20), (0, 6))
    copies = [store(tmp_path, str(n), other if n == which else array, "F32") for n in range(3)]
    rows = StoredRows((20, 6), "F32", {span: copies})
    message = rf"{which}.safetensors: w differs from its copy in .*0.safetensors; they must be equal"
    with pytest.raises(UserError, match=message):
        read_rows(rows)
    assert same(read_rows(rows.first_copies()), array)
    equal = [copy for n, copy in enumerate(copies) if n != which]
    assert same(read_rows(StoredRows((20, 6), "F32", {span: equal})), array)


def test_a_file_that_is_cut_short_while_it_is_read(tmp_path, small_windows):
    array = np.arange(60, dtype=np.float32).reshape(20, 3)
    rows = store_pieces(tmp_path, array, "F32", [[0, 20], [0, 3]])
    (entry,) = rows.pieces[((0, 20), (0, 3))]
    with Streams() as streams:
        first, second = (np.empty((10, 3), "u4") for _ in range(2))
        rows.read((slice(0, 10), slice(0, 3)), first, streams)
        os.truncate(entry.file, entry.extents[0][0] + 200)
        with pytest.raises(UserError, match=r"ends in the middle of w; was it cut short while it was read"):
            rows.read((slice(10, 20), slice(0, 3)), second, streams)
    entry.file.unlink()
    with pytest.raises(UserError, match=r"0-0.safetensors: cannot be read: No such file"):
        read_rows(rows)


def test_damage_is_found_where_all_is_read_and_only_there(tmp_path, small_windows):
    array = np.arange(60, dtype=np.float32).reshape(20, 3)
    rows = store_pieces(tmp_path, array, "F32", [[0, 20], [0, 3]])
    (entry,) = rows.pieces[((0, 20), (0, 3))]
    content = bytearray(entry.file.read_bytes())
    content[-1] ^= 1
    entry.file.write_bytes(content)
    assert same(read_rows(rows, (slice(0, 19), slice(0, 3))), array[:19])
    with pytest.raises(UserError, match=r"w is not what 0-0.safetensors.manifest.json says: the file is damaged"):
        read_rows(rows)
    manifest_path(entry.file).unlink()
    entry = read_file(entry.file)[0]["w"]
    assert not same(read_rows(StoredRows((20, 3), "F32", {((0, 20), (0, 3)): [entry]})), array)


def test_equal_means_every_bit(tmp_path, small_windows):
    array = array_of(1, (30, 5), "F32").copy()
    array[3, 2] = np.nan
    other = array.copy()
    other.view(np.uint32)[29, 4] ^= 1
    pieces = store_pieces(tmp_path, array, "F32", [[0, 11, 30], [0, 2, 5]])
    rows = ArrayRows(array, "F32")
    assert are_equal(rows, pieces)
    assert not are_equal(rows, ArrayRows(other, "F32"))
    assert not are_equal(rows, ArrayRows(array.view(np.int32), "I32"))
    assert not are_equal(rows, ArrayRows(array[:29], "F32"))
    assert not are_equal(ArrayRows(np.zeros(1, np.float32), "F32"), ArrayRows(-np.zeros(1, np.float32), "F32"))
