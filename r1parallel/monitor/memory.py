"""How full the host's memory is, and how much of it this process has taken at most."""

from pathlib import Path

_KIB = 1024
_HOST = Path("/proc/meminfo")
_PROCESS = Path("/proc/self/status")


def host_memory_used_fraction() -> float:
    """Give the share of the host's memory (0 to 1) that a new program could not have: 1 - MemAvailable / MemTotal."""
    return 1.0 - _field(_HOST, "MemAvailable") / _field(_HOST, "MemTotal")


def peak_resident_bytes() -> int:
    """Give the most memory, in bytes, that this process has had resident at once (VmHWM)."""
    return _field(_PROCESS, "VmHWM")


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * _KIB
    raise OSError(f"{path} has no line {name}: this needs a Linux kernel's /proc")
