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


class BadRow(Exception):
    """What is wrong with one row; the reader adds where it stands."""


@dataclass(frozen=True)
class RowFormat:
    """How rows are read: the keys that count, and what makes an example of a row (or raises BadRow)."""

    keys: tuple[str, ...]
    parse: Callable[[dict[str, Any]], Example]


def required_text(row: dict[str, Any], key: str) -> str:
    """Text of `key`; BadRow where it is missing, blank or no text."""
    value = optional_text(row, key)
    if not value:
        raise BadRow(f"{key!r} is missing or empty")
    return value


def optional_text(row: dict[str, Any], key: str) -> str:
    """Text of `key`, empty where it is missing or blank; BadRow where it is no text."""
    value = row.get(key)
    if value is None:  # Parquet has no other way to leave a key out
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{key!r} is {value!r}; expected text")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise BadRow(f"{key!r} holds half of a surrogate pair, which is no character")
    return value if value.strip() else ""


def _gsm8k(row: dict[str, Any]) -> Example:
    question, answer = required_text(row, "question"), required_text(row, "answer")
    _, mark, gold = answer.rpartition("#### ")
    gold = gold.replace(",", "").strip()
    if not mark or not gold:
        raise BadRow("'answer' has no '#### ' with a solution behind it")
    return Example(question, answer, gold)


def _countdown(row: dict[str, Any]) -> Example:
    nums, target = row.get("nums"), row.get("target")
    if not isinstance(nums, list) or len(nums) < 2 or not all(type(n) is int for n in nums):
        raise BadRow(f"'nums' is {nums!r}; expected a list of at least two whole numbers")
    if type(target) is not int:
        raise BadRow(f"'target' is {target!r}; expected a whole number")
    numbers = ", ".join(map(str, nums[:-1])) + f" and {nums[-1]}"
    question = (
        f"Combine the numbers {numbers} into an arithmetic expression that equals {target}. "
        "Use each number exactly once, and only +, -, *, / and parentheses. "
        "Write the expression alone between <answer> and </answer>."
    )
    return Example(question, optional_text(row, "answer"), json.dumps({"nums": nums, "target": target}))


def _arithmetic(row: dict[str, Any]) -> Example:
    return Example(required_text(row, "question"), optional_text(row, "answer"), required_text(row, "solution"))


def _alpaca(row: dict[str, Any]) -> Example:
    instruction, context, output = (
        required_text(row, "instruction"),
        optional_text(row, "input"),
        required_text(row, "output"),
    )
    return Example(f"{instruction}\n{context}" if context else instruction, output, output)


def _problem(row: dict[str, Any]) -> Example:
    return Example(required_text(row, "problem"), optional_text(row, "solution"), required_text(row, "answer"))


def _question_answer(row: dict[str, Any]) -> Example:
    answer = required_text(row, "answer")
    return Example(required_text(row, "question"), answer, answer)


def only_message(row: dict[str, Any], key: str) -> str:
    """Text of a prompt that is text itself or a list with one chat message."""
    value = row.get(key)
    if not isinstance(value, list):
        return required_text(row, key)
    if len(value) != 1 or not isinstance(value[0], dict):
        raise BadRow(f"{key!r} is {value!r}; expected one message")
    return required_text(value[0], "content")


def ground_truth(row: dict[str, Any], key: str) -> str:
    """Gold solution in a column that is text itself or holds `ground_truth`, as verl's reward_model."""
    value = row.get(key)
    return required_text(value, "ground_truth") if isinstance(value, dict) else required_text(row, key)


def _math_17k(row: dict[str, Any]) -> Example:
    gold = ground_truth(row, "solution" if row.get("reward_model") is None else "reward_model")
    return Example(only_message(row, "prompt"), "", gold)


_PROBLEM = RowFormat(("problem", "solution", "answer"), _problem)
_QUESTION_ANSWER = RowFormat(("question", "answer"), _question_answer)
_DATASETS = {
    "gsm8k": RowFormat(("question", "answer"), _gsm8k),
    "countdown": RowFormat(("nums", "target", "answer"), _countdown),
    "arithmetic": RowFormat(("question", "answer", "solution"), _arithmetic),
    "alpaca": RowFormat(("instruction", "input", "output"), _alpaca),
    "openr1_math": _PROBLEM,
    "deepscaler": _PROBLEM,
    "math_17k": RowFormat(("prompt", "reward_model", "solution"), _math_17k),
    "openR1math": _QUESTION_ANSWER,  # mindrlhf's name for questions with the gold alone
    "question_answer": _QUESTION_ANSWER,
}
DATASET_TYPES = tuple(_DATASETS)


class ExampleSource:
    """The examples of one file, read row by row: JSON lines, a JSON list, or Parquet (by its ending).

    `bad` counts the malformed rows that the last pass skipped. With `answers_required` a row without text to
    learn is malformed too.

    Raises:
        UserError: the data set is unknown or the file is missing; while iterating, the file is unreadable,
            holds no row, or holds a malformed one and `skip_bad_rows` is off.
    """

    def __init__(
        self,
        dataset_type: str | RowFormat,
        path: str | Path,
        skip_bad_rows: bool = False,
        answers_required: bool = True,
    ) -> None:
        if isinstance(dataset_type, str) and dataset_type not in _DATASETS:
            raise UserError(f"dataset_type {dataset_type!r} is unknown; known: {', '.join(DATASET_TYPES)}")
        self._path = Path(path)
        if not self._path.is_file():
            raise UserError(f"{path}: no such file")
        self._format = _DATASETS[dataset_type] if isinstance(dataset_type, str) else dataset_type
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
            except BadRow as error:
                if not self._skip_bad_rows:
                    raise UserError(f"{where}: {error}; mend the row or use --skip_bad_rows") from None
                self.bad += 1
        if empty:
            raise UserError(f"{self._path}: the data set is empty")

    def _rows(self) -> Iterator[tuple[str, Any]]:
        if self._path.suffix == ".parquet":
            return _parquet_rows(self._path, self._format.keys)
        with self._path.open("rb") as file:
            is_list = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        return _list_rows(self._path) if is_list else json_lines(self._path)

    def _example(self, row: Any) -> Example:
        if isinstance(row, BadRow):
            raise row
        if not isinstance(row, dict):
            raise BadRow("expected an object of keys and values")
        example = self._format.parse(row)
        if self._answers_required and not example.answer:
            raise BadRow("no answer to learn; use --prompts_only where none is needed")
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
        return BadRow(f"not readable as JSON: {error}")


def _list_rows(path: Path) -> Iterator[tuple[str, Any]]:
    rows = _parsed(path.read_bytes())
    if isinstance(rows, BadRow):
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
