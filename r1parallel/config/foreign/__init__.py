"""Other tools' keys in our terms: mindrlhf, mindformers, MindSpeed-RL."""
