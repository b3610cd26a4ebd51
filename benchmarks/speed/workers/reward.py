"""The reward of benchmarks.speed: it differs from one completion to the next, so that every update moves the model.

Whole groups without a right answer, as this model draws them, have gradients of zeros only.
"""

from collections.abc import Sequence


def share_of_spaces(*, completions: Sequence[str], **_: object) -> list[float | None]:
    """As ours and TRL call it."""
    return [text.count(" ") / max(1, len(text)) for text in completions]
