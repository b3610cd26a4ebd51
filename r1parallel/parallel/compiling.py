"""A line for whoever waits for the compiler."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from r1parallel.parallel.launch.waiting import waiting
from r1parallel.parallel.launch.world import CompileOnlyWorld, World


@contextmanager
def compiling(what: str, world: World) -> Iterator[None]:
    """Around the compilation of graphs, or their loading from the cache; every rank calls it.

    Rank 0 says what is being compiled and, when it is done, how many seconds that took; a `CompileOnlyWorld` says
    nothing. That goes to stderr, like progress: what a tool prints for a program to read stays whole.
    """
    said, began = world.is_leader and not isinstance(world, CompileOnlyWorld), time.perf_counter()
    if said:
        print(f"compiling {what} …", end="", file=sys.stderr, flush=True)
    try:
        with waiting(f"compilation of {what}"):
            yield
    finally:
        if said:
            print(f" {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
