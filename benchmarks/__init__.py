"""Benchmarks; README.md says which command measures what."""
