"""Draw the layout of a run's actor: the mesh of ranks, one block of the model, the schedule of the pipeline."""

import argparse
from collections.abc import Sequence
from dataclasses import fields

from r1parallel.config.loading.command_line import parse_command_line
from r1parallel.config.schema import RunConfig
from r1parallel.errors import run_command
from r1parallel.monitor.pictures.layout_pictures import draw_layout

SECTIONS = [field.name for field in fields(RunConfig)]  # a grpo.yaml and a sft.yaml are both understood


def main(argv: Sequence[str]) -> None:
    """Parse the command line and write the pictures."""
    every_key = "Any key of the configuration can be given as --section.key value; docs/configuration.md lists them."
    parser = argparse.ArgumentParser(description=__doc__, epilog=every_key, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="grpo.yaml or sft.yaml")
    parser.add_argument("--output_dir", required=True, help="folder for mesh.svg, block.svg and schedule.svg")
    args, keys = parser.parse_known_args(argv)
    config = parse_command_line(["--config", args.config, *keys], SECTIONS, parser.prog, "")
    for path in draw_layout(config, args.output_dir):
        print(f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
