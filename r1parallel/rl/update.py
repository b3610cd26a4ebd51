"""Optimizer updates on one step's experience."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from r1parallel.rl.experience import Experience
from r1parallel.rl.losses import TokenValues, sequence_mean_weights, token_values
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
    beta: float,
    lr: float,
    where: str,
    statistics: TokenStatistics,
    first_pass: bool,
) -> None:
    """One update on `rows` of the experience; adds to `statistics`.

    Raises:
        UserError: loss or gradient is not finite; names the step and the prompts.
    """
    weights = sequence_mean_weights(experience.lengths[rows], experience.kept[rows], experience.rollout_logps.shape[1])
    values = token_values(
        step.accumulate(
            experience.tokens[rows],
            experience.starts[rows],
            experience.old_logps[rows],
            experience.ref_logps[rows],
            experience.advantages[rows, None],
            weights,
        )
    )
    loss = float(values.loss.sum(dtype=np.float64))
    kl_loss = beta * float((values.kl * weights).sum(dtype=np.float64))
    _add(statistics, values, weights > 0)
    if first_pass and (weights > 0).any():
        # The first update has moved the policy; `old_logps` are the training graph's own from before it.
        before = experience.old_logps[rows] if statistics.losses else values.logps
        gap = np.abs(before - experience.rollout_logps[rows])[weights > 0]
        statistics.gap += gap.sum(dtype=np.float64)
        statistics.gap_tokens += gap.size
        statistics.gap_max = max(statistics.gap_max, float(gap.max()))
    prompts = ", ".join(str(row) for row in np.unique(experience.prompt_rows[rows])[:8])
    norm = step.apply(lr, loss, f"{where}, data set rows {prompts}")
    statistics.losses.append(loss)
    statistics.kl_losses.append(kl_loss)
    statistics.norms.append(norm)
    statistics.lrs.append(lr)


def _add(statistics: TokenStatistics, values: TokenValues, counted: np.ndarray) -> None:
    """The sums over the tokens of one update that count, bool [N, C]."""
    statistics.tokens += counted.sum()
    statistics.ratio += values.ratio[counted].sum(dtype=np.float64)
    statistics.kl += values.kl[counted].sum(dtype=np.float64)
    statistics.clipped += values.clipped[counted].sum(dtype=np.float64)
    if not statistics.losses and counted.any():
        statistics.first_ratio_deviation = float(np.abs(values.ratio[counted] - 1.0).max())
        statistics.first_clipped = float(values.clipped[counted].sum())
        statistics.first_tokens = float(counted.sum())
