"""One rank, or the only process: GRPO with greedy rollouts, then with sampled ones, as the flags in a file say."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from r1parallel.config.checks import check_config
from r1parallel.config.loading.command_line import parse_command_line
from r1parallel.config.loading.load import GRPO_SECTIONS
from r1parallel.parallel.launch.world import launched_world_size
from r1parallel.parallel.worker import run_worker


def main(argv: Sequence[str]) -> None:
    from r1parallel.rl.grpo import run_grpo

    for run in argv:
        flags = json.loads(Path(run).read_text())
        config = parse_command_line(flags["flags"], GRPO_SECTIONS, "grpo_worker.py", "")
        check_config(config, GRPO_SECTIONS, launched_world_size())
        if flags["greedy"]:  # refused otherwise: greedy samples are not the policy's
            config.generate_config.sampling_config.top_k = 1
        run_grpo(config)
        print(f"done {run}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_worker(main)
