"""The rows of a MindSpeed-RL data set YAML, as its handlers read them."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from r1parallel.data.mindspeed.yaml_file import LEARN_ANSWERS, PROMPTS_IN_MESSAGES, DatasetYaml
from r1parallel.data.text.sources import (
    BadRow,
    Example,
    ExampleSource,
    RowFormat,
    ground_truth,
    only_message,
    optional_text,
)
from r1parallel.data.text.tokenizer import Tokenizer
from r1parallel.errors import UserError

_ENDINGS = (".json", ".jsonl", ".parquet")


class MindSpeedRows:
    """Examples whose `question` is the whole prompt, from a file or from all files of a folder.

    `bad` counts the malformed rows skipped.

    Raises:
        UserError: no readable data file; while iterating, what `ExampleSource` refuses, or no row
            has a mapped column.
    """

    def __init__(self, settings: DatasetYaml, tokenizer: Tokenizer, num_rows: int | None, skip_bad_rows: bool) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._num_rows = num_rows
        self._seen: set[str] = set()
        columns = tuple(name for name in settings.columns.values() if name)
        row_format = RowFormat(columns, self._example)
        self._sources = [ExampleSource(row_format, path, skip_bad_rows, False) for path in data_files(settings.input)]

    @property
    def bad(self) -> int:
        return sum(source.bad for source in self._sources)

    def __iter__(self) -> Iterator[Example]:
        yield from islice((example for source in self._sources for example in source), self._num_rows)
        for key in self._settings.mapped:
            if (name := self._settings.columns[key]) not in self._seen:
                raise UserError(
                    f"{self._settings.path}: map_keys: {key}: no row has the column {name!r}; mend the name"
                )

    def _example(self, row: dict[str, Any]) -> Example:
        self._seen.update(row)
        columns, in_messages = self._settings.columns, self._settings.handler == PROMPTS_IN_MESSAGES
        prompt = columns["prompt"]
        first = only_message(row, prompt) if in_messages and prompt else _mapped(row, prompt)
        question = "\n".join(text for text in (first, _mapped(row, columns["query"])) if text)
        if not question:
            raise BadRow(f"{prompt!r} is missing or empty")
        response = _response(row, columns["response"])
        template, thinking = self._settings.template, self._settings.enable_thinking
        text = template.prompt(question, self._tokenizer, _mapped(row, columns["system"]), thinking)
        learnt = template.answer(response, thinking) if self._settings.handler == LEARN_ANSWERS else ""
        return Example(text, learnt, response)


def _mapped(row: dict[str, Any], column: str) -> str:
    return optional_text(row, column) if column else ""


def _response(row: dict[str, Any], column: str) -> str:
    """The gold answer: text, a list with one text, or verl's reward_model."""
    value = row.get(column)
    if isinstance(value, list):
        if len(value) != 1:
            raise BadRow(f"{column!r} is {value!r}; expected one answer")
        row = {column: value[0]}
    return ground_truth(row, column)


def data_files(path: Path) -> list[Path]:
    """The file itself, or all data files of a folder, by name.

    Raises:
        UserError: there is none, or they are of several kinds or of one that is not read.
    """
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    else:
        raise UserError(f"input {path}: no such file or folder; a data set of a hub must be downloaded first")
    endings = {file.suffix for file in files}
    if len(endings) != 1 or not endings <= set(_ENDINGS):
        found = ", ".join(sorted(endings)) or "none"
        raise UserError(f"input {path}: data files must all end with one of {', '.join(_ENDINGS)}; found {found}")
    return files
