"""Rows of data set files, as questions, answers and solutions."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from r1parallel.errors import UserError


@dataclass(frozen=True)
class Example:
    """One row: `answer` is the text that SFT learns, `solution` the gold that rewards compare with."""

    question: str
    answer: str
    solution: str


class _BadRow(Exception):
    """What is wrong with one row; the reader adds where it stands."""


def _text(row: dict[str, Any], key: str) -> str:
    value = _optional_text(row, key)
    if not value:
        raise _BadRow(f"{key!r} is missing or empty")
    return value


def _optional_text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:  # Parquet has no other way to leave a key out
        return ""
    if not isinstance(value, str):
        raise _BadRow(f"{key!r} is {value!r}; expected text")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise _BadRow(f"{key!r} holds half of a surrogate pair, which is no character")
    return value if value.strip() else ""


def _gsm8k(row: dict[str, Any]) -> Example:
    question, answer = _text(row, "question"), _text(row, "answer")
    _, mark, gold = answer.rpartition("#### ")
    gold = gold.replace(",", "").strip()
    if not mark or not gold:
        raise _BadRow("'answer' has no '#### ' with a solution behind it")
    return Example(question, answer, gold)


def _countdown(row: dict[str, Any]) -> Example:
    nums, target = row.get("nums"), row.get("target")
    if not isinstance(nums, list) or len(nums) < 2 or not all(type(n) is int for n in nums):
        raise _BadRow(f"'nums' is {nums!r}; expected a list of at least two whole numbers")
    if type(target) is not int:
        raise _BadRow(f"'target' is {target!r}; expected a whole number")
    numbers = ", ".join(map(str, nums[:-1])) + f" and {nums[-1]}"
    question = (
        f"Combine the numbers {numbers} into an arithmetic expression that equals {target}. "
        "Use each number exactly once, and only +, -, *, / and parentheses. "
        "Write the expression alone between <answer> and </answer>."
    )
    return Example(question, _optional_text(row, "answer"), json.dumps({"nums": nums, "target": target}))


def _arithmetic(row: dict[str, Any]) -> Example:
    return Example(_text(row, "question"), _optional_text(row, "answer"), _text(row, "solution"))


def _alpaca(row: dict[str, Any]) -> Example:
    instruction, context, output = (
        _text(row, "instruction"),
        _optional_text(row, "input"),
        _text(row, "output"),
    )
    return Example(f"{instruction}\n{context}" if context else instruction, output, output)


def _openr1_math(row: dict[str, Any]) -> Example:
    return Example(_text(row, "problem"), _optional_text(row, "solution"), _text(row, "answer"))


# data set → (keys that are read, reader of one row)
_DATASETS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], Example]]] = {
    "gsm8k": (("question", "answer"), _gsm8k),
    "countdown": (("nums", "target", "answer"), _countdown),
    "arithmetic": (("question", "answer", "solution"), _arithmetic),
    "alpaca": (("instruction", "input", "output"), _alpaca),
    "openr1_math": (("problem", "solution", "answer"), _openr1_math),
}
DATASET_TYPES = tuple(_DATASETS)


class Source:
    """The examples of one file, read row by row: JSON lines, a JSON list, or Parquet (by its ending).

    `bad` counts the malformed rows that the last pass skipped. With `answers_required` a row without text to
    learn is malformed too.

    Raises:
        UserError: the data set is unknown or the file is missing; while iterating, the file is unreadable,
            holds no row, or holds a malformed one and `skip_bad_rows` is off.
    """

    def __init__(
        self, dataset_type: str, path: str | Path, skip_bad_rows: bool = False, answers_required: bool = True
    ) -> None:
        if dataset_type not in _DATASETS:
            raise UserError(f"dataset_type {dataset_type!r} is unknown; known: {', '.join(DATASET_TYPES)}")
        self._path = Path(path)
        if not self._path.is_file():
            raise UserError(f"{path}: no such file")
        self._keys, self._parse = _DATASETS[dataset_type]
        self._skip_bad_rows = skip_bad_rows
        self._answers_required = answers_required
        self.bad = 0

    def __iter__(self) -> Iterator[Example]:
        self.bad = 0
        empty = True
        for where, row in self._rows():
            empty = False
            try:
                yield self._example(row)
            except _BadRow as error:
                if not self._skip_bad_rows:
                    raise UserError(f"{where}: {error}; mend the row or use --skip_bad_rows") from None
                self.bad += 1
        if empty:
            raise UserError(f"{self._path}: the data set is empty")

    def _rows(self) -> Iterator[tuple[str, Any]]:
        if self._path.suffix == ".parquet":
            return _parquet_rows(self._path, self._keys)
        with self._path.open("rb") as file:
            is_list = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        return _list_rows(self._path) if is_list else json_lines(self._path)

    def _example(self, row: Any) -> Example:
        if isinstance(row, _BadRow):
            raise row
        if not isinstance(row, dict):
            raise _BadRow("expected an object of keys and values")
        example = self._parse(row)
        if self._answers_required and not example.answer:
            raise _BadRow("no answer to learn; use --prompts_only where none is needed")
        return example


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, value) of each line that is not blank; the value of a line that is no JSON is an exception."""
    with path.open("rb") as file:  # bytes: only a line feed ends a line
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", _parsed(line)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        return _BadRow(f"not readable as JSON: {error}")


def _list_rows(path: Path) -> Iterator[tuple[str, Any]]:
    rows = _parsed(path.read_bytes())
    if isinstance(rows, _BadRow):
        raise UserError(f"{path}: {rows}")
    for number, row in enumerate(rows, 1):
        yield f"{path}: item {number}", row


def _parquet_rows(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [key for key in keys if key in file.schema_arrow.names]
            if not columns:
                raise UserError(f"{path}: has none of the columns {', '.join(keys)}")
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not readable as Parquet: {error}") from None
