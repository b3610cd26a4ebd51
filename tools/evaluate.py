"""Accuracy and pass@k of a Hugging Face model or a checkpoint of ours on held-out problems."""

import argparse
import json
from collections.abc import Sequence

from r1parallel.data.sources import DATASET_TYPES
from r1parallel.data.templates import PROMPT_TYPES
from r1parallel.errors import UserError, run_command
from r1parallel.generation.flags import add_flags, read_flags
from r1parallel.rewards import check_reward_names


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__, allow_abbrev=False)
    add_flags(parser)
    parser.add_argument("--dataset_type", required=True, choices=DATASET_TYPES)
    parser.add_argument("--file_path", required=True, help="data set, as for preprocess_data.py")
    parser.add_argument("--prompt_type", default="plain", choices=PROMPT_TYPES, help="template (default plain)")
    parser.add_argument("--num_samples", type=int, default=1, help="answers to each problem (default 1)")
    parser.add_argument("--num_rows", type=int, help="take only the first so many problems")
    parser.add_argument("--verifier_function", help="the reward that is 1 for a right answer (default: the data set's)")
    parser.add_argument("--output", help="also write one JSON line a problem, with its answers")
    args = parser.parse_args(argv)
    for flag in ("num_samples", "num_rows"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UserError(f"--{flag} is {getattr(args, flag)}; it must be at least 1")
    if args.verifier_function:
        check_reward_names([args.verifier_function])
    # One answer is the most probable one; several must differ to say anything.
    greedy = args.num_samples == 1
    config = read_flags(args, max_new_tokens="256", batch_size="32", temperature="0" if greedy else "1")
    if not greedy and config.generate_config.sampling_config.temperature == 0:
        raise UserError("--temperature is 0 with several samples, which would all be equal; use --num_samples 1")
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
