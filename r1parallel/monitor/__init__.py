"""Watching a run: metrics, phase times, sampled completions, host memory, and the report made of them."""
