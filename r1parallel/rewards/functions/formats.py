"""Rewards for the shape of a completion, whatever its answer is worth."""

import re
from collections.abc import Sequence

from r1parallel.rewards.answers.extract import count_boxed, last_answer, last_boxed, strip_end_tokens
from r1parallel.rewards.answers.numerals import parse_number

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_THINK_ANSWER = re.compile(r"\s*<think>(?P<think>.*)</think>\s*<answer>(?P<answer>.*)</answer>\s*", re.DOTALL)
_PREFILLED = re.compile(r"<think>\s*\Z")


def format_reward(*, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]) -> list[float | None]:
    """1 for `<think>..</think> <answer>..</answer>` and nothing else, each tag once and neither part blank.

    A `<think>` that the chat template put at the very end of the prompt belongs to the completion.
    """
    return [float(_is_think_answer(*row)) for row in zip(prompts, completions, strict=True)]


def gsm8k_format_reward(
    *, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]
) -> list[float | None]:
    """1 when the last line is "#### " and one number."""
    return [float(_ends_with_hashes(completion)) for completion in completions]


def boxed_format_reward(
    *, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]
) -> list[float | None]:
    r"""1 when there is exactly one `\boxed{..}`, closed and not blank."""
    return [float(_has_one_box(completion)) for completion in completions]


def strict_format_reward(
    *, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]
) -> list[float | None]:
    r"""1 for `<think>..</think> .. <answer>.. \boxed{..} ..</answer>` from start to end, else -0.5."""
    return [1.0 if is_boxed_answer(*row) else -0.5 for row in zip(prompts, completions, strict=True)]


def with_prefilled_think(prompt: str, completion: str) -> str:
    """`completion` without stop tokens at its end, and with the `<think>` that the prompt may end in."""
    text = strip_end_tokens(completion)
    return f"<think>{text}" if _PREFILLED.search(prompt) else text


def has_tags_in_order(text: str) -> bool:
    """Whether `<think>`, `</think>`, `<answer>` and `</answer>` stand in `text` once each, in this order."""
    places = [text.find(tag) for tag in _TAGS]
    return all(text.count(tag) == 1 for tag in _TAGS) and places == sorted(places)


def is_boxed_answer(prompt: str, completion: str) -> bool:
    r"""Whether the tags are in order, from the first to the last letter, with the one `\boxed{..}` in the answer."""
    text = with_prefilled_think(prompt, completion).strip()
    whole = text.startswith("<think>") and text.endswith("</answer>") and has_tags_in_order(text)
    return whole and _has_one_box(text) and _has_one_box(last_answer(text) or "")


def _is_think_answer(prompt: str, completion: str) -> bool:
    text = with_prefilled_think(prompt, completion)
    if not has_tags_in_order(text):
        return False
    match = _THINK_ANSWER.fullmatch(text)
    return match is not None and bool(match["think"].strip() and match["answer"].strip())


def _ends_with_hashes(completion: str) -> bool:
    last_line = strip_end_tokens(completion).rstrip().rpartition("\n")[2].strip()
    return last_line.startswith("####") and parse_number(last_line.removeprefix("####")) is not None


def _has_one_box(completion: str) -> bool:
    boxed = last_boxed(completion)
    return boxed is not None and bool(boxed.strip()) and count_boxed(completion) == 1
