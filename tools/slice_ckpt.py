"""Cut a checkpoint for the ranks of a strategy, merge one that is cut, or go from one strategy to another."""

import argparse
from collections.abc import Sequence

from r1parallel.checkpoint.slice import reshard_checkpoint
from r1parallel.errors import UserError, run_command
from r1parallel.parallel.strategy import read_strategy


def main(argv: Sequence[str]) -> None:
    """Parse the command line and write the checkpoint in its new cut."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--src_checkpoint", required=True, help="full checkpoint, or folder of rank_N")
    parser.add_argument("--dst_checkpoint_dir", required=True, help="new folder to write")
    strategy = "folder of strategy_N.ckpt or merged file; None: a full checkpoint"
    parser.add_argument("--src_strategy", default="None", help=f"how the source is cut: {strategy}")
    parser.add_argument("--dst_strategy", default="None", help=f"how to cut: {strategy}")
    parser.add_argument("--prefix", default="checkpoint_", help="start of the file names in the rank folders")
    args = parser.parse_args(argv)
    if args.src_strategy == args.dst_strategy == "None":
        raise UserError("nothing to do: give --dst_strategy to cut, --src_strategy to merge, or both")
    src, dst = (None if path == "None" else read_strategy(path) for path in (args.src_strategy, args.dst_strategy))
    reshard_checkpoint(args.src_checkpoint, args.dst_checkpoint_dir, src, dst, args.prefix)
    print(f"wrote {args.dst_checkpoint_dir}")


if __name__ == "__main__":
    run_command(main)
