"""GRPO: python run_grpo.py --config model_configs/tiny/grpo.yaml --dataset_file FILE --tokenizer_dir DIR …

Under msrun or scripts/run_grpo.sh it is one rank of several. Without arguments it trains the tiny model on data that it
makes, with a layout that follows the number of processes.
"""

from collections.abc import Sequence
from pathlib import Path

from r1parallel.config.checks import check_config, check_paths
from r1parallel.config.loading.command_line import parse_command_line
from r1parallel.config.loading.load import GRPO_SECTIONS
from r1parallel.parallel.launch.world import launched_world_size
from r1parallel.parallel.worker import run_worker

TINY = Path(__file__).resolve().parent / "model_configs" / "tiny"


def main(argv: Sequence[str]) -> None:
    """Read and check the settings before MindSpore is imported, then train."""
    if not argv:
        from r1parallel.rl.demo import run_demo

        print(f"model: {run_demo(TINY, launched_world_size())}", flush=True)
        return
    config = parse_command_line(argv, GRPO_SECTIONS, "run_grpo.py", "Group relative policy optimization.")
    check_config(config, GRPO_SECTIONS, launched_world_size())
    check_paths(config, GRPO_SECTIONS)
    from r1parallel.rl.grpo import run_grpo

    print(f"model: {run_grpo(config)}", flush=True)


if __name__ == "__main__":
    run_worker(main)
