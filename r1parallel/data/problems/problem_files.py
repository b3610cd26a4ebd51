"""Files of generated problems."""

import json
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from r1parallel.atomic import replacing
from r1parallel.data.problems.arithmetic import arithmetic_key
from r1parallel.data.problems.countdown import countdown_key
from r1parallel.data.text.sources import json_lines
from r1parallel.errors import UserError

_KEYS: dict[str, Callable[[dict[str, Any]], Any]] = {"countdown": countdown_key, "arithmetic": arithmetic_key}


def read_keys(kind: str, paths: Iterable[str | Path]) -> set[Any]:
    """Keys of all problems in `paths`, for the generators' `exclude`.

    Raises:
        UserError: a file is missing or a row of it is no problem of this kind.
    """
    keys = set()
    for path in map(Path, paths):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        for where, row in json_lines(path):
            try:
                keys.add(_KEYS[kind](row))
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{where}: not a row of {kind} problems") from None
    return keys


def write_problems(path: str | Path, rows: Iterable[dict[str, Any]], overwrite: bool = False) -> int:
    """Write rows as JSON lines, whole or not at all; return how many.

    Raises:
        UserError: the file exists and `overwrite` is off, its folder is missing, or there is no row.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists already; use --overwrite or another --output_path")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder; make it first")
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: no problem to write; --num must be at least 1")
    num_rows = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in chain([first], rows):
            file.write(json.dumps(row) + "\n")
            num_rows += 1
    return num_rows
