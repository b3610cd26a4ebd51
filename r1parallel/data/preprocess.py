"""From a data set file and a tokenizer folder to a MindRecord file."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

from r1parallel.data.flags import MAX_PROMPT_LENGTH, SEQ_LENGTH
from r1parallel.data.mindrecord import Counts, write_mindrecord
from r1parallel.data.mindspeed.rows import MindSpeedRows
from r1parallel.data.mindspeed.yaml_file import LEARN_ANSWERS, DatasetYaml, read_dataset_yaml
from r1parallel.data.text.sources import ExampleSource
from r1parallel.data.text.tokenizer import load_tokenizer


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
    """Write the first `num_rows` examples (None: all) of `file_path`; see `ExampleSource` and `write_mindrecord`.

    Raises:
        UserError: whatever those two and `load_tokenizer` refuse.
    """
    source = ExampleSource(dataset_type, file_path, skip_bad_rows, answers_required=not prompts_only)
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


def preprocess_yaml(
    path: str | Path,
    report: Callable[[str], None],
    max_prompt_length: int | None = None,
    seq_length: int | None = None,
    num_rows: int | None = None,
    skip_bad_rows: bool = False,
    prompts_only: bool = False,
    overwrite: bool = False,
) -> tuple[Path, Counts]:
    """Write the rows of a MindSpeed-RL data set YAML; return the file and what became of the rows.

    `report` gets one line for each key that became something else. The two lengths are stronger than the YAML's
    seq_length. Handlers for GRPO keep prompts and solutions only; `prompts_only` counts for the other one.

    Raises:
        UserError: whatever `read_dataset_yaml`, `MindSpeedRows`, `load_tokenizer` and `write_mindrecord` refuse.
    """
    settings = read_dataset_yaml(path, report)
    max_prompt_length, seq_length = _lengths(settings, max_prompt_length, seq_length)
    report(f"seq_length: prompts of up to {max_prompt_length} tokens are kept, with answers {seq_length} in all")
    tokenizer = load_tokenizer(settings.tokenizer_dir)
    rows = MindSpeedRows(settings, tokenizer, num_rows, skip_bad_rows)
    counts = write_mindrecord(
        settings.output_path,
        rows,
        tokenizer,
        "raw",  # the rows come as whole prompts
        max_prompt_length,
        seq_length,
        answers_optional=prompts_only or settings.handler != LEARN_ANSWERS,
        overwrite=overwrite,
    )
    return settings.output_path, replace(counts, bad=rows.bad)


def _lengths(settings: DatasetYaml, prompt: int | None, total: int | None) -> tuple[int, int]:
    """Tokens for the prompt, and for prompt and answer together.

    MindSpeed-RL drops a row of seq_length tokens or more. For GRPO a row is its prompt, so one slot is left for the
    answer that is not kept; for SFT it is both, and the prompt gets half.
    """
    if settings.handler == LEARN_ANSWERS:
        total = (settings.seq_length or SEQ_LENGTH) if total is None else total
        return total // 2 if prompt is None else prompt, total
    if prompt is None:
        prompt = (settings.seq_length or MAX_PROMPT_LENGTH + 1 if total is None else total) - 1
    return prompt, prompt + 1 if total is None else total
