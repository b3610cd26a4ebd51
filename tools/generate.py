"""Complete the prompts of a JSON lines file with a Hugging Face model or a checkpoint of ours."""

import argparse
from collections.abc import Sequence

from r1parallel.data.templates import PROMPT_TYPES
from r1parallel.errors import run_command
from r1parallel.generation.flags import add_flags, read_flags


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="generate.py", description=__doc__, allow_abbrev=False)
    add_flags(parser)
    parser.add_argument("--prompts", required=True, help='JSON lines: {"prompt": "…"}')
    parser.add_argument("--output", required=True, help="JSON lines to write, one a prompt, in the same order")
    parser.add_argument("--prompt_type", choices=PROMPT_TYPES, help="template to put prompts in (default: none)")
    args = parser.parse_args(argv)
    config = read_flags(args, max_new_tokens="256", batch_size="16")
    from r1parallel.generation.answer import Answerer
    from r1parallel.generation.files import generate_file

    count = generate_file(Answerer.open(config), args.prompts, args.output, args.prompt_type, args.seed)
    print(f"{args.output}: {count} completions")


if __name__ == "__main__":
    run_command(main)
