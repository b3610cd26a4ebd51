"""What the header of a file may claim, so that a damaged one costs neither memory nor time."""

from collections.abc import Sequence
from math import prod
from typing import Any

from r1parallel.checkpoint.formats.dtypes import DTYPES

MAX_TENSORS = 100_000  # in one file; Qwen2.5-72B has 963. A tensor of a header takes about a kilobyte of memory.
MAX_NAME = 4096  # bytes
_MAX_DIMS = 32  # numpy's limit
_MAX_BYTES = 2**63 - 1
_SHOWN = 100


def stored_bytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor.

    Raises:
        ValueError: there can be no such tensor: more than 32 dims, one below 0, or 2**63 bytes and more. Dims of
            0 do not excuse the other ones, for numpy does not excuse them either.
    """
    if len(shape) > _MAX_DIMS:
        raise ValueError(f"{len(shape)} dims are more than {_MAX_DIMS}")
    if any(not 0 <= size <= _MAX_BYTES for size in shape):
        raise ValueError(f"shape {shown(list(shape))} has a dim that is no size")
    itemsize = DTYPES[dtype].itemsize
    if prod(size for size in shape if size) * itemsize > _MAX_BYTES:
        raise ValueError(f"shape {shown(list(shape))} is larger than any memory")
    return prod(shape) * itemsize


def check_name(name: str) -> None:
    """Accept a tensor's name.

    Raises:
        ValueError: it is longer than 4096 bytes, cannot be written as UTF-8, or means something else in a
            safetensors header.
    """
    if name == "__metadata__":
        raise ValueError(f"a tensor cannot be called {name}")
    if len(name) > MAX_NAME or len(name.encode()) > MAX_NAME:
        raise ValueError(f"the name {shown(name)} is longer than {MAX_NAME} bytes")


def shown(value: object) -> str:
    """Something out of a file for a message: on one line, and not longer than that should be."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, as `object_pairs_hook` gets it.

    Raises:
        ValueError: a name occurs twice.
    """
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result
