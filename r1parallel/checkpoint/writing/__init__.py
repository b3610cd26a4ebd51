"""Writing checkpoints: planned first, copied window by window, whole or not at all."""
