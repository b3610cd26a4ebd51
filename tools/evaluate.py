"""Accuracy and pass@k of a Hugging Face model or a checkpoint of ours on held-out problems."""

import argparse
import json
from collections.abc import Sequence

from r1parallel.errors import run_command
from r1parallel.generation.flags import add_evaluate_flags, read_evaluate_flags


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__, allow_abbrev=False)
    add_evaluate_flags(parser)
    args = parser.parse_args(argv)
    config = read_evaluate_flags(args)
    from r1parallel.generation.answer import Answerer
    from r1parallel.generation.files import check_writable, write_lines
    from r1parallel.rl.evaluate import evaluate

    if args.output:
        check_writable(args.output)
    summary, rows = evaluate(
        Answerer.open(config),
        args.dataset_type,
        args.file_path,
        args.num_samples,
        args.prompt_type,
        args.verifier_function,
        args.seed,
        args.num_rows,
    )
    if args.output:
        write_lines(args.output, rows)
    print(json.dumps(summary))


if __name__ == "__main__":
    run_command(main)
