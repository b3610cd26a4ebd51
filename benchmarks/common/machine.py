"""What every benchmark says of the machine, and how it keeps what it found."""

import os
import platform
from pathlib import Path
from typing import Any

from r1parallel.atomic import replacing


def hardware(cores: int) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cpus": os.cpu_count(),
        "cores": cores,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def said(results: dict[str, Any]) -> str:
    """Date, hardware and versions in a line."""
    machine, versions = results["hardware"], results["versions"]
    named = ", ".join(f"{name} {text}" for name, text in versions.items())
    memory = f"{machine['memory_bytes'] / 1e9:.0f} GB of memory"
    cores = f"{machine['cores']} cores used of {machine['cpus']}"
    return f"{results['date']}, {machine['processor']}, {cores}, {memory}; {named}."
