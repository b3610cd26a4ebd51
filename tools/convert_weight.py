"""Convert a Hugging Face Qwen2.5 checkpoint to ours, or back with --reversed."""

import argparse
from collections.abc import Sequence

from r1parallel.checkpoint.convert import convert_weight
from r1parallel.checkpoint.dtypes import WEIGHT_DTYPES
from r1parallel.errors import run_command


def main(argv: Sequence[str]) -> None:
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--input_path", required=True, help="folder of the checkpoint, or its .safetensors file")
    parser.add_argument("--output_path", required=True, help="folder to write")
    parser.add_argument("--dtype", choices=sorted(WEIGHT_DTYPES), help="default: keep as stored")
    parser.add_argument("--reversed", action="store_true", help="ours to Hugging Face")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint in the output folder")
    args = parser.parse_args(argv)
    folder = convert_weight(args.input_path, args.output_path, args.dtype, args.reversed, args.overwrite)
    print(f"wrote {folder}")


if __name__ == "__main__":
    run_command(main)
