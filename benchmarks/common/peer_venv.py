"""Virtual environments of the peers that ours is compared to."""

import hashlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.commands import Commands

ROOT = Path(__file__).resolve().parents[2]
TRL_PACKAGES = (
    "trl==1.16.0",
    "torch==2.13.0",
    "transformers==4.57.1",
    "math-verify==0.9.0",
)  # the last for our rewards


def peer_python(name: str, requirements: Sequence[str], commands: Commands) -> Path:
    """The Python of .cache/peer_<name> in the project root, made with pip unless it holds these very packages already.

    Raises:
        UserError: venv or pip failed; names the log.
    """
    venv, log = ROOT / ".cache" / f"peer_{name}", ROOT / ".cache" / f"peer_{name}.log"
    python = venv / "bin" / "python"
    stamp = venv / f"installed-{hashlib.sha256(repr(list(requirements)).encode()).hexdigest()[:16]}"
    if stamp.is_file():
        return python
    print(f"making {venv} with {', '.join(requirements)} (see {log})", flush=True)
    shutil.rmtree(venv, ignore_errors=True)
    log.parent.mkdir(exist_ok=True)
    log.write_text("", encoding="utf-8")
    commands.run(log, sys.executable, "-m", "venv", venv)
    commands.run(log, python, "-m", "pip", "install", *requirements)
    stamp.touch()
    return python
