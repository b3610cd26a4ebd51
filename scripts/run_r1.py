"""An R1 recipe in one YAML, data, SFT cold start, GRPO and evaluation, with one command; docs/recipe.md tells more."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from r1parallel.errors import run_command
from r1parallel.recipe.run import run_recipe


def main(argv: Sequence[str]) -> None:
    """Run every stage that is not finished."""
    parser = argparse.ArgumentParser(prog="run_r1.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, type=Path, help="the recipe, such as model_configs/tiny/r1.yaml")
    parser.add_argument("--output_dir", help="where everything goes; stronger than the recipe's")
    parser.add_argument("--resume", action="store_true", help="go on with what is in the output_dir")
    args = parser.parse_args(argv)
    run_recipe(Path(__file__).resolve().parents[1], args.config, args.output_dir, args.resume)


if __name__ == "__main__":
    run_command(main)
