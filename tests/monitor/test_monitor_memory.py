import pytest

from r1parallel.monitor import memory


def test_used_fraction_is_what_is_not_available(tmp_path, monkeypatch):
    fake = tmp_path / "meminfo"
    fake.write_text("MemTotal:       1000 kB\nMemFree:          10 kB\nMemAvailable:    250 kB\n")
    monkeypatch.setattr(memory, "_HOST", fake)
    assert memory.host_memory_used_fraction() == 0.75


def test_this_host_is_partly_used():
    assert 0.0 < memory.host_memory_used_fraction() < 1.0


def test_peak_is_in_bytes_and_grows():
    before = memory.peak_resident_bytes()
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    after = memory.peak_resident_bytes()
    assert before > 1 << 20
    assert after >= before
    assert after > len(block)


def test_a_kernel_without_the_line_is_named(tmp_path, monkeypatch):
    fake = tmp_path / "status"
    fake.write_text("Name:\tx\n")
    monkeypatch.setattr(memory, "_PROCESS", fake)
    with pytest.raises(OSError, match="VmHWM"):
        memory.peak_resident_bytes()
