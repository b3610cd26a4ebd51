"""Reading tensors of a checkpoint, however it is stored, sliced and named, in bounded memory."""
