"""The flags of mindrlhf's rlhf_data.py, as those of our own command."""

from collections.abc import Callable
from pathlib import Path

from r1parallel.errors import UserError


def tokenizer_folder(vocab_path: str, merges_path: str) -> Path:
    """The folder that holds both files.

    Raises:
        UserError: one of them is missing, or they have other names or different folders.
    """
    vocab, merges = Path(vocab_path), Path(merges_path)
    for flag, path in (("vocab_path", vocab), ("merges_file_path", merges)):
        if not path.is_file():
            raise UserError(f"--{flag} {path}: no such file")
    if (vocab.name, merges.name) != ("vocab.json", "merges.txt") or vocab.parent.resolve() != merges.parent.resolve():
        raise UserError(
            f"--vocab_path {vocab} and --merges_file_path {merges} must be vocab.json and merges.txt of one folder; "
            "copy them into one"
        )
    return vocab.parent


def translate_flags(flags: dict[str, str | None], report: Callable[[str], None]) -> dict[str, object]:
    """Arguments of `preprocess` for a command line of rlhf_data.py; `report` gets one line for each change.

    Args:
        flags: vocab_path, merges_file_path, pad_token_id, dataset_type and prompt_type, as given or None.
        report: is called with each line.

    Raises:
        UserError: a tokenizer file is missing or not where it can be read.
    """
    vocab, merges = flags["vocab_path"], flags["merges_file_path"]
    if vocab is None or merges is None:
        raise UserError("--vocab_path and --merges_file_path go together; or give --tokenizer_dir alone")
    folder = tokenizer_folder(vocab, merges)
    report(f"--vocab_path, --merges_file_path: the tokenizer is that of --tokenizer_dir {folder}")
    report("rows that do not fit are dropped and counted, not cut; an answer that does not fit is left out")
    if flags["pad_token_id"] is not None:
        report(f"--pad_token_id {flags['pad_token_id']}: no meaning here, lengths tell padding from text")
    dataset_type, prompt_type = flags["dataset_type"], flags["prompt_type"]
    if dataset_type is None:
        dataset_type = "question_answer"
        report("--dataset_type: not given, so question_answer; the solution is the answer without the question")
    if prompt_type is None:
        prompt_type = "raw"
        report("--prompt_type: not given, so raw, the question as it stands")
    return {
        "tokenizer_dir": folder,
        "dataset_type": dataset_type,
        "prompt_type": prompt_type,
        "prompts_only": True,
    }
