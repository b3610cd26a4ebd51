"""Writing checkpoints: one tensor at a time is in memory, and a file appears only when it is whole."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from r1parallel.checkpoint.dtypes import DTYPES, dtype_name
from r1parallel.checkpoint.tensor_file import INDEX_FILE, SINGLE_FILE
from r1parallel.checkpoint.tensor_header import encode_header

# (name, shape, the header's name of the dtype, the tensor or what makes it when its turn comes)
Tensor = tuple[str, tuple[int, ...], str, np.ndarray | Callable[[], np.ndarray]]
MAX_SHARD_SIZE = 5 * 10**9  # bytes; what Hugging Face cuts at


def write_checkpoint(
    folder: str | Path,
    entries: Iterable[Tensor],
    max_shard_size: int = MAX_SHARD_SIZE,
    metadata: dict[str, str] | None = None,
) -> list[Path]:
    """Write model.safetensors, or shards and their index in Hugging Face's names, into a folder.

    Everything is written under temporary names, which are exchanged for the real ones at the end. Then the
    weights of an earlier checkpoint in the folder are removed.

    Args:
        folder: made when missing.
        entries: names, shapes and dtypes are needed before any tensor is.
        max_shard_size: bytes of tensors in one file; a larger tensor gets a file of its own.
        metadata: kept in each file's header.

    Returns:
        The files written, the index last.

    Raises:
        ValueError: a tensor comes with another shape or dtype than announced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(list(entries), max_shard_size)
    names = [SINGLE_FILE]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    temporary = {name: folder / f"{name}.tmp-{os.getpid()}" for name in (*names, INDEX_FILE)}
    try:
        for name, shard in zip(names, shards, strict=True):
            write_tensor_file(temporary[name], shard, metadata)
        if len(shards) > 1:
            temporary[INDEX_FILE].write_text(_index(names, shards), encoding="utf-8")
            names.append(INDEX_FILE)
        for name in names:
            os.replace(temporary[name], folder / name)
        for stale in set(weight_files(folder)) - {folder / name for name in names}:
            stale.unlink()
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)
    return [folder / name for name in names]


def weight_files(folder: Path) -> list[Path]:
    """The weights of a full checkpoint that a folder holds, index included."""
    return sorted([*folder.glob("model*.safetensors"), *folder.glob(INDEX_FILE)])


def write_tensor_file(file: Path, entries: Sequence[Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write one safetensors file and flush it to disk. The header comes first, from the announced shapes.

    Raises:
        ValueError: a tensor comes with another shape or dtype than announced.
    """
    header, order = encode_header([entry[:3] for entry in entries], metadata or {})
    with file.open("wb") as stream:
        stream.write(header)
        for index in order:
            _write_tensor(stream, entries[index])
        stream.flush()
        os.fsync(stream.fileno())


def _write_tensor(stream: BinaryIO, entry: Tensor) -> None:
    name, shape, dtype, source = entry
    array = source() if callable(source) else source
    if array.shape != shape or dtype_name(array.dtype) != dtype:
        raise ValueError(f"{name}: {dtype} {shape} was announced, {array.dtype} {array.shape} came")
    # A slice may lie in memory with gaps; the file holds the elements in row order.
    stream.write(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)


def _split(entries: list[Tensor], max_shard_size: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    used = 0
    for entry in entries:
        nbytes = _nbytes(entry)
        if shards[-1] and used + nbytes > max_shard_size:
            shards.append([])
            used = 0
        shards[-1].append(entry)
        used += nbytes
    return shards


def _nbytes(entry: Tensor) -> int:
    return prod(entry[1]) * DTYPES[entry[2]].itemsize


def _index(names: list[str], shards: list[list[Tensor]]) -> str:
    total = sum(_nbytes(entry) for shard in shards for entry in shard)
    weight_map = {entry[0]: name for name, shard in zip(names, shards, strict=True) for entry in shard}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"
