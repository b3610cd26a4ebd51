"""The skeleton of a run, optimizer steps, SFT."""
