"""What comparing two checkpoints needs: which tensor is which, their hashes, what is said of them."""
