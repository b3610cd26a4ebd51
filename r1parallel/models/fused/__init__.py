"""Fused operators in the place of plain ones."""
