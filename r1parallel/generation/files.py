"""Prompts from a file, completions into a file."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from r1parallel.atomic import replacing
from r1parallel.data.templates import render
from r1parallel.errors import UserError
from r1parallel.generation.answer import Answerer


def read_prompts(path: str | Path) -> list[str]:
    """The "prompt" of every JSON line.

    Raises:
        UserError: no such file, no row, or a line that is not an object with a text "prompt"; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such prompts file")
    prompts = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):  # bytes: only a line feed ends a line
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:
            raise UserError(f"{path}:{number}: no JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"]:
            raise UserError(f'{path}:{number}: expected {{"prompt": "some text"}}')
        prompts.append(row["prompt"])
    if not prompts:
        raise UserError(f"{path}: holds no prompt")
    return prompts


def check_writable(path: str | Path) -> None:
    """See before the work is done that its result can be written; makes the folder.

    Raises:
        UserError: it cannot.
    """
    path = Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another --output") from None


def write_lines(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def generate_file(
    answerer: Answerer,
    prompts_file: str | Path,
    output: str | Path,
    prompt_type: str | None,
    seed: int,
) -> int:
    """Complete every prompt of a file; returns how many there were.

    Rows out, in the order of the rows in: prompt (as the model saw it), prompt_ids, completion_ids (stop id included),
    completion (without special tokens), logps (of completion_ids, under the model at temperature 1).

    Raises:
        UserError: see `check_writable`, `read_prompts` and `Answerer.answer`.
    """
    check_writable(output)
    tokenizer, prompts = answerer.tokenizer, read_prompts(prompts_file)
    if prompt_type is not None:
        prompts = [render(prompt_type, prompt, tokenizer) for prompt in prompts]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    drawn = answerer.answer(ids, seed)
    rows = []
    for row, prompt in enumerate(prompts):
        completion = drawn.ids(row)
        rows.append(
            {
                "prompt": prompt,
                "prompt_ids": ids[row],
                "completion_ids": completion,
                "completion": tokenizer.decode(completion, skip_special_tokens=True),
                "logps": [float(x) for x in drawn.logps[row, : len(completion)]],
            }
        )
    write_lines(output, rows)
    return len(rows)
