import mmap
from ctypes import addressof, c_char

import pytest

from r1parallel.cpu_backend import patch
from r1parallel.cpu_backend.patch import LIBRARY, Segment, find_sites, library_segments, patch_frontend
from r1parallel.cpu_backend.wheel import Wheel
from r1parallel.errors import UserError

DEVICES = b"\0Ascend\0GPU\0CPU\0"
GROUP = b"\0nccl_world_group\0"
SITE = DEVICES + b"x" * 40 + GROUP
COMPARISON = bytes.fromhex("4883fb04 400f95c6 21f5 a807 0f95c0")  # as in the library of 2.9.0


def test_a_site_is_a_device_and_a_group_that_are_near():
    blob = b"y" * 100 + SITE
    assert find_sites(blob) == [[(blob.index(b"GPU"), b"CPU"), (blob.index(b"nccl"), b"mccl")]]


def test_the_comparison_of_the_number_of_ranks_gets_another_mask():
    blob = b"y" * 100 + COMPARISON
    assert find_sites(blob) == [[(blob.index(b"\x07"), b"\0")]]
    assert find_sites(blob.replace(b"\x04", b"\x05")) == []


def test_far_or_doubtful_literals_are_no_site():
    assert find_sites(DEVICES + b"x" * 1000 + GROUP) == []
    assert find_sites(DEVICES + DEVICES + GROUP) == []
    assert find_sites(b"Ascend GPU CPU" + GROUP) == []


def test_segments_are_those_of_the_library_that_can_only_be_read():
    maps = (
        f"1000-2000 r--p 00000000 08:01 7    /a folder/{LIBRARY}\n"
        f"2000-3000 r-xp 00001000 08:01 7    /a folder/{LIBRARY}\n"
        f"3000-4000 rw-p 00002000 08:01 7    /a folder/{LIBRARY}\n"
        "4000-5000 r--p 00000000 08:01 8    /a folder/libother.so\n"
        "5000-6000 rw-p 00000000 00:00 0\n"
    )
    read, execute = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_EXEC
    assert list(library_segments(maps, LIBRARY)) == [Segment(0x1000, 0x2000, read), Segment(0x2000, 0x3000, execute)]


@pytest.fixture
def library(monkeypatch, tmp_path):
    """Two sites, the first across a border of pages, in memory that the process believes to be the library."""
    memory = mmap.mmap(-1, 3 * mmap.PAGESIZE)
    memory[mmap.PAGESIZE - 9 : mmap.PAGESIZE - 9 + len(SITE)] = SITE
    memory[2 * mmap.PAGESIZE : 2 * mmap.PAGESIZE + len(SITE)] = SITE
    start = addressof(c_char.from_buffer(memory))
    maps = tmp_path / "maps"
    maps.write_text(f"{start:x}-{start + len(memory):x} r--p 00000000 08:01 7    /lib/{LIBRARY}\n")
    patch._protect(start, len(memory), mmap.PROT_READ)
    monkeypatch.setattr(patch, "_MAPS", maps)
    yield memory
    patch._protect(start, len(memory), mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize("sites", [2, None])
def test_every_site_is_patched_and_nothing_else(library, tmp_path, sites):
    before = bytes(library)
    assert patch_frontend(Wheel("2.9.0", tmp_path, sites)) == 2
    patched = SITE.replace(b"GPU", b"CPU").replace(b"nccl", b"mccl")
    assert bytes(library) == before.replace(SITE, patched)


def test_an_unexpected_number_of_sites_changes_nothing(library, tmp_path):
    before = bytes(library)
    with pytest.raises(UserError, match="has 2 sites to patch, not 4"):
        patch_frontend(Wheel("2.9.0", tmp_path, 4))
    assert bytes(library) == before


def test_an_untested_wheel_needs_a_site(monkeypatch, tmp_path):
    (tmp_path / "maps").write_text("")
    monkeypatch.setattr(patch, "_MAPS", tmp_path / "maps")
    with pytest.raises(UserError, match="has 0 sites to patch, not one or more"):
        patch_frontend(Wheel("3.1.4", tmp_path, None))


def test_a_page_that_cannot_be_written_is_an_error():
    with pytest.raises(OSError, match="mprotect"):
        patch._protect(0, mmap.PAGESIZE, mmap.PROT_READ)
