"""The numbers of a run: one JSON line a step, and the same numbers for TensorBoard."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1parallel.monitor.json_lines import StepLines, read_records

METRICS_FILE = "metrics.jsonl"

# Our plain name -> the tags that users of mindrlhf have their dashboards on. Any other metric keeps its name.
TENSORBOARD_TAGS: dict[str, tuple[str, ...]] = {
    "loss": ("Training_loss/total_loss",),
    "actor_loss": ("Training_loss/actor_loss",),
    "kl_loss": ("Training_loss/kl_loss",),
    "lr": ("Training_others/lr",),
    "grad_norm": ("Training_others/grad_norm",),
    "ratio_mean": ("Training_grpo/old_policy_ratio",),
    "clip_fraction": ("Training_grpo/clipfrac",),
    "reward_mean": ("average-scores", "reward_mean"),
    "completion_length_mean": ("mean-completion-length", "response_length_mean"),
    "completion_length_min": ("response_length_min",),
    "completion_length_max": ("response_length_max",),
    "completion_clipped_fraction": ("response_length_clip_ratio",),
}


class MetricsWriter:
    """Writes each step's metrics to `run_dir`/metrics.jsonl and, if `tensorboard_dir` is given, to TensorBoard.

    `resume_step` is the step of the checkpoint that the run goes on from: later lines are cut off the file and
    later TensorBoard points are hidden. With None the run is fresh; raises UserError if the file has lines.
    """

    def __init__(self, run_dir: Path, tensorboard_dir: Path | None, resume_step: int | None):
        self._lines = StepLines(run_dir / METRICS_FILE, resume_step)
        self._board = None
        if tensorboard_dir is not None:
            from tensorboardX import SummaryWriter  # imports torch where there is one, which takes seconds

            purge_step = None if resume_step is None else resume_step + 1
            self._board = SummaryWriter(str(tensorboard_dir), purge_step=purge_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one step. Equal floats give equal text. Raises ValueError, and writes nothing, on a non-finite."""
        values = {name: float(value) for name, value in metrics.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"metric {name} is {value} at step {step}")
        self._lines.append({"step": step, **values})
        if self._board is not None:
            for name, value in values.items():
                for tag in TENSORBOARD_TAGS.get(name, (name,)):
                    self._board.add_scalar(tag, value, step)
            self._board.flush()

    def close(self) -> None:
        """Close the file and the TensorBoard writer."""
        self._lines.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl: one dict {"step": int, name: float, …} a line. Raises UserError if there is no such file."""
    return list(read_records(path))
