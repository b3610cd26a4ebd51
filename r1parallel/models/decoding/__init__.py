"""The model with a KV cache, as the rollout engine runs it."""
