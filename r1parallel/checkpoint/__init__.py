"""Checkpoints: names, files, conversion, slices, and the state of a run."""
