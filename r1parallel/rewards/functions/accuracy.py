"""Rewards for the right answer: they differ only in where a completion's answer is looked for."""

import re
from collections.abc import Callable, Sequence

from r1parallel.rewards.answers.extract import after_hashes, gold_answer, last_answer, last_boxed, strip_end_tokens
from r1parallel.rewards.answers.math_equal import math_equal, math_equal_anywhere
from r1parallel.rewards.answers.numerals import Number, first_number, last_number, read_answer, same_number
from r1parallel.rewards.functions.formats import is_boxed_answer

_ANSWER_LINE = re.compile(r"answer[ \t]*:[ \t]*([^\n]+)", re.IGNORECASE)
_END = 300  # letters at the end of a completion in which `answer_line_reward` looks


def accuracy_reward(
    *, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]
) -> list[float | None]:
    r"""1 when the completion's last number is the gold number.

    A gold answer that is no number is compared with the last `\boxed{..}`, else with the last `<answer>`.
    """
    return [_grade_last_number(*row) for row in zip(completions, solution, strict=True)]


def qwen_accuracy_reward(
    *, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]
) -> list[float | None]:
    r"""1 when the last `\boxed{..}` holds the gold answer."""
    return _grade_all(last_boxed, completions, solution)


def answer_reward(*, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]) -> list[float | None]:
    r"""1 when the last `<answer>..</answer>`, or the `\boxed{..}` in it, holds the gold answer."""
    return _grade_all(_tagged_answer, completions, solution)


def gsm8k_reward(*, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]) -> list[float | None]:
    """1 when the first number after the last "####" is the gold number; None when the gold is no number."""
    return [_grade_hashes(*row) for row in zip(completions, solution, strict=True)]


def math_verify_reward(
    *, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]
) -> list[float | None]:
    """1 when the answer that math-verify finds in the completion equals the gold answer."""
    return [_grade_anywhere(*row) for row in zip(completions, solution, strict=True)]


def boxed_penalty_reward(
    *, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]
) -> list[float | None]:
    r"""1 when the last `\boxed{..}` holds the gold answer, -0.5 when another, -1 when it is missing or blank."""
    rows = zip(completions, solution, strict=True)
    return [_rescale(_grade(gold_answer(gold), last_boxed(text)), -0.5 if _box(text) else -1.0) for text, gold in rows]


def boxed_sign_reward(
    *, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]
) -> list[float | None]:
    r"""1 when the last `\boxed{..}` holds the gold answer, else -1."""
    return [_rescale(score, -1.0) for score in _grade_all(last_boxed, completions, solution)]


def answer_line_reward(
    *, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]
) -> list[float | None]:
    r"""1 when the last "Answer: .." in the last 300 letters, or the `\boxed{..}` in it, is the gold answer, else -1."""
    return [_rescale(score, -1.0) for score in _grade_all(_answer_line, completions, solution)]


def strict_accuracy_reward(
    *, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]
) -> list[float | None]:
    r"""1 when `strict_format_reward` is satisfied and the `\boxed{..}` holds the gold answer."""
    rows = zip(prompts, completions, solution, strict=True)
    # A broken format has no answer to compare, but the gold answer must be readable all the same.
    return [
        _grade(gold_answer(gold), last_boxed(text) if is_boxed_answer(prompt, text) else None)
        for prompt, text, gold in rows
    ]


def _grade_last_number(completion: str, solution: str) -> float | None:
    gold = gold_answer(solution)
    gold_number = read_answer(gold)
    text = strip_end_tokens(completion)
    if gold_number is not None:
        return _grade_number(gold_number, last_number(text))
    answer = last_boxed(text)
    return _grade(gold, last_answer(text) if answer is None else answer)


def _grade_hashes(completion: str, solution: str) -> float | None:
    gold = read_answer(gold_answer(solution))
    if gold is None:
        return None
    marked = after_hashes(completion)
    return _grade_number(gold, None if marked is None else first_number(marked))


def _grade_all(
    find: Callable[[str], str | None], completions: Sequence[str], solution: Sequence[str]
) -> list[float | None]:
    rows = zip(completions, solution, strict=True)
    return [_grade(gold_answer(gold), find(completion)) for completion, gold in rows]


def _grade_anywhere(completion: str, solution: str) -> float | None:
    gold = gold_answer(solution)
    return math_equal_anywhere(gold, strip_end_tokens(completion)) if gold else None


def _rescale(score: float | None, wrong: float) -> float | None:
    return wrong if score == 0.0 else score


def _box(completion: str) -> str:
    return (last_boxed(completion) or "").strip()


def _answer_line(completion: str) -> str | None:
    lines = _ANSWER_LINE.findall(strip_end_tokens(completion)[-_END:])
    if not lines:
        return None
    boxed = last_boxed(lines[-1])
    return lines[-1] if boxed is None else boxed


def _tagged_answer(completion: str) -> str | None:
    tagged = last_answer(completion)
    boxed = None if tagged is None else last_boxed(tagged)
    return tagged if boxed is None else boxed


def _grade_number(gold: Number, answer: Number | None) -> float:
    return float(answer is not None and same_number(gold, answer))


def _grade(gold: str, answer: str | None) -> float | None:
    """Compare as numbers where both are, as strings where they are equal, else by math-verify."""
    if not gold:
        return None
    gold_number = read_answer(gold)
    # Without an answer only one question is left: is the gold answer readable at all?
    if not answer or not answer.strip():
        return 0.0 if gold_number is not None else math_equal(gold, "")
    number = read_answer(answer)
    if gold_number is not None and number is not None:
        return _grade_number(gold_number, number)
    return math_equal(gold, answer)
