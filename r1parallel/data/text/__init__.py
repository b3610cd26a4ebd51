"""Data set files and tokenizers."""
