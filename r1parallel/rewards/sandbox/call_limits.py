"""What the reward that runs now may use, set by the worker that calls it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

DEFAULT_SECONDS = 5.0
DEFAULT_MEBIBYTES = 2048


@dataclass
class Allowance:
    """Limits of one call.

    Attributes:
        seconds: after which the call is ended.
        mebibytes: that it may allocate.
        untimed: a context in which no time counts, for loading a library at its first use.
    """

    seconds: float = DEFAULT_SECONDS
    mebibytes: int = DEFAULT_MEBIBYTES
    untimed: Callable[[], AbstractContextManager[None]] = nullcontext


CURRENT = Allowance()
