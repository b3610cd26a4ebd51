"""GRPO in NumPy, float64, one token at a time, from the formulas of Shao et al. 2024 (DeepSeekMath).

Section 4.1.2 gives the advantage of outcome supervision, equation 3 the objective (here with the two sides of the clip
apart), equation 4 the estimate of the KL divergence. The loss is the negated objective.
"""

import math
from dataclasses import dataclass

import numpy as np


def advantages(rewards: np.ndarray, group: int) -> np.ndarray:
    """(r - mean) / (std + 1e-6), std with group - 1; 0 where all of a group are equal or one cannot be scored."""
    result = []
    for first in range(0, len(rewards), group):
        members = [float(r) for r in rewards[first : first + group]]
        if any(math.isnan(r) for r in members) or max(members) == min(members):
            result += [0.0] * group
            continue
        mean = sum(members) / group
        std = math.sqrt(sum((r - mean) ** 2 for r in members) / (group - 1))
        result += [(r - mean) / (std + 1e-6) for r in members]
    return np.array(result)


def counted_rows(rewards: np.ndarray, group: int) -> np.ndarray:
    """Rows of groups in which every completion could be scored."""
    return np.array([not np.isnan(rewards[i // group * group :][:group]).any() for i in range(len(rewards))])


@dataclass
class Reference:
    """The loss, and of every token (0, or ratio 1, where none is counted) what the paper's terms are."""

    loss: float
    kl_loss: float  # its part beta · KL
    ratio: np.ndarray
    kl: np.ndarray
    clipped: np.ndarray  # 1 where the clip cuts the gradient
    gradient: np.ndarray  # of the loss by the log-probs


def grpo(
    logps: np.ndarray,
    old: np.ndarray,
    ref: np.ndarray,
    rewards: np.ndarray,
    group: int,
    lengths: np.ndarray,
    epsilon_low: float,
    epsilon_high: float,
    beta: float,
) -> Reference:
    """Log-probs [N, C] of N completions, `lengths` tokens each, `group` to a prompt."""
    scores, counted = advantages(rewards, group), counted_rows(rewards, group)
    empty = np.zeros(logps.shape)
    result = Reference(0.0, 0.0, empty + 1.0, empty.copy(), empty.copy(), empty.copy())
    for i in np.flatnonzero(counted):
        share = 1.0 / counted.sum() / lengths[i]
        for t in range(lengths[i]):
            logp, advantage = float(logps[i, t]), scores[i]
            ratio = math.exp(logp - float(old[i, t]))
            bounded = min(max(ratio, 1.0 - epsilon_low), 1.0 + epsilon_high)
            cut = bounded * advantage < ratio * advantage
            gain = min(ratio * advantage, bounded * advantage)
            gap = float(ref[i, t]) - logp
            kl = math.exp(gap) - gap - 1.0 if beta > 0 else 0.0
            result.loss -= share * (gain - beta * kl)
            result.kl_loss += share * beta * kl
            result.ratio[i, t], result.kl[i, t], result.clipped[i, t] = ratio, kl, float(cut)
            slope = 0.0 if cut else advantage * ratio
            kl_slope = 1.0 - math.exp(gap) if beta > 0 else 0.0
            result.gradient[i, t] = -share * (slope - beta * kl_slope)
    return result
