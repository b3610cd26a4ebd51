"""Checkpoint tools."""
