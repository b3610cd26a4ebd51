"""Going through a tensor in windows of rows that bound the memory, and reading one into memory."""

from collections.abc import Iterator

import numpy as np

from r1parallel.checkpoint.formats.dtypes import DTYPES
from r1parallel.checkpoint.reading.streams import Streams
from r1parallel.checkpoint.reading.tensor_rows import TensorRows, words
from r1parallel.errors import UserError
from r1parallel.parallel.layout.regions import Region, shape_of, whole

WINDOW = 2 * 2**20  # bytes that reading a window takes, about: small enough to stay in the processor's cache
_LARGEST_STEP = 2**29  # bytes; a window is never less than one row, or one group of interleaved rows


def windows(rows: TensorRows, region: Region) -> Iterator[Region]:
    """Cut a region into windows of whole rows, in order.

    Raises:
        UserError: a row is so long that the memory could not be bounded.
    """
    if not region:
        yield region
        return
    if rows.row_step * rows.row_bytes > _LARGEST_STEP:
        raise UserError(f"a tensor {list(rows.shape)} has rows of {rows.row_bytes} bytes; more than any model has")
    fitting = WINDOW // max(1, rows.row_bytes) // rows.row_step * rows.row_step
    step = max(fitting, rows.row_step)
    begin, stop = region[0].start, region[0].stop
    while begin < stop:
        end = min(stop, (begin // step + 1) * step)
        yield (slice(begin, end), *region[1:])
        begin = end


def read_rows(rows: TensorRows, region: Region | None = None) -> np.ndarray:
    """Read a region of a tensor, or all of it, into memory, in its own dtype (BF16: `ml_dtypes.bfloat16`)."""
    region = whole(rows.shape) if region is None else region
    result = np.empty(shape_of(region), words(rows.dtype))
    with Streams() as streams:
        for window in windows(rows, region):
            rows.read(window, window_of(result, window, region), streams)
    return result.view(DTYPES[rows.dtype])


def window_of(array: np.ndarray, window: Region, region: Region) -> np.ndarray:
    """The rows of an array, which holds a region, that a window of the region stands for."""
    return array[window[0].start - region[0].start : window[0].stop - region[0].start] if region else array


def are_equal(first: TensorRows, second: TensorRows) -> bool:
    """Whether two tensors are the same bit for bit."""
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    with Streams() as streams:
        for window in windows(first, whole(first.shape)):
            one, other = (np.empty(shape_of(window), words(first.dtype)) for _ in range(2))
            first.read(window, one, streams)
            second.read(window, other, streams)
            if not np.array_equal(one, other):
                return False
    return True
