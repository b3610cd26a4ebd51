from dataclasses import replace

import numpy as np
import pytest
from helpers import made_up

from r1parallel.config.schema import RLConfig
from r1parallel.rl.metrics import completion_kl, experience_metrics, reward_metrics, update_metrics
from r1parallel.rl.objective.advantages import kept_rows
from r1parallel.rl.update import TokenStatistics

GROUP, PROMPT, SLOTS = 4, 4, 6
GRPO = RLConfig(num_generations=GROUP, beta=0.04)


@pytest.fixture
def experience():
    return made_up.experience(0, GRPO, 2, PROMPT, SLOTS)


def test_reward_metrics_leave_out_skipped_groups(experience):
    totals = np.array([0.5, 1.5, 0, 0, 1, np.nan, 1, 1, 2, 2, 2, 2])
    off = np.arange(12) * 0.25
    scores = made_up.scores(totals)
    scores.parts.clear()
    scores.parts["format_reward"] = np.where(totals == 0.5, 0.5, 0)
    scores.parts["accuracy_reward"] = totals - (totals == 0.5) * 0.5
    wide = replace(
        experience,
        tokens=np.zeros((12, PROMPT + SLOTS), np.int32),
        starts=np.repeat([0, 1, 3], GROUP),
        lengths=np.arange(1, 13),
        stopped=np.arange(12) > 2,
        rewards=totals - off,
        scores=scores,
        counted=kept_rows(totals, GROUP),
    )
    metrics = reward_metrics(wide, GROUP)
    kept = np.r_[0:4, 8:12]
    rewards = (totals - off)[kept]
    assert metrics["skipped_groups"] == 1
    assert metrics["reward_mean"] == pytest.approx(rewards.mean())
    assert metrics["reward_std"] == pytest.approx(rewards.std())
    assert (metrics["reward_min"], metrics["reward_max"]) == (rewards.min(), rewards.max())
    assert metrics["overlong_penalty_mean"] == pytest.approx(off[kept].mean())
    assert metrics["frac_reward_zero_std"] == 0.5  # of the scores: the penalty for length teaches no answer
    assert metrics["reward/format_reward"] == pytest.approx(0.5 / 8)
    assert metrics["accuracy"] == 5 / 8  # of the first reward that is no format: 1 or more
    assert metrics["reward_failures"] == metrics["reward_timeouts"] == 0.0
    assert metrics["completion_length_mean"] == 6.5
    assert metrics["completion_clipped_fraction"] == 0.25
    assert metrics["prompt_length_mean"] == pytest.approx((4 + 3 + 1) / 3)


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_kl_metrics_follow_the_place_of_the_kl(experience, place):
    settings = replace(GRPO, kl_place=place, kl_estimator="k2")
    metrics = experience_metrics(experience, settings)
    difference = (experience.old_logps - experience.ref_logps).astype(float)
    kl = np.where(experience.inside, difference**2 / 2, 0)
    assert ("kl" in metrics) == ("first_update_kl_max" in metrics) == (place == "reward")
    if place == "reward":
        assert metrics["kl"] == pytest.approx(kl[experience.inside].mean(), rel=1e-6)
        assert metrics["first_update_kl_max"] == pytest.approx(kl.max(), rel=1e-6)
    assert completion_kl(experience, settings) == pytest.approx(kl.sum(axis=1).mean(), rel=1e-6)


def test_entropy_has_its_own_part_of_the_loss():
    statistics = TokenStatistics(tokens=4.0, entropy=6.0, losses=[1.0, 2.0], kl_losses=[0.25, 0.25])
    statistics.entropy_losses, statistics.norms, statistics.lrs = [-0.5, -1.5], [1.0, 3.0], [0.1, 0.2]
    metrics = update_metrics(statistics, replace(GRPO, entropy_coef=0.1))
    assert metrics["entropy"] == 1.5
    assert metrics["entropy_loss"] == -1.0
    assert metrics["loss"] == pytest.approx(metrics["actor_loss"] + metrics["kl_loss"] + metrics["entropy_loss"])
    assert (metrics["grad_norm"], metrics["lr"]) == (2.0, 0.2)
    assert "entropy" not in update_metrics(statistics, GRPO)
