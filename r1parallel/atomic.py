"""Files that several processes share: they appear whole or not at all, and one process locks them at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; what was written there takes the place of `path` when the block ends well.

    When it does not, the temporary file is removed and `path` stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def lock(file: IO | int, wait: bool = True) -> bool:
    """Lock an open file, or its descriptor, until it is closed or the process ends, however it ends.

    Returns:
        False where another process has it; never with `wait`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
