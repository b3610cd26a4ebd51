"""From data set files to token ids: sources, prompts, tokenizers, MindRecord files, the order of rows."""
