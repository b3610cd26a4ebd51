"""Advantages. Shape letters: N completions, G completions of one prompt, standing next to each other, C slots."""

import numpy as np

from r1parallel.config.schema import RLConfig

_EPS = 1e-6  # of the division by a standard deviation


def token_advantages(
    rewards_N: np.ndarray,
    penalties_NC: np.ndarray,
    lengths_N: np.ndarray,
    group: int,
    settings: RLConfig,
) -> np.ndarray:
    """The advantage of every token, float32 [N, C]; 0 where no token stands.

    group:  R − mean of the group, R the reward less all penalties of the completion
    rloo:   R − mean of the group's others (Ahmadian et al. 2024)
    reinforce_plus_plus:  r − penalties from this token on (Hu et al. 2025): no baseline but the batch's mean

    then divided by the standard deviation of the group or of all kept rows (for reinforce_plus_plus: of their tokens,
    whose mean is taken off as well), with 1 e-6 added to it. A standard deviation is taken with n − 1. Where all that
    it is taken of is equal, the advantage is exactly 0. A group with a NaN (a gold answer that could not be read) gets
    0 everywhere and counts in no mean; `kept_rows` tells it apart.

    Args:
        rewards_N: float64, groups of `group` next to each other.
        penalties_NC: what is taken off the reward at each token: beta · KL where the settings place it there, else 0.
        lengths_N: tokens of each completion.
        group: G.
        settings: `advantage_estimator` and `advantage_scale`.
    """
    inside_NC = np.arange(penalties_NC.shape[1]) < lengths_N[:, None]
    penalties_NC = np.where(inside_NC, penalties_NC, 0.0).astype(np.float64)
    kept_N = kept_rows(rewards_N, group)
    if settings.advantage_estimator == "reinforce_plus_plus":
        to_come_NC = np.cumsum(penalties_NC[:, ::-1], axis=1)[:, ::-1]
        values_NC = rewards_N[:, None] - to_come_NC
        counted_NC = inside_NC & kept_N[:, None]
        if settings.advantage_scale != "none":
            values_NC = _scaled(values_NC, settings.advantage_scale, counted_NC, group)
        return np.where(counted_NC, values_NC, 0.0).astype(np.float32)
    returns_N = rewards_N - penalties_NC.sum(axis=1)
    advantages_N = sequence_advantages(returns_N, group, settings)
    return np.where(inside_NC, advantages_N[:, None], 0.0).astype(np.float32)


def sequence_advantages(returns_N: np.ndarray, group: int, settings: RLConfig) -> np.ndarray:
    """Advantages with a baseline inside the group, float64 [N]; see `token_advantages`."""
    returns = returns_N.reshape(-1, group)
    centred = returns - returns.mean(axis=1, keepdims=True)
    if settings.advantage_estimator == "rloo":
        centred *= group / (group - 1)
    kept_N = kept_rows(returns_N, group)
    if settings.advantage_scale == "group":
        centred = _divided(centred, returns.std(axis=1, ddof=1, keepdims=True), np.ptp(returns, axis=1, keepdims=True))
    elif settings.advantage_scale == "batch" and kept_N.any():
        used = returns_N[kept_N]
        centred = _divided(centred, used.std(ddof=1), np.ptp(used))
    flat = np.ptp(returns, axis=1, keepdims=True) == 0  # a mean of equal numbers may be off by a rounding
    return np.where(kept_N, np.where(flat, 0.0, centred).reshape(-1), 0.0)


def _scaled(values_NC: np.ndarray, scale: str, counted_NC: np.ndarray, group: int) -> np.ndarray:
    """Values less the mean over the counted tokens, over their standard deviation: of the batch or of each group."""
    parts = np.split(np.arange(len(values_NC)), len(values_NC) // group) if scale == "group" else [slice(None)]
    result = np.zeros_like(values_NC)
    for part in parts:
        used = values_NC[part][counted_NC[part]]
        if used.size:
            spread = used.std(ddof=1) if used.size > 1 else 0.0
            result[part] = _divided(values_NC[part] - used.mean(), spread, np.ptp(used))
    return result


def _divided(centred: np.ndarray, spread: np.ndarray | float, width: np.ndarray | float) -> np.ndarray:
    """Centred / spread; 0 where the numbers, which lie `width` apart, are all equal."""
    return np.where(np.asarray(width) == 0, 0.0, centred / (np.asarray(spread) + _EPS))


def kept_rows(rewards_N: np.ndarray, group: int) -> np.ndarray:
    """Bool [N]: rows of groups in which every reward is a number."""
    return np.repeat(~np.isnan(rewards_N.reshape(-1, group)).any(axis=1), group)


def equal_groups(rewards_N: np.ndarray, group: int) -> np.ndarray:
    """Bool [N / G]: groups whose rewards are all the same number, from which nothing can be learned."""
    return np.ptp(rewards_N.reshape(-1, group), axis=1) == 0


def overlong_penalties(lengths_N: np.ndarray, stopped_N: np.ndarray, max_tokens: int, settings: RLConfig) -> np.ndarray:
    """What is taken off the rewards of long completions, float64 [N] (Yu et al. 2025).

    0 up to max_tokens − buffer, then growing evenly; the whole `overlong_penalty` for one that was cut off.
    """
    if settings.overlong != "penalty":
        return np.zeros(len(lengths_N))
    buffer = settings.overlong_buffer or max(1, max_tokens // 5)
    share_N = np.clip((lengths_N - (max_tokens - buffer)) / buffer, 0.0, 1.0)
    return settings.overlong_penalty * np.where(stopped_N, share_N, 1.0)
