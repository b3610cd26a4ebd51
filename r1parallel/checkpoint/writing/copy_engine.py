"""Moving tensors into files: each is read once, window by window, and its parts go to the files that take them.

A window is WINDOW bytes or so, whatever the tensor's size; a worker holds one at a time. Workers are threads: reading,
writing, copying and hashing leave Python's lock alone. What is written is hashed on the way.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import prod
from pathlib import Path
from threading import Event, Lock

import numpy as np

from r1parallel.checkpoint.formats.manifest import new_hash
from r1parallel.checkpoint.formats.tensor_entry import Extent, FilePlan, as_bytes
from r1parallel.checkpoint.reading.streams import Streams
from r1parallel.checkpoint.reading.tensor_rows import TensorRows, words
from r1parallel.checkpoint.reading.windows import windows
from r1parallel.checkpoint.writing.folders import explained, flush
from r1parallel.errors import UserError
from r1parallel.parallel.layout.regions import Region, hull, overlap, shape_of, within

# Bytes of one write. For 4 MB at once Linux 6.18 takes pages of 2 MB into its cache: on a virtual machine much slower.
_AT_ONCE = 256 * 2**10
Progress = Callable[[int], object]  # called with a number of bytes that were written


@dataclass(frozen=True)
class Part:
    """A region of a tensor, and the places that take it: (file, where its bytes go)."""

    region: Region
    places: list[tuple[Path, tuple[Extent, ...]]]


@dataclass(frozen=True)
class Job:
    """One tensor and its parts. `name` is what the files call it."""

    name: str
    rows: TensorRows
    parts: list[Part]

    @property
    def nbytes(self) -> int:
        """Bytes to be written."""
        return sum(size for part in self.parts for _, extents in part.places for _, size in extents)


def create_file(file: Path, plan: FilePlan) -> None:
    """Make a file of its final size with everything in it but the tensors.

    Raises:
        UserError: it cannot be written.
    """
    with explained(file):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            os.ftruncate(descriptor, plan.size)
            for offset, blob in plan.blobs:
                _write(descriptor, memoryview(blob), offset)
        finally:
            os.close(descriptor)


def flush_files(files: Iterable[Path], workers: int) -> None:
    """Make files durable.

    Raises:
        UserError: the disk does not take them.
    """
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(_flush, files))


def run_jobs(jobs: Sequence[Job], workers: int, progress: Progress) -> dict[Path, dict[str, str]]:
    """Carry out jobs with several workers.

    Args:
        jobs: into files that exist.
        workers: at least 1.
        progress: is called by one worker at a time.

    Returns:
        File → name → hash of the tensor's bytes there.

    Raises:
        UserError: the first worker's that failed; the others stop soon after.
    """
    digests: dict[Path, dict[str, str]] = {place: {} for job in jobs for part in job.parts for place, _ in part.places}
    stop, counting = Event(), Lock()
    writing = {file: Lock() for file in digests}

    def write(file: Path, extents: Sequence[Extent], begin: int, data: memoryview) -> None:
        if stop.is_set():
            raise UserError(f"{file}: stopped")
        with writing[file]:  # the kernel lets one write at a time into a file, and the others spin
            _write_part(file, extents, begin, data)
        with counting:
            progress(len(data))

    def run(job: Job) -> None:
        for part, digest in zip(job.parts, _run_job(job, write), strict=True):
            for file, _ in part.places:
                digests[file][job.name] = digest

    with ThreadPoolExecutor(workers) as pool:
        # The largest first: a large one at the end would leave the other workers idle.
        futures = [pool.submit(run, job) for job in sorted(jobs, key=lambda job: -job.nbytes)]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # does nothing to workers that are done
            pool.shutdown(cancel_futures=True)
        for future in done:
            future.result()
    return digests


def _run_job(job: Job, write: Callable[[Path, Sequence[Extent], int, memoryview], None]) -> list[str]:
    """Copy one tensor; the hash of each part."""
    hashes = [new_hash() for _ in job.parts]
    region = hull(part.region for part in job.parts)
    with Streams() as streams:
        for window in windows(job.rows, region):
            shares = [overlap(part.region, window) for part in job.parts]
            if all(share is None for share in shares):
                continue
            block = np.empty(shape_of(window), words(job.rows.dtype))
            job.rows.read(window, block, streams)
            for part, share, digest in zip(job.parts, shares, hashes, strict=True):
                if share is None:
                    continue
                piece = np.ascontiguousarray(block[within(share, window)])
                digest.update(as_bytes(piece))
                first_row = share[0].start - part.region[0].start if share else 0
                begin = first_row * prod(piece.shape[1:]) * piece.itemsize
                for file, extents in part.places:
                    write(file, extents, begin, as_bytes(piece))
        streams.read_rest()
    return [digest.hexdigest() for digest in hashes]


def _write_part(file: Path, extents: Sequence[Extent], begin: int, data: memoryview) -> None:
    """Write bytes of a part from `begin` on. The file is opened each time: a thousand ranks' at once are too many."""
    with explained(file):
        descriptor = os.open(file, os.O_WRONLY)
        try:
            position = done = 0
            for offset, size in extents:
                skip = begin + done - position
                if skip < size and done < len(data):
                    count = min(size - skip, len(data) - done)
                    _write(descriptor, data[done : done + count], offset + skip)
                    done += count
                position += size
            assert done == len(data), f"{file}: {len(data)} bytes from {begin} on do not fit"
        finally:
            os.close(descriptor)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data[:_AT_ONCE], offset)
        data, offset = data[count:], offset + count


def _flush(file: Path) -> None:
    with explained(file):
        flush(file)
