"""The formulas: advantages, KL, losses, and the correction for a rollout policy that differs."""
