"""The compile-only check: strategy files against what the compiler makes of the same model, without a device."""
