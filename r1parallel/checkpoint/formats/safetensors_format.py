"""The header of a safetensors file: where each tensor lies. It is checked in full before any data is read."""

import json
import os
import struct
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from r1parallel.checkpoint.formats.dtypes import DTYPES
from r1parallel.checkpoint.formats.header_limits import MAX_TENSORS, check_name, no_duplicates, shown, stored_bytes
from r1parallel.checkpoint.formats.tensor_entry import Extent, FilePlan, TensorEntry
from r1parallel.errors import UserError

_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"
# Parsed JSON can take thirty times the memory of its text, so both its length and what is in it are limited: a tensor
# takes about 100 bytes, a pair of braces, two lists, and ten commas or colons. (safetensors allows 100 MB of anything.)
_MAX_HEADER = 16 * 2**20
_MAX_COUNTS = {b"{": MAX_TENSORS + 2, b"[": 2 * MAX_TENSORS, b":": 5 * MAX_TENSORS, b",": 10 * MAX_TENSORS}


def read_header(file: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Read and check the header of one safetensors file.

    Returns:
        The tensors by name, and the file's metadata.

    Raises:
        UserError: the file is truncated, damaged, holds a type that is not supported, or more than 100,000 tensors.
    """
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        header, start = _load_json(file, stream, size)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _damaged(file, f"{_METADATA} must map names to strings")
    spans = []
    entries = {}
    for name in list(header):
        entries[name] = _check_entry(file, name, header.pop(name), start)
        offset, nbytes = entries[name].extents[0]
        spans.append((offset, offset + nbytes, name))
    _check_spans(file, sorted(spans), start, size)
    return entries, metadata


def plan_file(tensors: Sequence[tuple[str, tuple[int, ...], str]], metadata: dict[str, str]) -> FilePlan:
    """Where everything will lie in a safetensors file.

    Wider elements come first, so that every tensor starts at a multiple of its element's size.

    Args:
        tensors: name, shape and dtype of each.
        metadata: for the header.
    """
    header: dict[str, Any] = {_METADATA: metadata}
    spans: dict[str, Extent] = {}
    position = 0
    for name, shape, dtype in sorted(tensors, key=lambda tensor: -DTYPES[tensor[2]].itemsize):
        nbytes = prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        spans[name] = (position, nbytes)
        position += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = _LENGTH.pack(len(text)) + text
    extents: dict[str, tuple[Extent, ...]] = {
        name: ((len(head) + begin, nbytes),) for name, (begin, nbytes) in spans.items()
    }
    return FilePlan(len(head) + position, [(0, head)], extents)


def _load_json(file: Path, stream: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where the data starts."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        _damaged(file, f"it has {size} bytes, too few for a header")
    (length,) = _LENGTH.unpack(head)
    if length > size - _LENGTH.size:
        _damaged(file, f"its header claims {length} bytes, the file has {size}")
    if length > _MAX_HEADER:
        _damaged(file, f"its header claims {length} bytes, at most {_MAX_HEADER} are read")
    text = stream.read(length)
    for sign, count in _MAX_COUNTS.items():
        if text.count(sign) > count:
            _damaged(file, f"its header has more than {count} times {sign.decode()}")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, a name twice, an endless number; deep nesting
        _damaged(file, f"its header is not readable ({shown(str(error))})")
    if not isinstance(header, dict):
        _damaged(file, "its header is no table of tensors")
    return header, _LENGTH.size + length


def _check_entry(file: Path, name: str, info: Any, start: int) -> TensorEntry:
    """A tensor, after its name, dtype, shape and size were found to agree."""
    what = shown(name)
    if not isinstance(info, dict) or set(info) != {"dtype", "shape", "data_offsets"}:
        _damaged(file, f"{what}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{file}: {what}: dtype {shown(repr(dtype))} is not supported; known: {', '.join(DTYPES)}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        _damaged(file, f"{what}: shape {shown(shape)} or data_offsets {shown(offsets)} are no counts")
    begin, end = offsets
    try:
        check_name(name)
        nbytes = stored_bytes(shape, dtype)
    except ValueError as error:
        _damaged(file, f"{what}: {error}")
    if end - begin != nbytes:
        _damaged(file, f"{what}: {dtype} {shown(shape)} needs {nbytes} bytes, data_offsets give {shown(end - begin)}")
    return TensorEntry(name, file, dtype, tuple(shape), ((start + begin, nbytes),))


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_spans(file: Path, spans: list[tuple[int, int, str]], start: int, size: int) -> None:
    """The tensors must fill the data without overlap or hole."""
    expected = start
    for begin, end, name in spans:
        if begin != expected:
            where = f"byte {begin - start}, expected {expected - start}"
            _damaged(file, f"{shown(name)}: its data starts at {where} (overlap or hole)")
        if end > size:
            has = f"ends at byte {end - start}, the file has only {size - start}"
            _damaged(file, f"{shown(name)}: its data {has} (truncated?)")
        expected = end
    if expected != size:
        _damaged(file, f"{size - expected} bytes belong to no tensor")


def _damaged(file: Path, what: str) -> NoReturn:
    raise UserError(f"{file}: damaged safetensors file: {what}; copy or download it again")
