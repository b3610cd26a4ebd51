"""Rewards: functions of (prompts, completions, solutions) that give scores."""

from .registry import REWARDS
from .scoring import Scores, check_reward_names, score

__all__ = ["REWARDS", "Scores", "check_reward_names", "score"]
