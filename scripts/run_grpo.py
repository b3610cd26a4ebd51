"""What scripts/run_grpo.sh starts: ../run_grpo.py as a job of several processes."""

import sys
from collections.abc import Sequence
from pathlib import Path

from r1parallel.errors import run_command
from r1parallel.parallel.launch.launcher import launch


def main(argv: Sequence[str]) -> None:
    """End with the exit code of the rank that failed first."""
    sys.exit(launch(Path(__file__).resolve().parents[1] / "run_grpo.py", argv))


if __name__ == "__main__":
    run_command(main)
