"""Watching a run: metrics, phase times, samples, memory, and the report made of them."""
