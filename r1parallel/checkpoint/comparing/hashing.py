"""Reading many tensors whole, several at a time, to hash them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from math import prod
from threading import Event, Lock
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from r1parallel.checkpoint.formats.dtypes import DTYPES
from r1parallel.checkpoint.formats.manifest import new_hash
from r1parallel.checkpoint.formats.tensor_entry import as_bytes
from r1parallel.checkpoint.reading.streams import Streams
from r1parallel.checkpoint.reading.tensor_rows import TensorRows, words
from r1parallel.checkpoint.reading.windows import windows
from r1parallel.checkpoint.writing.copy_engine import Progress
from r1parallel.parallel.layout.regions import shape_of, whole

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def hash_rows(rows: TensorRows, progress: Progress) -> str:
    """The hash of a tensor's bytes in row order, the same however it is stored.

    Args:
        rows: the full tensor. Where its files have manifests, what is stored is compared with them.
        progress: called with the bytes of every window.

    Raises:
        UserError: it cannot be read, is not what a manifest says, two copies differ, or a cast does not fit.
    """
    digest = new_hash()
    with Streams() as streams:
        for window in windows(rows, whole(rows.shape)):
            block = np.empty(shape_of(window), words(rows.dtype))
            rows.read(window, block, streams)
            digest.update(as_bytes(block))
            progress(block.nbytes)
    return digest.hexdigest()


def byte_count(rows: TensorRows) -> int:
    """Size of a full tensor."""
    return prod(rows.shape) * DTYPES[rows.dtype].itemsize


def work_through(
    work: Callable[[_Item, Progress], _Result], items: Sequence[_Item], nbytes: int, workers: int, title: str
) -> Iterator[_Result]:
    """Results of `work(item, progress)` in the order of the items, several at a time, behind a bar of `nbytes` bytes.

    When one fails, or the caller stops, the others end at their next call of `progress`.
    """
    stop, lock = Event(), Lock()

    def advance(count: int) -> None:
        if stop.is_set():
            raise CancelledError
        with lock:
            bar.update(count)

    bar = tqdm(total=nbytes, unit="B", unit_scale=True, desc=title, disable=None)  # None: where there is a terminal
    with bar, ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(lambda item: work(item, advance), items)
        finally:
            stop.set()
