"""Which host a process is on."""

import os
from pathlib import Path


def this_host() -> str:
    """Equal for processes that see each other under the same process ids, which those of another container do not.

    It is the same until the machine is started again. Host names would not do: those of containers are not unique.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
