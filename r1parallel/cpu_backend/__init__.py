"""What the CPU target of MindSpore lacks: collectives, kernels of fused operators."""
