"""Write the strategy files of a model and a mesh. No device and no compilation is needed."""

import argparse
from collections.abc import Sequence

from r1parallel.config.model import load_model_config
from r1parallel.errors import run_command
from r1parallel.parallel.layout import ModelLayout
from r1parallel.parallel.mesh import Mesh
from r1parallel.parallel.strategy import STRATEGY_NAMES, write_model_strategies


def main(argv: Sequence[str]) -> None:
    """Parse the command line and write one file for each rank, and the merged file."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model_config", required=True, help="model.yaml, config.json or a folder with one")
    parser.add_argument("--output_dir", default="./strategy/", help="default: %(default)s")
    parser.add_argument("--model", choices=list(STRATEGY_NAMES), default="actor", help="default: %(default)s")
    parser.add_argument("--dp", type=int, default=1, help="data_parallel")
    parser.add_argument("--tp", type=int, default=1, help="model_parallel")
    parser.add_argument("--pp", type=int, default=1, help="pipeline_stage")
    parser.add_argument("--enable_parallel_optimizer", action="store_true", help="split what dp ranks share")
    args = parser.parse_args(argv)
    mesh = Mesh(dp=args.dp, pp=args.pp, tp=args.tp)
    layout = ModelLayout(load_model_config(args.model_config), mesh, args.enable_parallel_optimizer)
    folder = write_model_strategies(layout, args.model, args.output_dir)
    print(f"wrote {mesh.world_size} strategy files to {folder}")


if __name__ == "__main__":
    run_command(main)
