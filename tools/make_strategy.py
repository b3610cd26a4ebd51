"""Write the strategy files of one of a run's models from its configuration. No device and no compilation is needed."""

import argparse
from collections.abc import Sequence
from dataclasses import fields

from r1parallel.config.loading.command_line import parse_command_line
from r1parallel.config.loading.load import sections_in
from r1parallel.config.schema import RunConfig
from r1parallel.errors import run_command
from r1parallel.parallel.layout.describe import describe_rank, first_ranks, parse_ranks
from r1parallel.parallel.layout.from_config import layout_before_run
from r1parallel.parallel.layout.strategy_files import STRATEGY_NAMES, write_model_strategies

SECTIONS = [field.name for field in fields(RunConfig)]  # a grpo.yaml and a sft.yaml are both understood


def main(argv: Sequence[str]) -> None:
    """Parse the command line and write one file for each rank, and the merged file."""
    every_key = "Any key of the configuration can be given as --section.key value; docs/configuration.md lists them."
    parser = argparse.ArgumentParser(description=__doc__, epilog=every_key, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="grpo.yaml or, for the actor, sft.yaml")
    parser.add_argument("--model", choices=list(STRATEGY_NAMES), default="actor", help="default: %(default)s")
    parser.add_argument("--world_size", type=int, help="processes of the run; default: as the actor's layout needs")
    parser.add_argument("--output_dir", default="./strategy/", help="default: %(default)s")
    parser.add_argument("--ranks", help="print what lies on these ranks, such as 0,5; files are written for all")
    parser.add_argument(
        "--check",
        action="store_true",
        help="let MindSpore compile the model for --ranks (default: one rank of each stage) and compare",
    )
    args, keys = parser.parse_known_args(argv)
    config = parse_command_line(["--config", args.config, *keys], SECTIONS, parser.prog, "")
    layout = layout_before_run(config, args.model, args.world_size)
    ranks = [] if args.ranks is None else parse_ranks(args.ranks, layout.world_size)
    for rank in ranks:
        print(describe_rank(layout, rank), end="\n\n")
    folder = write_model_strategies(layout, args.model, args.output_dir)
    print(f"wrote {layout.world_size} strategy files to {folder}")
    if args.check:
        from r1parallel.strategy_check.compare import check_strategy

        sections = sections_in(args.config)
        check_strategy(config, args.model, ranks or first_ranks(layout), args.output_dir, sections)


if __name__ == "__main__":
    run_command(main)
