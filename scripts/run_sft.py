"""../run_sft.py as a job of several processes; takes the launcher's options, as scripts/run_grpo.sh does."""

import sys
from collections.abc import Sequence
from pathlib import Path

from r1parallel.errors import run_command
from r1parallel.parallel.launch.launcher import launch


def main(argv: Sequence[str]) -> None:
    """End with the exit code of the rank that failed first."""
    sys.exit(launch(Path(__file__).resolve().parents[1] / "run_sft.py", argv))


if __name__ == "__main__":
    run_command(main)
