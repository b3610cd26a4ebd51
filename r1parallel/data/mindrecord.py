"""Tokenised rows in MindSpore's own file format."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore.mindrecord import FileReader, FileWriter
from mindspore.mindrecord.common.exceptions import MindRecordException
from tqdm import tqdm

from r1parallel.data.templates import render
from r1parallel.data.text.sources import Example
from r1parallel.data.text.tokenizer import Tokenizer
from r1parallel.errors import UserError

_ROWS_PER_WRITE = 512
_TYPES = {
    "prompt_ids": "int32",
    "pretrain_ids": "int32",
    "loss_mask": "int32",
    "prompt_length": "int32",
    "pretrain_length": "int32",
    "solution": "string",
}


@dataclass(frozen=True)
class Counts:
    """What became of the rows: written, dropped as prompt or answer is too long, skipped as malformed."""

    written: int
    dropped_long: int
    bad: int = 0


@dataclass(frozen=True)
class DatasetRows:
    """A whole data set of N rows: prompts of at most P tokens, answers of at most C, both right padded."""

    prompt_ids: np.ndarray  # int32 [N, P]
    prompt_lengths: np.ndarray  # int32 [N]
    answer_ids: np.ndarray  # int32 [N, C], the eos token included
    answer_lengths: np.ndarray  # int32 [N]; 0: the row has no answer to learn
    solutions: list[str]  # N gold solutions, for the rewards


def write_mindrecord(
    path: str | Path,
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    prompt_type: str,
    max_prompt_length: int,
    seq_length: int,
    answers_optional: bool = False,
    overwrite: bool = False,
) -> Counts:
    """Tokenise `examples` and write them to `path` and `<path>.db`, whole or not at all.

    P = max_prompt_length tokens are kept for the prompt, C = seq_length - P for the answer and its eos token.
    A row that does not fit is dropped and counted. With `answers_optional` (GRPO reads prompts only) a row
    whose answer is missing or does not fit is kept with `pretrain_length` 0.

    Columns: prompt_ids int32 [P], pretrain_ids int32 [C] (the answer and eos), loss_mask int32 [C] (1 on
    those, 0 on padding), prompt_length and pretrain_length int32 [1], solution string.

    Raises:
        UserError: a length is out of range, the output exists and `overwrite` is off, or no row is left.
    """
    path = Path(path)
    if not 1 <= max_prompt_length < seq_length:
        raise UserError(
            f"max_prompt_length is {max_prompt_length}; it must be at least 1 and less than seq_length {seq_length}"
        )
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder; make it first")
    if not overwrite and (path.exists() or _index_of(path).exists()):
        raise UserError(f"{path}: exists already; use --overwrite or another --output_path")
    answer_size = seq_length - max_prompt_length
    packer = _Packer(tokenizer, prompt_type, max_prompt_length, answer_size, answers_optional)
    # The file holds its own name, so it is written under that name in a folder beside and then moved.
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        written = _write(folder / path.name, packer.pack(examples), _shapes(max_prompt_length, answer_size))
        if written == 0:
            raise UserError(
                f"{path}: no row is left to write, {packer.dropped_long} were too long; "
                "raise --max_prompt_length or --seq_length"
            )
        path.unlink(missing_ok=True)  # a crash from here on leaves no file rather than a mismatched pair
        os.replace(_index_of(folder / path.name), _index_of(path))
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder)
    return Counts(written, packer.dropped_long)


def _index_of(path: Path) -> Path:
    return path.with_name(path.name + ".db")


class _Packer:
    """From examples to rows of fixed shape."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_type: str,
        prompt_size: int,
        answer_size: int,
        answers_optional: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._prompt_type = prompt_type
        self._answers_optional = answers_optional
        self._prompt_size = prompt_size
        self._answer_size = answer_size
        self.dropped_long = 0

    def pack(self, examples: Iterable[Example]) -> Iterator[dict[str, Any]]:
        for number, example in enumerate(examples, 1):
            answer = self._answer(example, number)
            prompt = self._tokenizer.encode(render(self._prompt_type, example.question, self._tokenizer))
            if len(answer) > self._answer_size and self._answers_optional:
                answer = []
            if len(prompt) > self._prompt_size or len(answer) > self._answer_size:
                self.dropped_long += 1
                continue
            yield {
                "prompt_ids": self._padded(prompt, self._prompt_size),
                "pretrain_ids": self._padded(answer, self._answer_size),
                "loss_mask": (np.arange(self._answer_size) < len(answer)).astype(np.int32),
                "prompt_length": np.array([len(prompt)], np.int32),
                "pretrain_length": np.array([len(answer)], np.int32),
                "solution": example.solution,
            }

    def _answer(self, example: Example, number: int) -> list[int]:
        if example.answer:
            return [*self._tokenizer.encode(example.answer), self._tokenizer.eos_token_id]
        if self._answers_optional:
            return []
        raise UserError(f"example {number} has no answer to learn; use --prompts_only where none is needed")

    def _padded(self, ids: list[int], size: int) -> np.ndarray:
        return np.array(ids + [self._tokenizer.pad_token_id] * (size - len(ids)), np.int32)


def _shapes(prompt_size: int, answer_size: int) -> dict[str, list[int]]:
    return {
        "prompt_ids": [prompt_size],
        "pretrain_ids": [answer_size],
        "loss_mask": [answer_size],
        "prompt_length": [1],
        "pretrain_length": [1],
    }


def _schema(shapes: dict[str, list[int]]) -> dict[str, Any]:
    return {
        name: {"type": kind, "shape": shapes[name]} if name in shapes else {"type": kind}
        for name, kind in _TYPES.items()
    }


def _write(path: Path, rows: Iterator[dict[str, Any]], shapes: dict[str, list[int]]) -> int:
    try:
        writer = FileWriter(str(path), shard_num=1)
        writer.add_schema(_schema(shapes), "prompts and answers of r1parallel")
        written = 0
        for chunk in _chunks(tqdm(rows, unit="row", desc="tokenise", disable=None)):
            writer.write_raw_data(chunk)
            written += len(chunk)
        if written:
            writer.commit()
    except (RuntimeError, MindRecordException) as error:
        raise UserError(f"{path.name}: MindRecord cannot write it: {_first_line(error)}") from None
    return written


def _chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    chunk = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _ROWS_PER_WRITE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def read_mindrecord(path: str | Path) -> DatasetRows:
    """Read a file of `write_mindrecord` whole.

    Raises:
        UserError: the file or its `.db` is missing, damaged, or was made by another tool.
    """
    path = Path(path)
    for needed in (path, _index_of(path)):
        if not needed.is_file():
            raise UserError(f"{needed}: no such file; a data set is a MindRecord file with its .db beside it")
    try:
        _check_name(path)
        reader = FileReader(str(path))
        try:
            return _read(reader, path)
        finally:
            reader.close()
    except (RuntimeError, MindRecordException, sqlite3.DatabaseError) as error:
        raise UserError(f"{path}: not readable as MindRecord, make it again: {_first_line(error)}") from None


def _check_name(path: Path) -> None:
    """MindRecord reads the file that the index names, so a renamed copy would give another file's rows."""
    with closing(sqlite3.connect(_index_of(path))) as index:
        names = [name for (name,) in index.execute("SELECT NAME FROM SHARD_NAME")]
    if names != [path.name]:
        raise UserError(
            f"{path}: its .db was written for {', '.join(names)}; MindRecord files cannot be renamed, "
            "give both their old name or make them again"
        )


def _read(reader: FileReader, path: Path) -> DatasetRows:
    prompt_size, answer_size = _check_schema(reader.schema(), path)
    num_rows = reader.len()
    rows = DatasetRows(
        prompt_ids=np.empty((num_rows, prompt_size), np.int32),
        prompt_lengths=np.empty(num_rows, np.int32),
        answer_ids=np.empty((num_rows, answer_size), np.int32),
        answer_lengths=np.empty(num_rows, np.int32),
        solutions=[],
    )
    for i, row in enumerate(reader.get_next()):
        rows.prompt_ids[i] = row["prompt_ids"]
        rows.answer_ids[i] = row["pretrain_ids"]
        rows.prompt_lengths[i] = row["prompt_length"][0]
        rows.answer_lengths[i] = row["pretrain_length"][0]
        rows.solutions.append(row["solution"])
    lengths = (rows.prompt_lengths, prompt_size), (rows.answer_lengths, answer_size)
    if any((values < 0).any() or (values > size).any() for values, size in lengths):
        raise UserError(f"{path}: a length lies outside its row; make the file again")
    return rows


def _check_schema(schema: dict[str, Any], path: Path) -> tuple[int, int]:
    """Prompt size and answer size of a file of ours."""
    prompt_size, answer_size = (schema.get(name, {}).get("shape", [0])[0] for name in ("prompt_ids", "pretrain_ids"))
    if min(prompt_size, answer_size) < 1 or schema != _schema(_shapes(prompt_size, answer_size)):
        raise UserError(
            f"{path}: its columns ({', '.join(schema)}) are not those of tools/preprocess_data.py in name, type or "
            f"shape ({', '.join(_TYPES)}); make it with that tool"
        )
    return prompt_size, answer_size


def _first_line(error: Exception) -> str:
    """What MindSpore says in the middle of its framed, many-line messages."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("[ERROR]")), lines[0])
