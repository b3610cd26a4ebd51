"""The experience of one step. Shape letters: N completions, S = P + C slots, P prompt slots, C completion slots."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r1parallel.config.schema import RLConfig
from r1parallel.data.batches import right_aligned
from r1parallel.generation.engine import Completions
from r1parallel.rewards import Scores
from r1parallel.rl.objective.advantages import equal_groups, kept_rows, overlong_penalties, token_advantages
from r1parallel.rl.objective.correction import rollout_corrections
from r1parallel.rl.objective.kl import kl_values


@dataclass
class Experience:
    """The completions of one step with everything the loss needs, not yet split over batches or ranks.

    Attributes:
        tokens: int32 [N, S], prompts at the right end of their half, completions at the left end of theirs.
        starts: int32 [N], slot of a prompt's first token.
        lengths: int32 [N], tokens of a completion, its stop id included.
        stopped: bool [N], False: cut off at C tokens.
        prompt_rows: int [N], row of the data set.
        rollout_logps: float32 [N, C], from the rollout engine, under the model itself at the sampling temperature.
        drawn_logps: float32 [N, C], under the distribution that was drawn from: after cuts and penalties.
        old_logps: float32 [N, C], from the training graph before the first update.
        ref_logps: float32 [N, C], from the reference.
        rewards: float64 [N], the scores' sum less the penalty for length; NaN where the gold could not be read.
        scores: the parts of the rewards.
        counted: bool [N], rows that are learned from: in no group with a NaN, not masked, not left equal.
        advantages: float32 [N, C].
        corrections: float32 [N, C], see `rollout_corrections`.
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray
    prompt_rows: np.ndarray
    rollout_logps: np.ndarray
    drawn_logps: np.ndarray
    old_logps: np.ndarray
    ref_logps: np.ndarray
    rewards: np.ndarray
    scores: Scores
    counted: np.ndarray
    advantages: np.ndarray
    corrections: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        """Bool [N, C]: slots that hold a token of the completion."""
        return np.arange(self.rollout_logps.shape[1]) < self.lengths[:, None]

    @property
    def learned(self) -> np.ndarray:
        """Bool [N, C]: tokens that are learned from."""
        return self.inside & self.counted[:, None]


def collect(
    prompts: Sequence[Sequence[int]],
    prompt_rows: np.ndarray,
    completions: Completions,
    scores: Scores,
    settings: RLConfig,
    prompt_length: int,
    pad_id: int,
) -> Experience:
    """Prompts, completions and scores of all groups → experience, in which log-probs and advantages are still 0."""
    prompt_tokens, starts = right_aligned(prompts, prompt_length, pad_id)
    slots = completions.logps.shape[1]
    penalties = overlong_penalties(completions.lengths, completions.stopped, slots, settings)
    return Experience(
        tokens=np.concatenate([prompt_tokens, completions.tokens], axis=1),
        starts=starts,
        lengths=completions.lengths,
        stopped=completions.stopped,
        prompt_rows=prompt_rows,
        rollout_logps=completions.logps,
        drawn_logps=completions.drawn_logps,
        old_logps=np.zeros_like(completions.logps),
        ref_logps=np.zeros_like(completions.logps),
        rewards=scores.total - penalties,
        scores=scores,
        counted=_counted(scores.total, completions.stopped, settings),
        advantages=np.zeros_like(completions.logps),
        corrections=np.ones_like(completions.logps),
    )


def _counted(scores_N: np.ndarray, stopped_N: np.ndarray, settings: RLConfig) -> np.ndarray:
    group = settings.num_generations
    counted = kept_rows(scores_N, group)
    if settings.overlong == "mask":
        counted &= stopped_N
    if settings.dynamic_sampling:
        counted &= ~np.repeat(equal_groups(scores_N, group), group)
    return counted


def compute_advantages(experience: Experience, settings: RLConfig, beta: float) -> None:
    """Fill in advantages and corrections, from rewards and the log-probs that the settings ask for."""
    penalties_NC = np.zeros(experience.inside.shape)
    if kl_in_reward(settings):
        old, ref = experience.old_logps, experience.ref_logps
        penalties_NC = beta * kl_values(old, ref, settings.kl_estimator, settings.kl_clamp)
    experience.advantages = token_advantages(
        experience.rewards, penalties_NC, experience.lengths, settings.num_generations, settings
    )
    experience.corrections = rollout_corrections(
        experience.old_logps, experience.drawn_logps, experience.inside, settings
    )


def kl_in_reward(settings: RLConfig) -> bool:
    """Whether the KL penalty is subtracted from the rewards."""
    return settings.beta > 0.0 and settings.kl_place == "reward"


def needs_old_logps(settings: RLConfig, updates: int) -> bool:
    """Whether old log-probs are needed: by later updates, by a KL penalty in the reward, or by a correction."""
    return updates > 1 or kl_in_reward(settings) or settings.rollout_correction != "none"
