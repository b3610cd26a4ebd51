"""Where the answer stands in a completion, and where the gold answer stands in a solution."""

import re

from r1parallel.rewards.answers.numerals import unwrap

_BOXED = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>")


def strip_end_tokens(completion: str) -> str:
    """`completion` without the blanks and the stop tokens that a decoder may have left at its end."""
    text = completion.rstrip()
    while token := next(filter(text.endswith, _END_TOKENS), None):
        text = text.removesuffix(token).rstrip()
    return text


def count_boxed(text: str) -> int:
    r"""How many `\boxed{` are opened."""
    return len(_BOXED.findall(text))


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{..}`, nested braces included; None without one, or if it is never closed."""
    openings = list(_BOXED.finditer(text))
    return _until_closing_brace(text, openings[-1].end()) if openings else None


def last_answer(text: str) -> str | None:
    """What stands in the last complete `<answer>..</answer>`, or None."""
    found = _ANSWER.findall(text)
    return found[-1] if found else None


def after_hashes(text: str) -> str | None:
    """The rest of the line after the last "####" (GSM8K's mark), or None without one."""
    _, mark, rest = text.rpartition("####")
    return rest.partition("\n")[0] if mark else None


def gold_answer(solution: str) -> str:
    r"""The gold answer of a data set's solution: after "####", else in the last `\boxed{..}`, else all of it.

    The `$..$` that mindrlhf puts around a solution is taken off. Empty when there is no answer.
    """
    marked = after_hashes(solution)
    boxed = last_boxed(solution) if marked is None else None
    return unwrap(next(part for part in (marked, boxed, solution) if part is not None))


def _until_closing_brace(text: str, start: int) -> str | None:
    depth = 1
    for brace in _BRACE.finditer(text, start):  # an escaped brace, as in \{1, 2\}, is text
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[start : brace.start()]
    return None
