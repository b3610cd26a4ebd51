"""What a step learns from: prompts drawn, completions scored, rows of the training graph."""
