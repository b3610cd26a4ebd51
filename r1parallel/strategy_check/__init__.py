"""The layout table against MindSpore's compiler, rank by rank, without a device."""
