"""The header of a safetensors file: where each tensor lies. It is checked in full before any data is read."""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from r1parallel.checkpoint.dtypes import DTYPES
from r1parallel.errors import UserError

_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"


@dataclass(frozen=True)
class TensorEntry:
    """One stored tensor. `dtype` is the header's name (F32, F16, BF16 …), `offset` in bytes of the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def read(self, slices: Sequence[slice] | None = None) -> np.ndarray:
        """Copy the tensor, or a part of it, into memory. BF16 comes as `ml_dtypes.bfloat16`.

        Args:
            slices: one slice for each dim; None reads all. Only the pages that hold them are read.
        """
        dtype = DTYPES[self.dtype]
        if self.nbytes == 0:
            return np.empty(self.shape, dtype)
        mapped = np.memmap(self.file, dtype, mode="r", offset=self.offset, shape=self.shape)
        part = mapped if slices is None else mapped[tuple(slices)]
        return np.array(part, order="C", copy=True, subok=False)


def read_header(file: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Read and check the header of one safetensors file.

    Returns:
        The tensors by name, and the file's metadata.

    Raises:
        UserError: the file is truncated, damaged, or holds a type that is not supported.
    """
    size = file.stat().st_size
    header, start = _load_json(file, size)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _damaged(file, f"{_METADATA} must map names to strings")
    spans = []
    entries = {}
    for name, info in header.items():
        begin, end = _check_entry(file, name, info)
        entries[name] = TensorEntry(name, file, info["dtype"], tuple(info["shape"]), start + begin)
        spans.append((begin, end, name))
    _check_spans(file, sorted(spans), size - start)
    return entries, metadata


def encode_header(
    tensors: Sequence[tuple[str, tuple[int, ...], str]], metadata: dict[str, str]
) -> tuple[bytes, list[int]]:
    """The bytes in front of the data, and the order in which the tensors follow.

    Wider elements come first, so that every tensor starts at a multiple of its element's size.
    """
    order = sorted(range(len(tensors)), key=lambda index: -DTYPES[tensors[index][2]].itemsize)
    header: dict[str, Any] = {_METADATA: metadata}
    begin = 0
    for index in order:
        name, shape, dtype = tensors[index]
        end = begin + prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text, order


def _load_json(file: Path, size: int) -> tuple[dict[str, Any], int]:
    with file.open("rb") as stream:
        head = stream.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            _damaged(file, f"it has {size} bytes, too few for a header")
        (length,) = _LENGTH.unpack(head)
        if length > size - _LENGTH.size:
            _damaged(file, f"its header claims {length} bytes, the file has {size}")
        text = stream.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except ValueError as error:  # bad JSON, bad UTF-8, a name twice
        _damaged(file, f"its header is not readable ({error})")
    if not isinstance(header, dict):
        _damaged(file, "its header is no table of tensors")
    return header, _LENGTH.size + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _check_entry(file: Path, name: str, info: Any) -> tuple[int, int]:
    """Offsets of a tensor's data, after its dtype, shape and size were found to agree."""
    if not isinstance(info, dict) or set(info) != {"dtype", "shape", "data_offsets"}:
        _damaged(file, f"{name}: expected dtype, shape and data_offsets")
    if info["dtype"] not in DTYPES:
        raise UserError(f"{file}: {name}: dtype {info['dtype']!r} is not supported; known: {', '.join(DTYPES)}")
    shape, offsets = info["shape"], info["data_offsets"]
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        _damaged(file, f"{name}: shape {shape} or data_offsets {offsets} are no counts")
    begin, end = offsets
    nbytes = prod(shape) * DTYPES[info["dtype"]].itemsize
    if end - begin != nbytes:
        _damaged(file, f"{name}: {info['dtype']} {shape} needs {nbytes} bytes, data_offsets give {end - begin}")
    return begin, end


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_spans(file: Path, spans: list[tuple[int, int, str]], data_size: int) -> None:
    """The tensors must fill the data without overlap or hole."""
    expected = 0
    for begin, end, name in spans:
        if begin != expected:
            _damaged(file, f"{name}: its data starts at byte {begin}, expected {expected} (overlap or hole)")
        if end > data_size:
            _damaged(file, f"{name}: its data ends at byte {end}, the file has only {data_size} (truncated?)")
        expected = end
    if expected != data_size:
        _damaged(file, f"{data_size - expected} bytes belong to no tensor")


def _damaged(file: Path, what: str) -> NoReturn:
    raise UserError(f"{file}: damaged safetensors file: {what}; copy or download it again")
