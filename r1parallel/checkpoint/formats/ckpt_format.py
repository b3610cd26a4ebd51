"""MindSpore's `.ckpt`: where each tensor lies in the file, and where it will lie in one to be written.

The file is a protobuf message, `Checkpoint{repeated Value}`, `Value{tag, tensor}`, `TensorProto{dims, type, content}`.
A tensor above 512 MiB is several values in a row with the same tag and the full dims; their contents joined are the
tensor. `save_checkpoint(crc_check=True)` adds `crc_num` and ten bytes. Contents are passed over, never parsed.

The format does not say how many tensors there are: a file that was cut exactly between two of them looks whole here.
It has no metadata either.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import NamedTuple, NoReturn

from r1parallel.checkpoint.formats.dtypes import CKPT_DTYPES, DTYPES
from r1parallel.checkpoint.formats.header_limits import MAX_NAME, MAX_TENSORS, check_name, shown, stored_bytes
from r1parallel.checkpoint.formats.tensor_entry import Extent, FilePlan, TensorEntry
from r1parallel.errors import UserError
from r1parallel.wire import BYTES, VARINT, Field, WireError, WireFile, encode_bytes, encode_length, encode_varint

CHUNK = 512 * 2**20  # bytes of content in one value, as MindSpore cuts them
_VALUE = 1  # of Checkpoint
_TAG, _TENSOR, _MAP_TENSOR = 1, 2, 3  # of Value
_DIMS, _TYPE, _CONTENT = 1, 2, 3  # of TensorProto
_CRC, _CRC_SIZE = b"crc_num", 17
_MAX_PACKED = 32 * 10  # bytes of as many dims as there may be
_TYPE_NAMES = {ours: theirs for theirs, ours in CKPT_DTYPES.items()}


class _Chunk(NamedTuple):
    name: str
    type: str
    dims: tuple[int, ...]
    content: Extent


@dataclass
class _Pending:
    """A tensor of which chunks may still follow."""

    first: _Chunk
    nbytes: int = 0
    extents: list[Extent] = field(default_factory=list)


def read_header(file: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Find the tensors of a `.ckpt` file. No content is read; a crc at the end is not compared.

    Returns:
        The tensors by name, in the file's order, and no metadata. A scalar has shape (), whether its dims are
        absent or, as MindSpore allows, [0] with one element.

    Raises:
        UserError: the file is truncated, damaged or encrypted, or holds what is not supported: a MapParameter, a
            string, or another type without a name of safetensors.
    """
    with file.open("rb") as stream:
        wire = WireFile(stream.fileno())
        size = os.fstat(stream.fileno()).st_size
        try:
            return _read_tensors(file, wire, _end(wire, size)), {}
        except ValueError as error:  # WireError, names that are not UTF-8, sizes that cannot be
            _damaged(file, str(error))


def plan_file(tensors: Sequence[tuple[str, tuple[int, ...], str]], metadata: dict[str, str]) -> FilePlan:
    """Where everything will lie in a `.ckpt` file.

    Scalars and empty tensors get what MindSpore writes: no dims, and one value without content. (It reads shape
    (0,) back as a scalar, since it takes dims [0] for that.)

    Args:
        tensors: name, shape and safetensors' dtype of each. They are written in this order.
        metadata: dropped, the format has no place for it.
    """
    position = 0
    blobs: list[tuple[int, bytes]] = []
    extents: dict[str, tuple[Extent, ...]] = {}
    for name, shape, dtype in tensors:
        nbytes = prod(shape) * DTYPES[dtype].itemsize
        pieces = []
        for begin in range(0, max(nbytes, 1), CHUNK):
            size = min(CHUNK, nbytes - begin)
            blobs.append((position, _value_head(name, shape, dtype, size)))
            position += len(blobs[-1][1])
            pieces.append((position, size))
            position += size
        extents[name] = tuple(pieces)
    return FilePlan(position, blobs, extents)


def _value_head(name: str, shape: tuple[int, ...], dtype: str, size: int) -> bytes:
    """All of a value that stands before its `size` bytes of content."""
    tensor = b"".join(encode_varint(_DIMS << 3 | VARINT) + encode_varint(dim) for dim in shape)
    tensor += encode_bytes(_TYPE, _TYPE_NAMES[dtype].encode()) + encode_length(_CONTENT, size)
    value = encode_bytes(_TAG, name.encode()) + encode_length(_TENSOR, len(tensor) + size) + tensor
    return encode_length(_VALUE, len(value) + size) + value


def _end(wire: WireFile, size: int) -> int:
    """Where the message ends: at the crc, if there is one."""
    if size > _CRC_SIZE and wire.read_bytes(size - _CRC_SIZE, size).startswith(_CRC):
        return size - _CRC_SIZE
    return size


def _read_tensors(file: Path, wire: WireFile, end: int) -> dict[str, TensorEntry]:
    tensors: dict[str, TensorEntry] = {}
    pending: _Pending | None = None
    for count, value in enumerate(wire.fields(0, end)):
        if (value.number, value.kind) != (_VALUE, BYTES):
            raise WireError(f"byte {value.start} begins no tensor; the file may be of another format or encrypted")
        if count == MAX_TENSORS:
            raise WireError(f"it has more than {MAX_TENSORS} tensors")
        chunk = _read_value(file, wire, value)
        if pending is None or pending.first.name != chunk.name:
            if pending is not None:
                tensors[pending.first.name] = _finish(file, pending)
            if chunk.name in tensors:
                raise WireError(f"{shown(chunk.name)} occurs twice")
            pending = _Pending(chunk)
        _add(pending, chunk)
    if pending is None:
        raise WireError("it is empty")
    tensors[pending.first.name] = _finish(file, pending)
    return tensors


def _add(tensor: _Pending, chunk: _Chunk) -> None:
    if chunk[:3] != tensor.first[:3]:
        raise WireError(f"{shown(chunk.name)} goes on with another type or other dims")
    tensor.nbytes += chunk.content[1]
    tensor.extents.append(chunk.content)


def _finish(file: Path, tensor: _Pending) -> TensorEntry:
    """Check that the content is what type and dims need."""
    name, type_name, dims, _ = tensor.first
    if type_name not in CKPT_DTYPES:
        known = ", ".join(CKPT_DTYPES)
        raise UserError(f"{file}: {shown(name)}: type {shown(type_name)} is not supported; known: {known}")
    dtype = CKPT_DTYPES[type_name]
    shape = () if dims == (0,) and tensor.nbytes else dims
    needed = stored_bytes(shape, dtype)
    if tensor.nbytes != needed:
        raise WireError(
            f"{shown(name)}: {type_name} {shown(list(dims))} needs {needed} bytes, its content has {tensor.nbytes}"
        )
    return TensorEntry(name, file, dtype, shape, tuple(tensor.extents))


def _read_value(file: Path, wire: WireFile, value: Field) -> _Chunk:
    parts = _once(wire.fields(value.begin, value.end), {_TAG, _TENSOR, _MAP_TENSOR}, value.start)
    if _TAG not in parts:
        raise WireError(f"the tensor at byte {value.start} has no name")
    name = wire.read(parts[_TAG], MAX_NAME).decode()
    check_name(name)
    if _MAP_TENSOR in parts:
        raise UserError(f"{file}: {shown(name)} is a MapParameter, which is not supported; save it by itself")
    if _TENSOR not in parts:
        raise WireError(f"{shown(name)} has no content")
    return _read_tensor(wire, name, parts[_TENSOR])


def _read_tensor(wire: WireFile, name: str, tensor: Field) -> _Chunk:
    dims: list[int] = []
    others = []
    for part in wire.fields(tensor.begin, tensor.end):
        if part.number == _DIMS:
            dims += _read_dims(wire, part)
            stored_bytes(dims, "U8")  # refuses too many of them before all are read
        else:
            others.append(part)
            if len(others) > 2:
                raise WireError(f"{shown(name)} has more than one type and content")
    parts = _once(others, {_TYPE, _CONTENT}, tensor.start)
    if len(parts) != 2:
        raise WireError(f"{shown(name)} lacks its type or its content")
    content = parts[_CONTENT]
    return _Chunk(name, wire.read(parts[_TYPE], MAX_NAME).decode(), tuple(dims), (content.begin, content.size))


def _read_dims(wire: WireFile, part: Field) -> list[int]:
    """One dim, or several that were packed. They are signed: 2**63 and more would be below 0."""
    if part.kind == VARINT:
        return [part.value]
    if part.kind != BYTES or not 0 < part.size <= _MAX_PACKED:
        raise WireError(f"the dims at byte {part.start} are not readable")
    dims = []
    position = part.begin
    while position < part.end:
        dim, position = wire.varint(position, part.end)
        dims.append(dim)
    return dims


def _once(parts: Iterable[Field], numbers: set[int], start: int) -> dict[int, Field]:
    """Fields by number, of which each may occur once, with bytes."""
    found: dict[int, Field] = {}
    for part in parts:
        if part.number not in numbers or part.kind != BYTES or part.number in found:
            raise WireError(f"the tensor at byte {start} has field {part.number} where none is expected")
        found[part.number] = part
    return found


def _damaged(file: Path, what: str) -> NoReturn:
    raise UserError(f"{file}: damaged .ckpt file: {what}; copy or download it again")
