"""The stages of a recipe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: on the screen, in summary.json, and of its file in stages/.
        script: below the project's root.
        flags: its command line.
        settings: what must not change once it is finished.
        output: what it makes.
        needs: stages whose output it reads.
        resumable: whether it takes --resume_training.
    """

    name: str
    script: str
    flags: list[str]
    settings: dict[str, Any]
    output: Path
    needs: tuple[str, ...] = ()
    resumable: bool = False


@dataclass
class Plan:
    """A checked recipe.

    Attributes:
        output: where its results go.
        limit_s: seconds that one stage may take.
        stages: in order.
        model: what the last of them makes.
    """

    output: Path
    limit_s: float
    stages: list[Stage] = field(default_factory=list)
    model: Path = Path()
