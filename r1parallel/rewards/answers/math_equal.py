"""Symbolic comparison by math-verify, without a time limit of its own.

math-verify limits its time by SIGALRM, which raises outside the main thread and inside SymPy, which may swallow it;
where callers catch that, every score is 0. Here the worker that runs the reward has the limit (see `pool`).
"""

import functools
import logging
import re
from types import ModuleType

from r1parallel.errors import UserError
from r1parallel.rewards.answers.numerals import unwrap
from r1parallel.rewards.sandbox.call_limits import CALL_LIMITS

_WORDS = re.compile(r"[A-Za-z]{3,}(?: [A-Za-z]+)*")


def math_equal(gold: str, answer: str) -> float | None:
    """1.0 when `answer` equals `gold`, 0.0 when not, None when `gold` is unreadable.

    Equal strings and plain words are settled here, the rest goes to math-verify. Raises `UserError` without it.
    """
    gold, answer = unwrap(gold), unwrap(answer)
    if gold == answer:
        return 1.0
    if _WORDS.fullmatch(gold):  # as LaTeX, "east" and "seat" are the same product of four letters
        return float(gold.casefold() == answer.casefold())
    return _verify(gold, _box(answer))


def math_equal_anywhere(gold: str, text: str) -> float | None:
    r"""The same for the answer that math-verify finds in `text`: in a `\boxed{..}`, else a formula or a number."""
    return _verify(unwrap(gold), text)


def _verify(gold: str, text: str) -> float | None:
    library = _math_verify()
    parsed_gold = library.parse(_box(gold), fallback_mode="no_fallback", parsing_timeout=None)
    if not parsed_gold:
        return None
    parsed = library.parse(text, fallback_mode="no_fallback", parsing_timeout=None)
    return float(bool(parsed) and library.verify(parsed_gold, parsed, timeout_seconds=None))


def _box(text: str) -> str:
    return f"\\boxed{{{text}}}"


@functools.lru_cache(maxsize=1)
def _math_verify() -> ModuleType:
    with CALL_LIMITS.untimed():  # SymPy takes a second to load
        try:
            import math_verify
        except ImportError as error:
            raise UserError(
                f"math-verify cannot be loaded ({error}): install it with pip install math-verify"
            ) from None
    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # it warns about each missing limit of its own
    return math_verify
