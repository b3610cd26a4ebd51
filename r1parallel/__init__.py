"""r1parallel: R1-style training (SFT, then GRPO) of Qwen2.5 on MindSpore graph mode."""

import os

# MindSpore brings its own protobuf; google.protobuf's C implementation, loaded first, makes importing it fail.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
# It warns of every graph that it takes from, or does not find in, the cache of `parallel/graph_cache.py`.
os.environ.setdefault("MS_SUBMODULE_LOG_v", "{PIPELINE:3}")

__version__ = "0.1.0"
