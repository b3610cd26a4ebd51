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


@dataclass(frozen=True)
class Update:
    """One optimizer update of a step.

    Attributes:
        batch: what is learned from.
        beta: weight of the KL term.
        lr: learning rate.
        step_name: names the step in messages.
        on_policy: this is the step's only update, so its own log-probs are the old ones.
        has_old_logps: a forward graph has filled in the old log-probs before the step's first update.
        gap_limit: see `check_gap`.
    """

    batch: Batch
    beta: float
    lr: float
    step_name: str
    on_policy: bool
    has_old_logps: bool
    gap_limit: float


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
    first_ratio_deviation: float | None = None  # max |ratio − 1| in the step's first update; None: not measured
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
    """Inputs of the loss for one update; its denominators are taken over the whole update."""
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
    step: TrainStep, experience: Experience, update: Update, settings: RLConfig, statistics: TokenStatistics
) -> None:
    """Run one optimizer update.

    Args:
        step: the actor's.
        experience: of the step. If the update is `on_policy`, its `old_logps` are filled in here.
        update: what is learned from, and how.
        settings: of the loss.
        statistics: of the step so far; those of this update are added.

    Raises:
        UserError: loss or gradient is not finite (names the step and the prompts), or the gap is too large.
    """
    batch, rows = update.batch, update.batch.rows
    inputs = token_inputs(experience, batch, settings, update.beta)
    counted = inputs.weights > 0
    values = token_values(step.accumulate(rows.tokens, rows.row_data, inputs.concatenated()))
    if not statistics.losses and update.has_old_logps and counted.any():
        statistics.first_ratio_deviation = _ratio_deviation(values, inputs, counted, update.on_policy)
    if update.on_policy:
        # The graph's output has no meaning for rows that are not learned from.
        kept = rows.take(experience.old_logps)
        rows.put(np.where(counted, values.logps, kept), experience.old_logps)
        gap = rollout_gap(experience.old_logps, experience.rollout_logps, experience.learned)
        check_gap(gap, update.gap_limit, update.step_name)
    loss = float(values.loss.sum(dtype=np.float64))
    kl_loss = float((values.kl * inputs.kl_weights).sum(dtype=np.float64))
    entropy = float((values.entropy * inputs.weights).sum(dtype=np.float64))
    _add(statistics, values, counted)
    prompts = ", ".join(str(row) for row in np.unique(experience.prompt_rows[batch.samples])[:8])
    norm = step.apply(update.lr, loss, f"{update.step_name}, data set rows {prompts}")
    statistics.losses.append(loss)
    statistics.kl_losses.append(kl_loss)
    statistics.entropy_losses.append(-settings.entropy_coef * entropy)
    statistics.norms.append(norm)
    statistics.lrs.append(update.lr)


def _ratio_deviation(values: TokenValues, inputs: TokenInputs, counted: np.ndarray, on_policy: bool) -> float:
    """Largest |ratio − 1| against the forward graph's log-probs; on policy the loss does not see these."""
    ratio = np.exp(values.logps - inputs.old) if on_policy else values.ratio
    return float(np.abs(ratio[counted] - 1.0).max())


def _add(statistics: TokenStatistics, values: TokenValues, counted: np.ndarray) -> None:
    """The sums over the tokens of one update that count, bool [R, K]."""
    statistics.tokens += counted.sum()
    statistics.ratio += values.ratio[counted].sum(dtype=np.float64)
    statistics.kl += values.kl[counted].sum(dtype=np.float64)
    statistics.clipped += values.clipped[counted].sum(dtype=np.float64)
    statistics.entropy += values.entropy[counted].sum(dtype=np.float64)
    if not statistics.losses and counted.any():
        statistics.first_clipped = float(values.clipped[counted].sum())
        statistics.first_kl = float(np.abs(values.kl[counted]).max())
        statistics.first_tokens = float(counted.sum())
