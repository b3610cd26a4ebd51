"""Writing tensors that are in memory."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from r1parallel.checkpoint.formats.dtypes import dtype_name
from r1parallel.checkpoint.reading.tensor_rows import ArrayRows
from r1parallel.checkpoint.writing.output import MAX_SHARD_SIZE, plan_full, write_output
from r1parallel.checkpoint.writing.replace import replaced_checkpoint

# (name, shape, the header's name of the dtype, the tensor)
Tensor = tuple[str, tuple[int, ...], str, np.ndarray]


def write_checkpoint(
    folder: str | Path,
    entries: Iterable[Tensor],
    max_shard_size: int = MAX_SHARD_SIZE,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write model.safetensors, or shards and their index, into a folder, in place of the weights that it has.

    Args:
        folder: made when missing.
        entries: the tensors.
        max_shard_size: bytes of tensors in one file; a larger tensor gets a file of its own.
        metadata: kept in each file's header.

    Raises:
        ValueError: a tensor has another shape or dtype than its entry says.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    output = plan_full(_rows(entries), metadata or {}, max_shard_size=max_shard_size)
    with replaced_checkpoint(folder, list(output.files)) as temporary:
        write_output(output, temporary, 1)


def write_tensor_file(file: Path, entries: Sequence[Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write one safetensors file, which must not be there, with its manifest, and flush it to disk.

    Raises:
        ValueError: a tensor has another shape or dtype than its entry says.
        UserError: it cannot be written.
    """
    output = plan_full(_rows(entries), metadata or {}, file=file.name)
    write_output(output, file.parent, 1, durable=True)


def _rows(entries: Iterable[Tensor]) -> dict[str, ArrayRows]:
    rows = {}
    for name, shape, dtype, array in entries:
        if array.shape != shape or dtype_name(array.dtype) != dtype:
            raise ValueError(f"{name}: {dtype} {shape} was announced, {array.dtype} {array.shape} came")
        rows[name] = ArrayRows(array, dtype)
    return rows
