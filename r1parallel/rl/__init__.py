"""GRPO and its family: experience, losses, and the step that ties the models together."""
