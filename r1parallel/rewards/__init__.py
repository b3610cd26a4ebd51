"""Rewards: functions of (prompts, completions, solutions) that give scores."""

from .scoring import REWARDS, Scores, check_reward_names, score

__all__ = ["REWARDS", "Scores", "check_reward_names", "score"]
