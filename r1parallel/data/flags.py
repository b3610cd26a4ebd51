"""The flags of make_problems and preprocess_data, for these commands and for recipes. Needs no MindSpore."""

import argparse

from r1parallel.data.templates import PROMPT_TYPES
from r1parallel.data.text.sources import DATASET_TYPES

MAX_PROMPT_LENGTH, SEQ_LENGTH = 2048, 4096


def add_problem_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of make_problems."""
    parser.add_argument("--kind", required=True, choices=["countdown", "arithmetic"])
    parser.add_argument("--num", required=True, type=int, help="problems to make")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same problems")
    parser.add_argument("--output_path", required=True, help="JSON lines file to write")
    parser.add_argument("--exclude", nargs="+", default=[], help="files whose problems are left out")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--sizes", nargs="+", type=int, help="countdown: how many numbers (default 3 4)")
    parser.add_argument("--digits", nargs="+", type=int, help="arithmetic: digits of an operand (default 2 3)")
    parser.add_argument(
        "--slip", type=float, help="arithmetic: fraction of rows whose working forgets carries and borrows (default 0)"
    )
    parser.add_argument("--tokenizer_dir", help="arithmetic: also write a character tokenizer into this folder")


def add_preprocess_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of preprocess_data that say what to write; those of other tools are that command's alone."""
    parser.add_argument("--dataset_type", help=f"one of {', '.join(DATASET_TYPES)}")
    parser.add_argument("--file_path", help="data set: JSON lines, a JSON list, or Parquet")
    parser.add_argument("--tokenizer_dir", help="Hugging Face tokenizer folder")
    parser.add_argument("--output_path", help="MindRecord file to write (and a .db beside it)")
    parser.add_argument("--max_prompt_length", type=int, help=f"tokens of the prompt (default {MAX_PROMPT_LENGTH})")
    parser.add_argument("--seq_length", type=int, help=f"tokens of prompt and answer (default {SEQ_LENGTH})")
    parser.add_argument("--prompt_type", help=f"one of {', '.join(PROMPT_TYPES)} (default plain)")
    parser.add_argument("--num_rows", type=int, help="take only the first so many rows")
    parser.add_argument("--skip_bad_rows", action="store_true", help="skip and count malformed rows")
    parser.add_argument("--prompts_only", action="store_true", help="keep rows whose answer is missing or too long")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
