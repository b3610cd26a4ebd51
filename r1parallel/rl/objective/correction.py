"""The gap between the policy that drew the completions and the one that is trained, and what corrects for it."""

from dataclasses import dataclass

import numpy as np

from r1parallel.config.schema import RLConfig
from r1parallel.errors import UserError

# Mean gap per token, in nats: ten times what rounding was seen (float32) or is expected (bfloat16) to make of it.
_GAP_LIMITS = {"float32": 1e-3, "bfloat16": 0.1}


def rollout_corrections(
    old_NC: np.ndarray, drawn_NC: np.ndarray, inside_NC: np.ndarray, settings: RLConfig
) -> np.ndarray:
    """What the policy loss of every token is multiplied by, float32 [N, C]; 1 everywhere without a correction.

    With ρ = exp(old − drawn), of the token or multiplied up over the whole completion:
    …_truncate: min(ρ, high) (Yao et al. 2025); …_mask: ρ where low ≤ ρ ≤ high, else 0 (Zhao et al. 2025).

    Args:
        old_NC: log-probs by the training graph before the first update.
        drawn_NC: log-probs under the distribution that the completions were drawn from.
        inside_NC: bool, slots that hold a token.
        settings: `rollout_correction` and its two limits.
    """
    if settings.rollout_correction == "none":
        return np.ones(inside_NC.shape, np.float32)
    level, _, kind = settings.rollout_correction.partition("_")
    difference_NC = np.where(inside_NC, old_NC.astype(np.float64) - drawn_NC, 0.0)
    if level == "sequence":
        difference_NC = np.broadcast_to(difference_NC.sum(axis=1, keepdims=True), difference_NC.shape)
    low, high = settings.rollout_correction_low, settings.rollout_correction_high
    ratio_NC = np.exp(np.minimum(difference_NC, 50.0))  # beyond any limit, and still a finite number
    if kind == "truncate":
        return np.minimum(ratio_NC, high).astype(np.float32)
    return np.where((ratio_NC >= low) & (ratio_NC <= high), ratio_NC, 0.0).astype(np.float32)


@dataclass(frozen=True)
class Gap:
    """|training − rollout log-prob| of the tokens that count, in nats, and how the two go together."""

    mean: float
    max: float
    correlation: float  # Pearson's; 1 where there is nothing to tell apart


def rollout_gap(training_NC: np.ndarray, rollout_NC: np.ndarray, counted_NC: np.ndarray) -> Gap:
    """Compare the same tokens' log-probs, both under the model without cuts at the sampling temperature."""
    training, rollout = training_NC[counted_NC].astype(np.float64), rollout_NC[counted_NC].astype(np.float64)
    if not training.size:
        return Gap(0.0, 0.0, 1.0)
    gaps = np.abs(training - rollout)
    widths = training.std(), rollout.std()
    moved = (training - training.mean()) * (rollout - rollout.mean())
    correlation = float(moved.mean() / (widths[0] * widths[1])) if min(widths) > 0 else 1.0
    return Gap(float(gaps.mean()), float(gaps.max()), correlation)


def gap_limit(settings: RLConfig, compute_dtype: str) -> float:
    """`rollout_gap_limit`, or where that is -1 the limit of the compute type, in nats."""
    return _GAP_LIMITS[compute_dtype] if settings.rollout_gap_limit == -1 else settings.rollout_gap_limit


def check_gap(gap: Gap, limit: float, where: str) -> None:
    """Stop where generator and training graph are no longer the same policy.

    Raises:
        UserError: the mean gap is above `limit` (0: no limit).
    """
    if limit > 0.0 and not gap.mean <= limit:
        raise UserError(
            f"{where}: rollout and training log-probs differ by {gap.mean:.3g} nats a token on average (at most "
            f"{gap.max:.3g}, correlation {gap.correlation:.4f}), more than rl_config.rollout_gap_limit {limit:g}; "
            "compare the generator's weights and compute_dtype with the actor's, or raise the limit"
        )
