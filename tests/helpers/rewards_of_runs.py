"""Rewards that the runs of several tests are given by name, as this file and function."""


def share_of_sevens(prompts, completions, solution):
    """A reward that a model can raise without knowing any arithmetic, and that differs between samples."""
    return [text.count("7") / max(1, len(text)) + 0.1 * len(text) for text in completions]


def broken(prompts, completions, solution):
    """Always raises, in two lines."""
    raise ZeroDivisionError("no\nluck")
