"""Which MindSpore wheels the CPU backend knows. It depends on their insides, so it refuses the others."""

import importlib.util
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from r1parallel.errors import UserError

# (version, machine) → how many sites patch.py has to find in the wheel's library.
TESTED = {("2.9.0", "x86_64"): 5}
UNTESTED = "R1_CPU_BACKEND_UNTESTED"


@dataclass(frozen=True)
class Wheel:
    """The installed MindSpore: its version, its package folder, and its number of sites (None: never tested)."""

    version: str
    folder: Path
    sites: int | None


def find_wheel() -> Wheel:
    """The installed wheel, found without importing it.

    Raises:
        UserError: it is none of those that this backend was tested on, and R1_CPU_BACKEND_UNTESTED is not 1.
    """
    found, machine = version("mindspore"), platform.machine()
    sites = TESTED.get((found, machine))
    if sites is None and os.environ.get(UNTESTED) != "1":
        tested = ", ".join(" ".join(key) for key in TESTED)
        raise UserError(
            f"mindspore {found} {machine}: the CPU backend was tested on {tested} only; install that, or set "
            f"{UNTESTED}=1 to try all the same, and check it with: python -m r1parallel.cpu_backend.selftest"
        )
    spec = importlib.util.find_spec("mindspore")
    assert spec is not None and spec.submodule_search_locations
    return Wheel(found, Path(spec.submodule_search_locations[0]), sites)
