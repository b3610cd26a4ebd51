"""The numbers that one GRPO step is judged by; `docs/metrics.md` says what each means."""

import numpy as np

from r1parallel.rl.experience import Experience
from r1parallel.rl.update import TokenStatistics


def reward_metrics(experience: Experience, group: int) -> dict[str, float]:
    """Rewards, advantages and lengths, over the kept rows where a reward is needed."""
    kept = experience.kept
    metrics = {"skipped_groups": float((~kept).sum() // group), "reward_timeouts": float(experience.scores.timeouts)}
    metrics |= _spread("completion_length", experience.lengths)
    metrics["completion_clipped_fraction"] = float((~experience.stopped).mean())
    prompt_slots = experience.tokens.shape[1] - experience.rollout_logps.shape[1]
    metrics["prompt_length_mean"] = float((prompt_slots - experience.starts).mean())
    if not kept.any():
        return metrics
    rewards = experience.rewards[kept]
    metrics |= _spread("reward", rewards) | {"reward_std": float(rewards.std())}
    metrics |= _spread("advantage", experience.advantages[kept])
    metrics["frac_reward_zero_std"] = float((np.ptp(rewards.reshape(-1, group), axis=1) == 0).mean())
    for name, values in experience.scores.parts.items():
        metrics[f"reward/{name}"] = float(values[kept].mean())
        if "accuracy" not in metrics and "format" not in name:
            metrics["accuracy"] = float((values[kept] == 1.0).mean())
    return metrics


def update_metrics(statistics: TokenStatistics) -> dict[str, float]:
    """Loss, ratio, KL and gap of one step's updates."""
    tokens, gap_tokens = max(1.0, statistics.tokens), max(1.0, statistics.gap_tokens)
    loss, kl_loss = float(np.mean(statistics.losses)), float(np.mean(statistics.kl_losses))
    return {
        "loss": loss,
        "actor_loss": loss - kl_loss,
        "kl_loss": kl_loss,
        "lr": statistics.lrs[-1],
        "grad_norm": float(np.mean(statistics.norms)),
        "ratio_mean": statistics.ratio / tokens,
        "clip_fraction": statistics.clipped / tokens,
        "kl": statistics.kl / tokens,
        "first_update_ratio_deviation": statistics.first_ratio_deviation,
        "first_update_clip_fraction": statistics.first_clipped / max(1.0, statistics.first_tokens),
        "rollout_logp_diff_mean": statistics.gap / gap_tokens,
        "rollout_logp_diff_max": statistics.gap_max,
    }


def _spread(name: str, values: np.ndarray) -> dict[str, float]:
    return {
        f"{name}_mean": float(values.mean()),
        f"{name}_min": float(values.min()),
        f"{name}_max": float(values.max()),
    }
