"""What all rounds of benchmarks.speed share: each process has a folder of its own, which keeps its job and log."""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.commands import Commands
from benchmarks.speed.cases import write_job
from r1parallel.config.loading.load import GRPO_SECTIONS, load_config
from r1parallel.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[2]
GRPO_YAML = ROOT / "model_configs" / "smollm2_135m" / "grpo.yaml"
Found = dict[str, Any]  # what a process found, see `workers/timing.py`
Round = dict[str, dict[str, Found]]  # case → "ours" and, where there is one, "peer"


@dataclass(frozen=True)
class Bench:
    """What all rounds share."""

    out: Path
    commands: Commands
    peer_python: Path
    model: Path
    gsm8k: Path
    warm_up: int
    iterations: int
    steps: int

    @property
    def cache(self) -> Path:
        """Where ours keeps compiled kernels and graphs: XDG_CACHE_HOME of all that is run."""
        return self.work / "cache"

    @property
    def work(self) -> Path:
        """Holds the folders of the processes."""
        return self.out / "work"

    def ours(self, name: str, job: dict[str, Any], module: str = "ours") -> Found:
        return self.worker(name, "ours", Path(sys.executable), module, job)

    def peer(self, name: str, job: dict[str, Any], module: str = "transformers_peer") -> Found:
        return self.worker(name, "peer", self.peer_python, module, job)

    def worker(self, name: str, side: str, python: Path, module: str, job: dict[str, Any]) -> Found:
        folder = self.fresh(name, side)
        counts = {"warm_up": self.warm_up, "iterations": self.iterations}
        write_job(folder / "job.json", counts | job | {"model": self.model, "output": folder / "found.json"})
        words = ("-m", f"benchmarks.speed.workers.{module}", folder / "job.json")
        self.commands.run(folder / "log.txt", python, *words, cwd=folder)
        return self.said(name, side, json.loads((folder / "found.json").read_text(encoding="utf-8")))

    def fresh(self, name: str, side: str) -> Path:
        """An empty folder for one process; what the round before left there is gone."""
        folder = self.work / f"{name}_{side}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def said(self, name: str, side: str, found: Found) -> Found:
        seconds = ", ".join(f"{iteration['seconds']:.2f}" for iteration in found["iterations"])
        first = "" if found["first"] is None else f"; the first was done {found['first']:.1f} s after the start"
        print(f"{name}, {side}: {seconds} s{first}", flush=True)
        return found


def step_config(flags: Mapping[str, object]) -> RunConfig:
    return load_config(GRPO_YAML, texts(flags), GRPO_SECTIONS)


def texts(flags: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in flags.items()}
