"""Optimizer updates on one step's experience."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from r1parallel.rl.experience import Experience
from r1parallel.rl.losses import sequence_mean_weights
from r1parallel.training.step import TrainStep


@dataclass
class TokenStatistics:
    """Sums over the tokens of kept rows, for the step's metrics."""

    tokens: float = 0.0
    ratio: float = 0.0
    kl: float = 0.0
    clipped: float = 0.0
    gap: float = 0.0  # |training log-prob − rollout log-prob|, only of the first pass
    gap_tokens: float = 0.0
    gap_max: float = 0.0
    losses: list[float] = field(default_factory=list)
    kl_losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    first_ratio_deviation: float = 0.0  # max |ratio − 1| in the step's first update
    first_clipped: float = 0.0  # tokens clipped in the step's first update …
    first_tokens: float = 0.0  # … of so many


def update_batches(count: int, batch: int, iterations: int, seed: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(pass, rows [batch]) of every update: each pass takes all rows once, in an order of its own."""
    for iteration in range(iterations):
        order = np.random.default_rng([*seed, iteration]).permutation(count)
        for first in range(0, count, batch):
            yield iteration, order[first : first + batch]


def run_update(
    step: TrainStep,
    experience: Experience,
    rows: np.ndarray,
    micro_rows: int,
    beta: float,
    lr: float,
    where: str,
    statistics: TokenStatistics,
    first_pass: bool,
) -> None:
    """One update on `rows` of the experience, `micro_rows` at a time; adds to `statistics`.

    Raises:
        UserError: loss or gradient is not finite; names the step and the prompts.
    """
    kept, lengths = experience.kept[rows], experience.lengths[rows]
    weights = sequence_mean_weights(lengths, kept, experience.rollout_logps.shape[1])
    loss, kl_loss, is_first = 0.0, 0.0, not statistics.losses
    for first in range(0, len(rows), micro_rows):
        part = rows[first : first + micro_rows]
        part_weights = weights[first : first + micro_rows]
        part_loss, logps, ratio, kl, clipped = step.accumulate(
            experience.tokens[part],
            experience.starts[part],
            experience.old_logps[part],
            experience.ref_logps[part],
            experience.advantages[part, None],
            part_weights,
        )
        loss += float(part_loss)
        kl_loss += beta * float((kl * part_weights).sum(dtype=np.float64))
        counted = part_weights > 0
        statistics.tokens += counted.sum()
        statistics.ratio += ratio[counted].sum(dtype=np.float64)
        statistics.kl += kl[counted].sum(dtype=np.float64)
        statistics.clipped += clipped[counted].sum(dtype=np.float64)
        if is_first and counted.any():
            deviation = float(np.abs(ratio[counted] - 1.0).max())
            statistics.first_ratio_deviation = max(statistics.first_ratio_deviation, deviation)
            statistics.first_clipped += float(clipped[counted].sum())
            statistics.first_tokens += float(counted.sum())
        if first_pass and counted.any():
            # The first update has moved the policy; `old_logps` are the training graph's own from before it.
            before = logps if is_first else experience.old_logps[part]
            gap = np.abs(before - experience.rollout_logps[part])[counted]
            statistics.gap += gap.sum(dtype=np.float64)
            statistics.gap_tokens += counted.sum()
            statistics.gap_max = max(statistics.gap_max, float(gap.max()))
    prompts = ", ".join(str(row) for row in np.unique(experience.prompt_rows[rows])[:8])
    norm = step.apply(lr, loss, f"{where}, data set rows {prompts}")
    statistics.losses.append(loss)
    statistics.kl_losses.append(kl_loss)
    statistics.norms.append(norm)
    statistics.lrs.append(lr)
