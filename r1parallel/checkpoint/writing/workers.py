"""How many workers move tensors."""

import os


def default_workers() -> int:
    """As many as there are processors for this process, up to 8: more only wait for the disk."""
    return min(8, len(os.sched_getaffinity(0)))
