"""Metrics of one step; `docs/metrics.md` defines each."""

import numpy as np

from r1parallel.config.schema import RLConfig
from r1parallel.rewards import Scores
from r1parallel.rl.experience.experience import Experience, kl_in_reward
from r1parallel.rl.objective.advantages import equal_groups, kept_rows
from r1parallel.rl.objective.correction import rollout_gap
from r1parallel.rl.objective.kl import kl_values
from r1parallel.rl.objective.losses import wants_entropy
from r1parallel.rl.update import TokenStatistics


def reward_metrics(experience: Experience, group: int) -> dict[str, float]:
    """Rewards and lengths, over the rows of groups that could be scored where a reward is needed."""
    kept = kept_rows(experience.rewards, group)
    metrics = {
        "skipped_groups": float((~kept).sum() // group),
    }
    metrics |= reward_errors(experience.scores)
    metrics |= _spread("completion_length", experience.lengths)
    metrics["completion_clipped_fraction"] = float((~experience.stopped).mean())
    prompt_slots = experience.tokens.shape[1] - experience.rollout_logps.shape[1]
    metrics["prompt_length_mean"] = float((prompt_slots - experience.starts).mean())
    if not kept.any():
        return metrics
    rewards = experience.rewards[kept]
    metrics |= _spread("reward", rewards) | {"reward_std": float(rewards.std())}
    metrics["frac_reward_zero_std"] = float(equal_groups(experience.scores.total[kept], group).mean())
    metrics["overlong_penalty_mean"] = float((experience.scores.total - experience.rewards)[kept].mean())
    for name, values in experience.scores.parts.items():
        metrics[f"reward/{name}"] = float(values[kept].mean())
        if "accuracy" not in metrics and "format" not in name:
            metrics["accuracy"] = float((values[kept] >= 1.0).mean())
    return metrics


def reward_errors(scores: Scores) -> dict[str, float]:
    """Rewards of the step that ran out of time or failed, those of refills included once they are drawn."""
    return {"reward_timeouts": float(scores.timeouts), "reward_failures": float(scores.failures)}


def experience_metrics(experience: Experience, settings: RLConfig) -> dict[str, float]:
    """Advantages, the gap between rollout and training log-probs, and its correction."""
    learned = experience.learned
    gap = rollout_gap(experience.old_logps, experience.rollout_logps, learned)
    metrics = {
        "learned_fraction": float(experience.counted.mean()),
        "rollout_logp_diff_mean": gap.mean,
        "rollout_logp_diff_max": gap.max,
        "rollout_logp_correlation": gap.correlation,
    }
    if learned.any():
        metrics |= _spread("advantage", experience.advantages[learned])
    if settings.rollout_correction != "none" and learned.any():
        difference = (experience.old_logps - experience.drawn_logps)[learned]
        metrics["rollout_correction_mean"] = float(experience.corrections[learned].mean())
        metrics["rollout_ratio_max"] = float(np.exp(difference.max()))
        metrics["rollout_masked_fraction"] = float((experience.corrections[learned] == 0).mean())
    if kl_in_reward(settings) and learned.any():
        kl = kl_values(experience.old_logps, experience.ref_logps, settings.kl_estimator, settings.kl_clamp)
        metrics["kl"] = float(kl[learned].mean())
        metrics["first_update_kl_max"] = float(np.abs(kl[learned]).max())
    return metrics


def completion_kl(experience: Experience, settings: RLConfig) -> float:
    """Mean KL of a completion before the first update, in nats: what the adaptive beta follows."""
    if not experience.counted.any():
        return 0.0
    kl = kl_values(experience.old_logps, experience.ref_logps, settings.kl_estimator, settings.kl_clamp)
    return float(np.where(experience.inside, kl, 0.0).sum(axis=1)[experience.counted].mean())


def update_metrics(statistics: TokenStatistics, settings: RLConfig) -> dict[str, float]:
    """Loss, ratio, KL and entropy of one step's updates."""
    tokens = max(1.0, statistics.tokens)
    loss, kl_loss = float(np.mean(statistics.losses)), float(np.mean(statistics.kl_losses))
    metrics = {
        "loss": loss,
        "actor_loss": loss - kl_loss,
        "kl_loss": kl_loss,
        "lr": statistics.lrs[-1],
        "grad_norm": float(np.mean(statistics.norms)),
        "ratio_mean": statistics.ratio / tokens,
        "clip_fraction": statistics.clipped / tokens,
        "kl": statistics.kl / tokens,
        "first_update_clip_fraction": statistics.first_clipped / max(1.0, statistics.first_tokens),
        "first_update_kl_max": statistics.first_kl,
    }
    if statistics.first_ratio_deviation is not None:
        metrics["first_update_ratio_deviation"] = statistics.first_ratio_deviation
    if wants_entropy(settings):
        metrics["entropy"] = statistics.entropy / tokens
        metrics["entropy_loss"] = float(np.mean(statistics.entropy_losses))
        metrics["actor_loss"] -= metrics["entropy_loss"]
    return metrics


def _spread(name: str, values: np.ndarray) -> dict[str, float]:
    return {
        f"{name}_mean": float(values.mean()),
        f"{name}_min": float(values.min()),
        f"{name}_max": float(values.max()),
    }
