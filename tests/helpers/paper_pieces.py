"""What the published objectives are made of, in NumPy and float64, written from the papers.

Shape letters: N completions, G of one prompt, standing next to each other, C token slots; `...` any leading axes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

STEP = 1e-6  # of the finite differences, in nats
EXP = np.exp  # a test puts another machine's in its place


@dataclass(frozen=True)
class Batch:
    """One update's completions.

    Attributes:
        rewards: [N]; NaN: cannot be scored, which leaves its whole group out.
        group: G.
        lengths: [N], tokens of each completion, the one that ends it included.
        old: [N, C], log-probs by the policy that drew the completions; anything past their end.
        ref: [N, C], log-probs by the reference.
        masked: bool [N], completions left out of the loss because they were cut off.
    """

    rewards: np.ndarray
    group: int
    lengths: np.ndarray
    old: np.ndarray
    ref: np.ndarray
    masked: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """Bool [N]: rows of groups in which everything could be scored."""
        return np.repeat(~np.isnan(self.rewards.reshape(-1, self.group)).any(axis=1), self.group)

    @property
    def counted(self) -> np.ndarray:
        """Bool [N]: rows that the loss is made of."""
        return self.kept & ~self.masked

    @property
    def inside(self) -> np.ndarray:
        """Bool [N, C]: where a token stands."""
        return np.arange(self.old.shape[1]) < self.lengths[:, None]

    @property
    def tokens(self) -> np.ndarray:
        """Bool [N, C]: tokens that the loss is made of."""
        return self.inside & self.counted[:, None]


# From log-probs [..., N, C] and the point [N, C] at which stopped gradients stand still: the parts of the loss. Each
# part is one number a token or a completion; the loss is the sum of them all.
Terms = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class Judgement:
    """What a paper says of a batch: advantages [N, C] of its tokens and the loss."""

    advantages: np.ndarray
    terms: Terms

    def loss(self, logps: np.ndarray) -> float:
        return sum(float(part.sum()) for part in self.terms(logps, logps))

    def size(self, logps: np.ndarray) -> float:
        """Of all that is added up, without signs: rounding is a share of this."""
        return sum(float(np.abs(part).sum()) for part in self.terms(logps, logps))

    def slopes(self, logps: np.ndarray) -> list[np.ndarray]:
        """Gradient [N, C] of each part by the log-probs: central differences, one log-prob moved at a time.

        Differences are taken term by term before they are summed: what does not move takes part with an exact 0.
        """
        moves = STEP * np.eye(logps.size).reshape(-1, *logps.shape)
        pairs = zip(self.terms(logps + moves, logps), self.terms(logps - moves, logps), strict=True)
        return [
            ((up - down).reshape(len(moves), -1).sum(axis=1) / (2 * STEP)).reshape(logps.shape) for up, down in pairs
        ]


def only(where: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values where something stands, 0 elsewhere, whatever garbage is there."""
    return np.where(where, np.where(where, values, 0.0), 0.0)


def difference(where: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return only(where, left) - only(where, right)


# --- advantages ---


def group_relative(rewards: np.ndarray, group: int, scaled: bool = True, eps: float = 1e-6) -> np.ndarray:
    """Shao et al. 2024, section 4.1.2: (r − mean) / std of the group. `scaled=False` is Liu et al. 2025: r − mean.

    The paper leaves open which standard deviation, and what a group of equal rewards gets: here it is that of a sample
    (G − 1), with 1e-6 added, and 0. A group that cannot be scored has no advantage.
    """
    groups = rewards.reshape(-1, group)
    centred = groups - groups.mean(axis=1, keepdims=True)
    if scaled:
        centred = centred / (groups.std(axis=1, ddof=1, keepdims=True) + eps)
    equal = groups.max(axis=1, keepdims=True) == groups.min(axis=1, keepdims=True)
    return np.nan_to_num(np.where(equal, 0.0, centred)).reshape(-1)


def without_equal_groups(batch: Batch) -> Batch:
    """Yu et al. 2025, the condition of eq. 8: no group of answers that are all right or all wrong is in the batch."""
    groups = batch.rewards.reshape(-1, batch.group)
    equal = np.repeat(groups.max(axis=1) == groups.min(axis=1), batch.group)
    return replace(batch, masked=batch.masked | equal)


def leave_one_out(rewards: np.ndarray, group: int) -> np.ndarray:
    """Ahmadian et al. 2024, the RLOO estimator: R(y_i) − 1/(k − 1) · Σ_{j ≠ i} R(y_j)."""
    result = []
    for first in range(0, len(rewards), group):
        members = rewards[first : first + group]
        for i in range(group):
            others = np.delete(members, i)
            result.append(members[i] - others.sum() / (group - 1))
    return np.nan_to_num(np.array(result))


def whitened(values: np.ndarray, where: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    """Hu et al. 2025, global advantage normalisation: (A − mean) / std over every token of the batch.

    Again the sample's standard deviation with 1e-6 added; 0 where all are equal.
    """
    chosen = values[where]
    if len(chosen) == 0 or chosen.max() == chosen.min():
        return np.zeros_like(values)
    return only(where, (values - chosen.mean()) / (chosen.std(ddof=1) + eps))


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """Yu et al. 2025, eq. 13, added to the reward: 0, then falling over the last `buffer` tokens, then −1."""
    if length <= limit - buffer:
        return 0.0
    if length <= limit:
        return ((limit - buffer) - length) / buffer
    return -1.0


# --- the KL divergence of the policy from the reference, estimated at tokens that the policy drew ---


def kl_estimate(name: str, logps: np.ndarray, ref: np.ndarray) -> np.ndarray:
    """Schulman 2020, "Approximating KL divergence", with r = p / q, p the reference and q the policy.

    k1 = −log r; k2 = (log r)² / 2; k3 = (r − 1) − log r. "abs" = |log r| is not in it.
    """
    log_r = ref - logps
    return {
        "k1": -log_r,
        "k2": log_r**2 / 2,
        "k3": (EXP(log_r) - 1) - log_r,
        "abs": np.abs(log_r),
    }[name]


# --- what is maximised ---


def clipped(ratio: np.ndarray, advantage: np.ndarray, low: float, high: float, dual: float | None = None) -> np.ndarray:
    """Schulman et al. 2017, eq. 7, its two sides apart: min(ratio · A, clip(ratio, 1 − low, 1 + high) · A).

    `dual` = c is Ye et al. 2019 (arXiv 1912.09729): where A < 0, max(that, c · A).
    """
    gain = np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)
    if dual is None:
        return gain
    return np.where(advantage < 0, np.maximum(gain, dual * advantage), gain)


# --- what a token weighs ---


def each_completion_alike(batch: Batch) -> np.ndarray:
    """Shao et al. 2024, eq. 3: 1/G · Σ_i 1/|o_i| · Σ_t, over all completions of the update that are counted."""
    return batch.tokens / np.maximum(1, batch.lengths)[:, None] / max(1, batch.counted.sum())


def each_token_alike(batch: Batch) -> np.ndarray:
    """Yu et al. 2025, eq. 8: 1 / Σ_i |o_i|, its sum over the whole update and not over one prompt's group."""
    return batch.tokens / max(1, batch.tokens.sum())


def by_constant(batch: Batch, constant: float) -> np.ndarray:
    """Liu et al. 2025: a sum over tokens over a constant, mean over completions."""
    return batch.tokens / constant / max(1, batch.counted.sum())
