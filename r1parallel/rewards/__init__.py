"""Rewards: functions of (prompts, completions, solutions) that give scores."""

from r1parallel.rewards.registry import REWARDS
from r1parallel.rewards.scoring import Scores, check_reward_names, score

__all__ = ["REWARDS", "Scores", "check_reward_names", "score"]
