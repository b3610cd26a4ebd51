"""Cut a checkpoint for the ranks of a strategy, merge one that is cut, or go from one strategy to another."""

import argparse
from collections.abc import Sequence

from r1parallel.checkpoint.command_line import add_output_flags, read_layout, read_ranks
from r1parallel.checkpoint.slice import plan_reshard, reshard_checkpoint
from r1parallel.checkpoint.writing.plan_text import plan_text
from r1parallel.errors import UserError, run_command


def main(argv: Sequence[str]) -> None:
    """Parse the command line and write the checkpoint in its new cut."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--src_checkpoint", required=True, help="checkpoint: a file, a folder, or a folder of rank_N")
    parser.add_argument("--dst_checkpoint_dir", required=True, help="new folder to write")
    strategy = "folder of strategy files, merged file, or one rank's of a model without pipeline; None: full"
    parser.add_argument("--src_strategy", default="None", help=f"how the source is cut: {strategy}")
    parser.add_argument("--dst_strategy", default="None", help=f"how to cut: {strategy}")
    parser.add_argument("--src_prefix", default="", help="where a rank folder has several files: which, as actor")
    parser.add_argument("--rank_id", help="only these ranks of the new cut, as 0,3 or 8-15; default: all")
    parser.add_argument("--world_size", type=int, help="ranks that --dst_strategy must be for")
    add_output_flags(parser)
    args = parser.parse_args(argv)
    if args.src_strategy == args.dst_strategy == "None":
        raise UserError("nothing to do: give --dst_strategy to cut, --src_strategy to merge, or both")
    src, dst = read_layout(args.src_strategy), read_layout(args.dst_strategy, args.world_size)
    how = {
        "src_layout": src,
        "dst_layout": dst,
        "prefix": args.prefix,
        "kind": args.output_format,
        "ranks": read_ranks(args.rank_id, dst),
        "max_shard_size": args.max_shard_size,
        "src_prefix": args.src_prefix,
    }
    if args.dry_run:
        print(plan_text(*plan_reshard(args.src_checkpoint, **how), args.dst_checkpoint_dir))
        return
    workers = args.transform_process_num
    reshard_checkpoint(args.src_checkpoint, args.dst_checkpoint_dir, workers=workers, **how)
    print(f"wrote {args.dst_checkpoint_dir}")


if __name__ == "__main__":
    run_command(main)
