"""Qwen2.5 as Cells, without a line of parallel code."""
