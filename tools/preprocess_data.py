"""Tokenise a data set into a MindRecord file for SFT or GRPO."""

import argparse
from collections.abc import Sequence

from r1parallel.data.preprocess import preprocess
from r1parallel.data.sources import DATASET_TYPES
from r1parallel.data.templates import PROMPT_TYPES
from r1parallel.errors import UserError, run_command


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="preprocess_data.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--dataset_type", required=True, help=f"one of {', '.join(DATASET_TYPES)}")
    parser.add_argument("--file_path", required=True, help="data set: JSON lines, a JSON list, or Parquet")
    parser.add_argument("--tokenizer_dir", required=True, help="Hugging Face tokenizer folder")
    parser.add_argument("--output_path", required=True, help="MindRecord file to write (and a .db beside it)")
    parser.add_argument("--max_prompt_length", type=int, default=2048, help="tokens kept for the prompt")
    parser.add_argument("--seq_length", type=int, default=4096, help="tokens kept for prompt and answer together")
    parser.add_argument("--prompt_type", default="plain", help=f"one of {', '.join(PROMPT_TYPES)}")
    parser.add_argument("--num_rows", type=int, help="take only the first so many rows")
    parser.add_argument("--skip_bad_rows", action="store_true", help="skip and count malformed rows")
    parser.add_argument("--prompts_only", action="store_true", help="keep rows whose answer is missing or too long")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    args = vars(parser.parse_args(argv))
    if args["num_rows"] is not None and args["num_rows"] < 1:
        raise UserError(f"--num_rows is {args['num_rows']}; it must be at least 1")
    counts = preprocess(**args)
    print(
        f"{args['output_path']}: {counts.written} rows written, {counts.dropped_long} dropped as too long, "
        f"{counts.bad} bad"
    )


if __name__ == "__main__":
    run_command(main)
