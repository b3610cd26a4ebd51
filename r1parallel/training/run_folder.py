"""A run's folder: settings, metrics, samples and checkpoints, fresh or resumed."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from r1parallel.atomic import replacing
from r1parallel.checkpoint.run_state import latest_run_state, load_run_state, save_run_state
from r1parallel.config import RunConfig
from r1parallel.errors import UserError
from r1parallel.monitor.metrics import MetricsWriter
from r1parallel.monitor.samples import SampleLog

Tensors = dict[str, dict[str, np.ndarray]]


class RunFolder:
    """The folder of one run. Making it only reads, so that a refused run changes nothing; `open` starts writing.

    Args:
        config: the whole run; written to config.json.
        sections: which sections the command uses.
        output_dir: the folder.
        save_dir: where checkpoints go; empty: <output_dir>/checkpoints.
        tensorboard_dir: None: no TensorBoard files.
        resume: go on from the newest checkpoint.
        identity: what must not change between a run and its continuation (data set, batch sizes, seed).

    Raises:
        UserError: the folder holds a run and `resume` is off, or its checkpoint is of another `identity`.
    """

    def __init__(
        self,
        config: RunConfig,
        sections: tuple[str, ...],
        output_dir: str,
        save_dir: str,
        tensorboard_dir: Path | None,
        resume: bool,
        identity: dict[str, Any],
    ):
        self.path = Path(output_dir)
        self._config, self._sections, self._tensorboard_dir, self._resume = config, sections, tensorboard_dir, resume
        self.checkpoints = Path(save_dir) if save_dir else self.path / "checkpoints"
        self._identity = identity
        self.step = 0  # steps done when this process starts
        self.tensors: Tensors = {}
        self.state: dict[str, Any] = {}
        if resume:
            self._restore()
        elif latest_run_state(self.checkpoints) is not None:
            raise UserError(
                f"{self.checkpoints}: holds checkpoints of a run; go on with --resume_training or choose another folder"
            )

    def open(self) -> None:
        """Open metrics and samples, cut back to the checkpoint, and write config.json.

        Raises:
            UserError: the folder holds lines of a run and `resume` is off.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        resume_step = self.step if self._resume else None
        self.metrics = MetricsWriter(self.path, self._tensorboard_dir, resume_step)
        self.samples = SampleLog(self.path, resume_step)
        settings = {name: value for name, value in asdict(self._config).items() if name in self._sections}
        with replacing(self.path / "config.json") as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _restore(self) -> None:
        newest = latest_run_state(self.checkpoints)
        if newest is None:
            print(f"no checkpoint in {self.checkpoints} yet: starting at step 0", flush=True)
            return
        files, self.state = load_run_state(newest)
        self.tensors = {
            group: {name: entry.read() for name, entry in tensors.items()} for group, tensors in files.items()
        }
        self.step = int(self.state["step"])
        for key, value in self._identity.items():
            if self.state["identity"].get(key) != value:
                raise UserError(
                    f"{newest}: {key} was {self.state['identity'].get(key)!r}, now it is {value!r}; "
                    "a run is resumed with the settings it was started with"
                )
        print(f"resumed from {newest}", flush=True)

    def save(self, step: int, tensors: Tensors, state: Mapping[str, Any], keep: int) -> None:
        """Write the checkpoint of `step`, whole or not at all, and remove all but the newest `keep`."""
        whole = {"step": step, "identity": self._identity, **state}
        save_run_state(self.checkpoints, step, tensors, whole, keep)

    def close(self) -> None:
        """Close metrics and samples."""
        self.metrics.close()
        self.samples.close()


def check_steps_left(done: int, total: int, raise_what: str) -> None:
    """Refuse a resumed run that has nothing left to do, which would otherwise end at once and look trained."""
    if done >= total:
        raise UserError(f"the run is complete: {done} of {total} steps are done; raise {raise_what} to go on")
