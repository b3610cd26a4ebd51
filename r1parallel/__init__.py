"""r1parallel: R1-style training (SFT, then GRPO) of Qwen2.5 on MindSpore graph mode."""

__version__ = "0.1.0"
