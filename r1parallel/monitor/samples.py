"""Completions kept for a reader: what the model wrote, to which prompt, and what it was given for it."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from r1parallel.monitor.json_lines import StepLines, read_records

SAMPLES_FILE = "samples.jsonl"


class SampleLog:
    """Writes rows to `run_dir`/samples.jsonl.

    `resume_step` as in `MetricsWriter`: rows of later steps are cut off; None refuses a file that has rows.
    """

    def __init__(self, run_dir: Path, resume_step: int | None):
        self._lines = StepLines(run_dir / SAMPLES_FILE, resume_step)

    def write(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append one line a row.

        The report shows the keys prompt, completion, solution (text), reward (number) and parts
        (reward function -> number); any other key is only kept. A number that is not finite (an answer that
        could not be scored) becomes null.
        """
        for row in rows:
            self._lines.append({"step": step, **_finite_or_null(row)})

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def _finite_or_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite_or_null(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read samples.jsonl: one dict {"step": int, …} a row. Raises UserError if there is no such file."""
    return list(read_records(path))
