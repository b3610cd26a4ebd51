"""Reads thousands of damaged headers, then the files that are given, and prints what came of them, as JSON.

A process of its own, so that its memory counts. Arguments: a folder, the number of damaged headers, and pairs of a
format and a file.
"""

import json
import os
import random
import re
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from header_mutations import formats

from r1parallel.errors import UserError

SMALL_SECONDS, BIG_SECONDS = 5, 60
ADDRESS_SPACE = 8 * 2**30  # bytes, so that a mistake ends here and not with the machine


def stop(signum, frame):
    raise AssertionError("the step limit was reached")


def outcome(reader: Callable[[Path], object], file: Path, seconds: int) -> str:
    """`read`, `refused`, or what went wrong."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        reader(file)
        return "read"
    except UserError as error:
        text = str(error)
        return "refused" if len(text.splitlines()) == 1 and len(text) < 2000 else f"message {text[:200]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def peak() -> int:
    """The most memory that this process had, in bytes."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def main(folder: Path, count: int, big: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    signal.signal(signal.SIGALRM, stop)
    rng = random.Random(0)
    table = formats(folder)
    counts: dict[str, dict[str, int]] = {name: {"read": 0, "refused": 0} for name in table}
    wrong: list[str] = []
    descriptor = os.memfd_create("fuzzed")  # ten thousand files on a disk would take most of the time
    file = Path(f"/proc/self/fd/{descriptor}")
    before = peak()
    for index in range(count):
        name = list(table)[index % len(table)]
        reader, valid, mutations = table[name]
        content = rng.choice(mutations)(rng, rng.choice(valid))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
        result = outcome(reader, file, SMALL_SECONDS)
        if result in counts[name]:
            counts[name][result] += 1
        else:
            wrong.append(f"{name} {index}: {result}: {content[:300]!r}")
    results = [outcome(table[name][0], Path(path), BIG_SECONDS) for name, path in zip(big[::2], big[1::2], strict=True)]
    print(json.dumps({"counts": counts, "wrong": wrong, "big": results, "growth": peak() - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
