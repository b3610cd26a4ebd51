"""Group advantages. Shape letters: N completions, G completions of one prompt, standing next to each other."""

import numpy as np

_EPS = 1e-6  # of the division by the group's standard deviation


def group_advantages(rewards_N: np.ndarray, group: int) -> np.ndarray:
    """(r − mean) / (std + 1e-6) inside each group, std with G − 1 (Shao et al. 2024, eq. 3 and section 4.1.2).

    A group whose rewards are all equal gets exactly 0. A group with a NaN (a gold answer that could not be read) gets
    0 everywhere; `kept_rows` tells it apart.

    Args:
        rewards_N: float64, groups of `group` next to each other.
        group: G.

    Returns:
        float32 [N].
    """
    rewards = rewards_N.reshape(-1, group)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    spread = rewards.std(axis=1, ddof=1, keepdims=True)
    flat = np.ptp(rewards, axis=1, keepdims=True) == 0
    advantages = np.where(flat | np.isnan(spread), 0.0, centred / (spread + _EPS))
    return advantages.reshape(-1).astype(np.float32)


def kept_rows(rewards_N: np.ndarray, group: int) -> np.ndarray:
    """Bool [N]: rows of groups in which every reward is a number."""
    return np.repeat(~np.isnan(rewards_N.reshape(-1, group)).any(axis=1), group)
