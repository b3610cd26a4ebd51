"""Rewards for the right answer: they differ only in where a completion's answer is looked for."""

from collections.abc import Callable, Sequence

from .extract import after_hashes, gold_answer, last_answer, last_boxed, strip_end_tokens
from .math_equal import math_equal
from .numerals import Number, first_number, last_number, read_answer, same_number


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
