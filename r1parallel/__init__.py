"""r1parallel: R1-style training (SFT, then GRPO) of Qwen2.5 on MindSpore graph mode."""

import os

# MindSpore brings its own protobuf; google.protobuf's C implementation, loaded first, makes importing it fail.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

__version__ = "0.1.0"
