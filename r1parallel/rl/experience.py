"""What one step learns from. Shape letters: N completions, S = P + C slots, P prompt slots, C completion slots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from r1parallel.data.batches import right_aligned
from r1parallel.generation.engine import Completions
from r1parallel.parallel.waiting import waiting
from r1parallel.rewards import Scores
from r1parallel.rl.advantages import group_advantages, kept_rows


@dataclass
class Experience:
    """The completions of one step with everything the loss needs, not yet split over batches or ranks.

    Attributes:
        tokens: int32 [N, S], prompts at the right end of their half, completions at the left end of theirs.
        starts: int32 [N], slot of a prompt's first token.
        lengths: int32 [N], tokens of a completion, its stop id included.
        stopped: bool [N], False: cut off at C tokens.
        prompt_rows: int [N], row of the data set.
        rollout_logps: float32 [N, C], from the rollout engine.
        old_logps: float32 [N, C], from the training graph before the first update.
        ref_logps: float32 [N, C], from the reference.
        rewards: float64 [N], NaN where the gold answer could not be read.
        scores: the parts of the rewards.
        advantages: float32 [N].
        kept: bool [N], rows of groups without NaN.
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray
    prompt_rows: np.ndarray
    rollout_logps: np.ndarray
    old_logps: np.ndarray
    ref_logps: np.ndarray
    rewards: np.ndarray
    scores: Scores
    advantages: np.ndarray
    kept: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        """Bool [N, C]: slots that hold a token of the completion."""
        return np.arange(self.rollout_logps.shape[1]) < self.lengths[:, None]


def collect(
    prompts: Sequence[Sequence[int]],
    prompt_rows: np.ndarray,
    completions: Completions,
    scores: Scores,
    group: int,
    prompt_length: int,
    pad_id: int,
) -> Experience:
    """Prompts, completions and scores of all groups → experience; its old and reference log-probs are still 0."""
    prompt_tokens, starts = right_aligned(prompts, prompt_length, pad_id)
    empty = np.zeros_like(completions.logps)
    return Experience(
        tokens=np.concatenate([prompt_tokens, completions.tokens], axis=1),
        starts=starts,
        lengths=completions.lengths,
        stopped=completions.stopped,
        prompt_rows=prompt_rows,
        rollout_logps=completions.logps,
        old_logps=empty,
        ref_logps=empty,
        rewards=scores.total,
        scores=scores,
        advantages=group_advantages(scores.total, group),
        kept=kept_rows(scores.total, group),
    )


def batched_logps(
    logps: Callable[[Tensor, Tensor], Tensor] | nn.Cell,
    rows: int,
    experience: Experience,
    order: np.ndarray,
    desc: str,
    progress: bool,
) -> np.ndarray:
    """Log-probs of the completions that `order` names, `rows` at a time, which divides their number; others are 0.

    Returns:
        float32 [N, C].
    """
    count = len(order)
    assert count % rows == 0, (count, rows)
    result = np.zeros_like(experience.rollout_logps)
    for first in tqdm(range(0, count, rows), desc=desc, unit="batch", leave=False, disable=None if progress else True):
        batch = order[first : first + rows]
        with waiting(desc):
            result[batch] = logps(Tensor(experience.tokens[batch]), Tensor(experience.starts[batch])).asnumpy()
    return np.where(experience.inside, result, 0.0).astype(np.float32)
