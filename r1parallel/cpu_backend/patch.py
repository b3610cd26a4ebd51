"""Patch MindSpore's loaded frontend so that it accepts the CPU for semi_auto_parallel. No file changes.

The frontend accepts two device names, "Ascend" and "GPU", each with the name of its world group. The literals are
the compiler's: "GPU" and "nccl_world_group" lie close together once for every translation unit that needs both. They
become "CPU" and "mccl_world_group", which have the same lengths.

It also refuses numbers of ranks other than 1, 2, 4 and multiples of 8, the sizes of Ascend servers: it compares
`number & 7` with zero. The mask becomes 0, since models with 3 key heads need 3 ranks.
"""

import ctypes
import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from r1parallel.cpu_backend.wheel import Wheel
from r1parallel.errors import UserError

LIBRARY = "libmindspore_frontend.so"
_DEVICES = re.compile(rb"\0Ascend\0(GPU)\0CPU\0")
_GROUP = re.compile(rb"\0(nccl)_world_group\0")
# cmp rbx, 4; setne; and; test al, 7; setne: what is left of the check of the number of ranks on x86-64
_RANKS = re.compile(rb"\x48\x83\xfb\x04\x40\x0f\x95\xc6\x21\xf5\xa8(\x07)\x0f\x95\xc0")
# Literals of one translation unit are at most 80 bytes apart in 2.9.0; those of the next are 1000 bytes away.
_NEAR = 256
_MAPS = Path("/proc/self/maps")


@dataclass(frozen=True)
class Segment:
    """A readable segment of the library in memory, [start, end), and its protection as mprotect takes it."""

    start: int
    end: int
    protection: int


def patch_frontend(wheel: Wheel) -> int:
    """Patch the frontend that this process has loaded. To be called once, before the first parallel graph is compiled.

    Returns:
        The number of sites: pairs of a device name and a group name, and comparisons.

    Raises:
        UserError: the wheel's library has another number of sites than it had when it was tested; nothing is changed.
    """
    segments = library_segments(_MAPS.read_text(), LIBRARY)
    found = [(segment, site) for segment in segments for site in find_sites(_view(segment))]
    if not found or len(found) != (wheel.sites or len(found)):
        raise UserError(
            f"{LIBRARY} of mindspore {wheel.version} has {len(found)} sites to patch, not "
            f"{wheel.sites or 'one or more'}: this build is not the tested one; install mindspore from PyPI"
        )
    for segment, edits in found:
        for offset, data in edits:
            _write(segment, offset, data)
    return len(found)


def find_sites(blob: bytes | ctypes.Array[ctypes.c_char]) -> list[list[tuple[int, bytes]]]:
    """The edits of each site, (offset, new bytes): a "GPU" and the "nccl" near it, or a mask."""
    devices = [found.start(1) for found in _DEVICES.finditer(blob)]
    sites = []
    for found in _GROUP.finditer(blob):
        group = found.start(1)
        near = [device for device in devices if abs(device - group) < _NEAR]
        sites += [[(near[0], b"CPU"), (group, b"mccl")]] if len(near) == 1 else []
    return sites + [[(found.start(1), b"\0")] for found in _RANKS.finditer(blob)]


def library_segments(maps: str, library: str) -> Iterator[Segment]:
    """The read-only segments of a library, from the text of /proc/self/maps."""
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and os.path.basename(fields[5]) == library and fields[1].startswith("r-"):
            start, end = (int(value, 16) for value in fields[0].split("-"))
            executable = mmap.PROT_EXEC if fields[1][2] == "x" else 0
            yield Segment(start, end, mmap.PROT_READ | executable)


def _view(segment: Segment) -> ctypes.Array[ctypes.c_char]:
    """The segment's bytes, without a copy."""
    return (ctypes.c_char * (segment.end - segment.start)).from_address(segment.start)


def _write(segment: Segment, offset: int, data: bytes) -> None:
    """Overwrite bytes of a segment; the kernel gives this process its own copy of the page."""
    address = segment.start + offset
    page = mmap.PAGESIZE
    first = address // page * page
    size = (address + len(data) - first + page - 1) // page * page
    _protect(first, size, segment.protection | mmap.PROT_WRITE)
    ctypes.memmove(address, data, len(data))
    _protect(first, size, segment.protection)


def _protect(address: int, size: int, protection: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), protection):
        error = ctypes.get_errno()
        raise OSError(error, f"mprotect: {os.strerror(error)}")
