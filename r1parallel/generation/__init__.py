"""The rollout engine: prompts in, completions and their log-probs out."""
