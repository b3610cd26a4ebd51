"""A run's folder: settings, metrics, samples and checkpoints, fresh or resumed."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from r1parallel.atomic import replacing
from r1parallel.checkpoint.reading.source import CheckpointSource
from r1parallel.checkpoint.run_state import latest_run_state, load_run_state, save_run_state, step_name
from r1parallel.checkpoint.writing.shards import Shards
from r1parallel.config.schema import RunConfig
from r1parallel.errors import UserError
from r1parallel.monitor.metrics import MetricsWriter
from r1parallel.monitor.samples import SampleLog
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.moving.collectives import broadcast

_NONE = -1  # no checkpoint, among step numbers


class RunFolder:
    """The folder of one run. Making it and `restore` only read, so that a refused run changes nothing; `open` writes.

    It is made before anything is compiled: who names a used folder is told so at once.

    Every rank has one and calls the same methods. Rank 0 chooses the checkpoint to resume from, and alone writes
    config.json, metrics and samples; every rank writes its own slices into a checkpoint.

    Attributes:
        step: steps done when this process starts.
        sources: group → full tensors of the checkpoint, read slice by slice; empty where none is resumed from.
        state: of that checkpoint.

    Args:
        config: the whole run; written to config.json.
        sections: which sections the command uses.
        output_dir: the folder.
        save_dir: where checkpoints go; empty: <output_dir>/checkpoints.
        tensorboard_dir: None: no TensorBoard files.
        resume: go on from the newest checkpoint.
        world: which rank this is.

    Raises:
        UserError: the folder holds checkpoints and `resume` is off.
    """

    def __init__(
        self,
        config: RunConfig,
        sections: tuple[str, ...],
        output_dir: str,
        save_dir: str,
        tensorboard_dir: Path | None,
        resume: bool,
        world: World,
    ):
        self.path = Path(output_dir)
        self.model = self.path / "model"  # the final weights
        self._config, self._sections, self._tensorboard_dir, self._resume = config, sections, tensorboard_dir, resume
        self.checkpoints = Path(save_dir) if save_dir else self.path / "checkpoints"
        self._world, self._identity = world, dict[str, Any]()
        self.step = 0
        self.sources: dict[str, CheckpointSource] = {}
        self.state: dict[str, Any] = {}
        self._found = self._newest()
        if self._found is not None and not resume:
            raise UserError(
                f"{self.checkpoints}: holds checkpoints of a run; go on with --resume_training or choose another folder"
            )

    def open(self) -> None:
        """Open metrics and samples, cut back to the checkpoint, and write config.json.

        Raises:
            UserError: the folder holds lines of a run and `resume` is off.
        """
        if not self._world.is_leader:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        resume_step = self.step if self._resume else None
        self._metrics = MetricsWriter(self.path, self._tensorboard_dir, resume_step)
        self._samples = SampleLog(self.path, resume_step)
        settings = {name: value for name, value in asdict(self._config).items() if name in self._sections}
        with replacing(self.path / "config.json") as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _newest(self) -> Path | None:
        """The checkpoint that rank 0 finds: whole, and the newest."""
        found = latest_run_state(self.checkpoints) if self._world.is_leader else None
        step = _NONE if found is None else int(found.name.rpartition("_")[2])
        step = int(broadcast(self._world, np.array([step], np.int64), "which checkpoint is the newest")[0])
        return None if step == _NONE else self.checkpoints / step_name(step)

    def restore(self, identity: dict[str, Any]) -> None:
        """Open the newest checkpoint if the run is to go on from one.

        Args:
            identity: what must not change between a run and its continuation (data set, batch sizes, seed). The layout
                and the number of ranks may.

        Raises:
            UserError: the checkpoint is of another `identity`.
        """
        self._identity, newest = identity, self._found
        if not self._resume:
            return
        if newest is None:
            self._say(f"no checkpoint in {self.checkpoints} yet: starting at step 0")
            return
        self.sources, self.state = load_run_state(newest)
        self.step = int(self.state["step"])
        for key, value in identity.items():
            if self.state["identity"].get(key) != value:
                raise UserError(
                    f"{newest}: {key} was {self.state['identity'].get(key)!r}, now it is {value!r}; "
                    "a run is resumed with the settings it was started with"
                )
        self._say(f"resumed from {newest}")

    def _say(self, text: str) -> None:
        if self._world.is_leader:
            print(text, flush=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the numbers of a step, which are the same on every rank."""
        if self._world.is_leader:
            self._metrics.write(step, metrics)

    def log_samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write completions of a step; rank 0's."""
        if self._world.is_leader:
            self._samples.write(step, rows)

    def save(self, step: int, groups: Mapping[str, Shards], state: Mapping[str, Any], keep: int) -> None:
        """Write the checkpoint of `step`, whole or not at all, and remove all but the newest `keep`.

        Args:
            step: steps done.
            groups: this rank's slices of each group: actor, optimizer, reference.
            state: counters.
            keep: how many checkpoints stay.
        """
        whole = {"step": step, "identity": self._identity, **state}
        save_run_state(self.checkpoints, step, groups, whole, keep, self._world)

    def close(self) -> None:
        """Close metrics and samples."""
        if self._world.is_leader:
            self._metrics.close()
            self._samples.close()


def check_steps_left(done: int, total: int, model: Path, raise_what: str) -> None:
    """Refuse a resumed run that has nothing left to do, which would otherwise end at once and look trained.

    One that was stopped between its last checkpoint and its `model` has that left.
    """
    if done >= total and model.exists():
        raise UserError(f"the run is complete: {done} of {total} steps are done; raise {raise_what} to go on")
