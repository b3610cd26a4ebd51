"""Generate countdown or arithmetic problems, and a character tokenizer for the latter."""

import argparse
from collections.abc import Sequence

from r1parallel.data.flags import add_problem_flags
from r1parallel.data.problems.arithmetic import generate_arithmetic, write_character_tokenizer
from r1parallel.data.problems.countdown import generate_countdown
from r1parallel.data.problems.problem_files import read_keys, write_problems
from r1parallel.errors import UserError, run_command


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="make_problems.py", description=__doc__, allow_abbrev=False)
    add_problem_flags(parser)
    args = parser.parse_args(argv)
    own = {"countdown": ("sizes",), "arithmetic": ("digits", "slip")}
    foreign = ("digits", "slip", "tokenizer_dir") if args.kind == "countdown" else ("sizes",)
    for flag in foreign:
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag} does not apply to --kind {args.kind}; leave it out")
    generate = generate_countdown if args.kind == "countdown" else generate_arithmetic
    given = {flag: getattr(args, flag) for flag in own[args.kind] if getattr(args, flag) is not None}
    rows = generate(args.num, args.seed, exclude=read_keys(args.kind, args.exclude), **given)
    num_rows = write_problems(args.output_path, rows, args.overwrite)
    print(f"{args.output_path}: {num_rows} problems written")
    if args.tokenizer_dir is not None:
        write_character_tokenizer(args.tokenizer_dir)
        print(f"{args.tokenizer_dir}: character tokenizer written")


if __name__ == "__main__":
    run_command(main)
