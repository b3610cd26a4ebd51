"""A file of one JSON object a line, each with its step: appended to as a run goes, cut back when it resumes."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from r1parallel.atomic import replacing
from r1parallel.errors import UserError


class StepLines:
    """The open end of one such file.

    A fresh run (`resume_step` None) finds no earlier lines or is refused. A resumed run keeps the lines up to
    `resume_step`: what came after the checkpoint is written again.
    """

    def __init__(self, path: Path, resume_step: int | None):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if resume_step is not None:
                cut_after(path, resume_step)
            elif path.stat().st_size:
                raise UserError(
                    f"{path} holds an earlier run: set resume_training to go on with it, or choose another output_dir"
                )
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line and hand it to the operating system. Raises ValueError on a NaN or an infinity."""
        self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Give the file's objects in order; a half-written last line, left by a killed run, is passed over.

    Raises UserError when the file is missing or when any other line is not an object with an integer step.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: give the output_dir of a run that has logged at least one step")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            record = _parse(line)
            if record is not None:
                yield record
            elif next(lines, None) is not None:
                raise UserError(f"{path}, line {number}: not a JSON object with an integer step; mend or delete it")


def cut_after(path: Path, last_step: int) -> None:
    """Keep only the whole lines whose step is at most `last_step`; the file is replaced in one go."""
    kept = [record for record in read_records(path) if record["step"] <= last_step]
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # neither JSON nor UTF-8
        return None
    whole = isinstance(record, dict) and type(record.get("step")) is int
    return record if whole else None
