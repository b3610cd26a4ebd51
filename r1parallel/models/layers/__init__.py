"""Layers of plain operators, attention, and the KV cache."""
