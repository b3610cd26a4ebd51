"""From a data set file and a tokenizer folder to a MindRecord file."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

from r1parallel.data.mindrecord import Counts, write_mindrecord
from r1parallel.data.sources import Source
from r1parallel.data.tokenizer import load_tokenizer


def preprocess(
    dataset_type: str,
    file_path: str | Path,
    tokenizer_dir: str | Path,
    output_path: str | Path,
    max_prompt_length: int,
    seq_length: int,
    prompt_type: str,
    num_rows: int | None = None,
    skip_bad_rows: bool = False,
    prompts_only: bool = False,
    overwrite: bool = False,
) -> Counts:
    """Write the first `num_rows` examples (None: all) of `file_path`; see `Source` and `write_mindrecord`.

    Raises:
        UserError: whatever those two and `load_tokenizer` refuse.
    """
    source = Source(dataset_type, file_path, skip_bad_rows, answers_required=not prompts_only)
    counts = write_mindrecord(
        output_path,
        islice(source, num_rows),
        load_tokenizer(tokenizer_dir),
        prompt_type,
        max_prompt_length,
        seq_length,
        answers_optional=prompts_only,
        overwrite=overwrite,
    )
    return replace(counts, bad=source.bad)
