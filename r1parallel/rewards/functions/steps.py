"""The reward for reasoning in visible steps."""

import re
from collections.abc import Sequence

_STEP = re.compile(r"Step \d+:|^\d+\.|(?<=\n)[-*]|First,|Second,|Next,|Finally,", re.MULTILINE)
_ENOUGH = 3


def steps_reward(*, prompts: Sequence[str], completions: Sequence[str], solution: Sequence[str]) -> list[float | None]:
    """A third for each mark of a step, at most 1: "Step 2:", a numbered or bulleted line, "First,", "Finally," ..."""
    return [min(1.0, len(_STEP.findall(completion)) / _ENOUGH) for completion in completions]
