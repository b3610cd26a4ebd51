"""MindSpeed-RL's data set YAMLs and prompt templates."""
