"""Ours against transformers and TRL."""
