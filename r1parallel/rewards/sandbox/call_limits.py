"""The limits of the call of a reward that runs in this process; the worker that makes the call sets them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

DEFAULT_SECONDS = 5.0
DEFAULT_MEBIBYTES = 2048


@dataclass
class CallLimits:
    """Limits of one call of a reward function.

    Attributes:
        seconds: after which the call is ended.
        mebibytes: that it may allocate.
        untimed: a context in which no time counts, for loading a library at its first use.
    """

    seconds: float = DEFAULT_SECONDS
    mebibytes: int = DEFAULT_MEBIBYTES
    untimed: Callable[[], AbstractContextManager[None]] = nullcontext


CALL_LIMITS = CallLimits()
