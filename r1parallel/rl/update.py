"""Optimizer updates on one step's experience."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from r1parallel.config.schema import RLConfig
from r1parallel.rl.experience.experience import Experience
from r1parallel.rl.experience.rows import GraphRows
from r1parallel.rl.objective.correction import check_gap, rollout_gap
from r1parallel.rl.objective.losses import TokenInputs, TokenValues, loss_weights, token_values
from r1parallel.training.step import TrainStep


@dataclass(frozen=True)
class Batch:
    """Completions of one optimizer update.

    Attributes:
        iteration: which pass over the step's completions, from 0.
        samples: int [n], which of the N.
        rows: how they stand in the training graph.
    """

    iteration: int
    samples: np.ndarray
    rows: GraphRows


@dataclass
class TokenStatistics:
    """Sums over the tokens that are learned from, for the step's metrics."""

    tokens: float = 0.0
    ratio: float = 0.0
    kl: float = 0.0
    clipped: float = 0.0
    entropy: float = 0.0
    losses: list[float] = field(default_factory=list)
    kl_losses: list[float] = field(default_factory=list)
    entropy_losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    first_ratio_deviation: float = 0.0  # max |ratio − 1| in the step's first update
    first_clipped: float = 0.0  # tokens clipped in the step's first update …
    first_kl: float = 0.0  # max |KL| in it …
    first_tokens: float = 0.0  # … of so many


def update_batches(count: int, batch: int, iterations: int, seed: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(pass, samples) of every update: each pass takes all rows once, in an order of its own.

    Where `batch` does not divide `count`, a pass has one update more and they differ by at most one sample.
    """
    for iteration in range(iterations):
        order = np.random.default_rng([*seed, iteration]).permutation(count)
        for samples in np.array_split(order, -(-count // batch)):
            yield iteration, samples


def token_inputs(experience: Experience, batch: Batch, settings: RLConfig, beta: float) -> TokenInputs:
    """What the loss is told of an update; its denominators are taken over all of it."""
    slots, samples = experience.rollout_logps.shape[1], batch.samples
    weights = np.zeros(experience.rollout_logps.shape)
    lengths, counted = experience.lengths[samples], experience.counted[samples]
    weights[samples] = loss_weights(lengths, counted, slots, settings, slots)
    shares = experience.inside / experience.lengths[:, None]
    numbers = np.broadcast_to(np.arange(len(weights))[:, None], weights.shape)
    take = batch.rows.take
    return TokenInputs(
        take(experience.old_logps),
        take(experience.ref_logps),
        take(experience.advantages),
        take(weights),
        take(weights * experience.corrections),
        take(weights * beta),
        np.where(batch.rows.used, take(numbers), -1),
        take(shares),
    )


def run_update(
    step: TrainStep,
    experience: Experience,
    batch: Batch,
    settings: RLConfig,
    beta: float,
    lr: float,
    where: str,
    statistics: TokenStatistics,
    only_one: bool,
) -> None:
    """One update; adds to `statistics`.

    Args:
        step: of the actor.
        experience: of the step. With `only_one` update its `old_logps` are filled in here.
        batch: what is learned from.
        settings: of the loss.
        beta: weight of the KL term now.
        lr: learning rate.
        where: names the step in messages.
        statistics: of the step so far.
        only_one: this is the step's only update.

    Raises:
        UserError: loss or gradient is not finite (names the step and the prompts), or the gap is too large.
    """
    given, rows = token_inputs(experience, batch, settings, beta), batch.rows
    values = token_values(step.accumulate(rows.tokens, rows.places, given.joined()))
    if only_one:
        # Of a row that is not learned from the loss says nothing.
        kept = rows.take(experience.old_logps)
        rows.put(np.where(given.weights > 0, values.logps, kept), experience.old_logps)
        gap = rollout_gap(experience.old_logps, experience.rollout_logps, experience.learned)
        check_gap(gap, settings.rollout_gap_limit, where)
    loss = float(values.loss.sum(dtype=np.float64))
    kl_loss = float((values.kl * given.kl_weights).sum(dtype=np.float64))
    entropy = float((values.entropy * given.weights).sum(dtype=np.float64))
    _add(statistics, values, given.weights > 0)
    prompts = ", ".join(str(row) for row in np.unique(experience.prompt_rows[batch.samples])[:8])
    norm = step.apply(lr, loss, f"{where}, data set rows {prompts}")
    statistics.losses.append(loss)
    statistics.kl_losses.append(kl_loss)
    statistics.entropy_losses.append(-settings.entropy_coef * entropy)
    statistics.norms.append(norm)
    statistics.lrs.append(lr)


def _add(statistics: TokenStatistics, values: TokenValues, counted: np.ndarray) -> None:
    """The sums over the tokens of one update that count, bool [R, K]."""
    statistics.tokens += counted.sum()
    statistics.ratio += values.ratio[counted].sum(dtype=np.float64)
    statistics.kl += values.kl[counted].sum(dtype=np.float64)
    statistics.clipped += values.clipped[counted].sum(dtype=np.float64)
    statistics.entropy += values.entropy[counted].sum(dtype=np.float64)
    if not statistics.losses and counted.any():
        statistics.first_ratio_deviation = float(np.abs(values.ratio[counted] - 1.0).max())
        statistics.first_clipped = float(values.clipped[counted].sum())
        statistics.first_kl = float(np.abs(values.kl[counted]).max())
        statistics.first_tokens = float(counted.sum())
