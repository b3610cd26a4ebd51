"""Random updates to compute_advantages, and what the package is told of them."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from helpers.paper_pieces import Batch, only
from r1parallel.config.presets import PRESETS
from r1parallel.config.schema import RLConfig
from r1parallel.generation.engine import Completions
from r1parallel.rewards import Scores
from r1parallel.rl.experience.experience import collect, compute_advantages
from r1parallel.rl.experience.rows import GraphRows
from r1parallel.rl.objective.losses import TokenInputs
from r1parallel.rl.update import Batch as UpdateBatch
from r1parallel.rl.update import token_inputs

GROUP, ROWS, SLOTS = 3, 6, 7  # two groups
SPREADS = (3e-4, 0.08, 0.3, 1.0, 6.0)  # of the log ratios
FARTHEST = 20.0  # no log ratio is larger
GARBAGE = np.array([-1e4, 80.0, np.inf, -np.inf, np.nan, 0.0])


@dataclass(frozen=True)
class Case:
    """A batch, the policy's log-probs of it and its largest |log ratio|, to the old policy or to the reference."""

    batch: Batch
    logps: np.ndarray
    farthest: float


def settings_of(preset: str, **changes) -> RLConfig:
    return replace(RLConfig(), **{**PRESETS[preset], "algorithm": preset, "num_generations": GROUP, **changes})


@cache
def random_case(seed: int) -> Case:
    """Log-probs are multiples of 2^-16 nats, whose differences float32 holds; past the end of a row is garbage."""
    rng = np.random.default_rng(seed)
    spread = SPREADS[seed % len(SPREADS)]

    def numbers(scale: float) -> np.ndarray:
        return np.round(np.clip(rng.normal(0, scale, (ROWS, SLOTS)), -FARTHEST, FARTHEST) * 65536) / 65536

    logps = -np.abs(numbers(3.0))
    old, ref = logps + numbers(spread), logps + numbers(spread)
    if spread == SPREADS[-1]:
        old[0, 0], old[-1, 0] = logps[0, 0] - FARTHEST, logps[-1, 0] + FARTHEST
    lengths = rng.integers(1, SLOTS + 1, ROWS)
    lengths[seed % ROWS], lengths[(seed + 1) % ROWS] = 1, SLOTS
    rewards = rng.integers(0, 3, ROWS) + rng.choice([0.0, 0.5], ROWS)
    kind = seed // len(SPREADS) % 10
    if kind == 0:
        rewards[:] = 0.1
    if kind == 1:
        rewards[:GROUP] = 0.1
    if kind == 2:
        rewards[GROUP + seed % GROUP] = np.nan
    masked = rng.random(ROWS) < (0.3 if seed % 3 == 1 else 0.0)
    if seed % 50 == 7:
        masked[:] = True
    batch = Batch(rewards, GROUP, lengths, old, ref, masked)
    differences = [np.abs(only(batch.inside, logps - other)).max() for other in (old, ref)]
    for array in (logps, old, ref):
        array[~batch.inside] = rng.choice(GARBAGE, (~batch.inside).sum())
    return Case(batch, logps, float(max(differences)))


def told(case: Case, settings: RLConfig) -> TokenInputs:
    """What the trainer would tell the loss of this update, one completion in a row."""
    batch, (rows, slots) = case.batch, case.logps.shape
    empty = np.zeros(case.logps.shape, np.float32)
    completions = Completions(empty.astype(np.int32), batch.lengths, empty, empty, stopped=~batch.masked)
    scores = Scores(batch.rewards, {}, np.isnan(batch.rewards), timeouts=0, failures=0)
    masking = replace(settings, overlong="mask")  # for every preset; rewards are as they are
    experience = collect([[1]] * rows, np.arange(rows), completions, scores, masking, prompt_length=1, pad_id=0)
    experience.old_logps = batch.old.astype(np.float32)
    experience.ref_logps = batch.ref.astype(np.float32)
    with np.errstate(invalid="ignore"):  # of the garbage
        compute_advantages(experience, settings, settings.beta)
    samples = np.broadcast_to(np.arange(rows)[:, None], case.logps.shape)
    tokens = np.broadcast_to(np.arange(slots), case.logps.shape)
    graph_rows = GraphRows(experience.tokens, experience.starts, np.where(batch.inside, samples, -1), tokens)
    return token_inputs(experience, UpdateBatch(0, np.arange(rows), graph_rows), settings, settings.beta)


def stacked(parts: list[TokenInputs]) -> TokenInputs:
    return TokenInputs(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))
