"""Convert a Qwen2.5 checkpoint: Hugging Face's, ours (mindformers' names) or mindformers' newer names, any to any."""

import argparse
from collections.abc import Sequence

from r1parallel.checkpoint.command_line import add_convert_flags, add_output_flags, convert_target
from r1parallel.checkpoint.convert import convert_weight, plan_conversion
from r1parallel.checkpoint.writing.plan_text import plan_text
from r1parallel.errors import run_command


def main(argv: Sequence[str]) -> None:
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_convert_flags(parser)
    add_output_flags(parser)
    args = parser.parse_args(argv)
    target = convert_target(args)
    if args.dry_run:
        plan = plan_conversion(args.input_path, args.output_path, target, args.config_path)
        print(plan_text(*plan, args.output_path))
        return
    workers = args.transform_process_num
    convert_weight(args.input_path, args.output_path, target, args.config_path, args.overwrite, workers)
    print(f"wrote {args.output_path}")


if __name__ == "__main__":
    run_command(main)
