"""The other side of `math_equal`: compares answers with math-verify in a process that may be killed.

One JSON object a line on standard input, one on standard output:
{"gold": str, "answer": str, "time_limit": seconds} → {"equal": true, false, or null for an unreadable gold}.
"""

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable

from math_verify import parse, verify

# An expression such as 9^9^9 eats memory faster than time.
_MEMORY_BYTES = 2 << 30


def compare(gold: str, answer: str) -> bool | None:
    """Whether `answer` equals `gold`, both LaTeX or plain expressions; None when `gold` cannot be read."""
    parsed_gold = _read(gold)
    if not parsed_gold:
        return None
    parsed_answer = _read(answer)
    return bool(parsed_answer) and verify(parsed_gold, parsed_answer, timeout_seconds=None)


def serve(requests: Iterable[bytes], reply: Callable[[dict], None]) -> None:
    """Answer every request; SIGALRM ends this process when one takes longer than its own limit."""
    for line in requests:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["time_limit"])
        equal = compare(request["gold"], request["answer"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply({"equal": equal})


def _read(text: str) -> list:
    # No timeout of math-verify's own: it raises an exception inside SymPy, which may swallow it.
    return parse(f"\\boxed{{{text}}}", fallback_mode="no_fallback", parsing_timeout=None)


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as statm:
        used = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, used + _MEMORY_BYTES))


def _main() -> None:
    # Nothing but replies may reach the pipe, so whatever else is printed goes to standard error.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # The signal's default action ends the process even in the middle of one long C call, and also when
    # the parent is gone. A parent may have had it ignored or blocked, and both are inherited.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    logging.disable(logging.CRITICAL)
    _limit_memory()

    def reply(message: dict) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    reply({"ready": True})
    serve(sys.stdin.buffer, reply)


if __name__ == "__main__":
    _main()
