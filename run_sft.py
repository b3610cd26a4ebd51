"""SFT: python run_sft.py --config model_configs/tiny/sft.yaml --dataset_file FILE --tokenizer_dir DIR …"""

from collections.abc import Sequence

from r1parallel.config.checks import check_config, check_paths
from r1parallel.config.loading.command_line import parse_command_line
from r1parallel.config.loading.load import SFT_SECTIONS
from r1parallel.parallel.launch.world import launched_world_size
from r1parallel.parallel.worker import run_worker


def main(argv: Sequence[str]) -> None:
    """Read and check the settings before MindSpore is imported, then train."""
    config = parse_command_line(argv, SFT_SECTIONS, "run_sft.py", "Supervised fine-tuning.")
    check_config(config, SFT_SECTIONS, launched_world_size())
    check_paths(config, SFT_SECTIONS)
    from r1parallel.training.sft import run_sft

    print(f"model: {run_sft(config)}", flush=True)


if __name__ == "__main__":
    run_worker(main)
