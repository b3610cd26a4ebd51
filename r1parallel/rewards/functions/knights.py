"""Knights and knaves: who always tells the truth, and who always lies?"""

import re
from collections.abc import Sequence

from r1parallel.rewards.answers.extract import last_answer
from r1parallel.rewards.functions.formats import has_tags_in_order, with_prefilled_think

_STATEMENT = re.compile(r"\b([^\W\d_]+)\s+is\s+an?\s+(knight|knave)\b", re.IGNORECASE)
_ROLE = re.compile(r"knight|knave", re.IGNORECASE)


def kk_reward(*, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]) -> list[float | None]:
    """3 for the right roles in the last `<answer>`, -0.5 for wrong ones, -1 for unreadable ones, -3 without the tags.

    The solution says "NAME is a knight" or "NAME is a knave" of every inhabitant; None when it does not.
    """
    return [_grade(*row) for row in zip(prompts, completions, solution, strict=True)]


def _grade(prompt: str, completion: str, solution: str) -> float | None:
    gold = _roles(solution)
    if not gold:
        return None
    text = with_prefilled_think(prompt, completion)
    if not has_tags_in_order(text):
        return -1.0 - 2.0
    answer = last_answer(text) or ""
    roles = _roles(answer)
    # As many roles as people: who calls somebody both, or everybody everything, has not answered.
    if roles.keys() != gold.keys() or len(_ROLE.findall(answer)) != len(gold):
        return 1.0 - 2.0
    return 1.0 + (2.0 if roles == gold else -1.5)


def _roles(text: str) -> dict[str, str]:
    return {name.casefold(): role.casefold() for name, role in _STATEMENT.findall(text)}
