"""The element types that a checkpoint can hold, and casts between the floating ones."""

import ml_dtypes
import numpy as np

from r1parallel.errors import UserError

# What a safetensors header calls it → numpy's type.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
# Weights come in these: what the command line calls it → the header's name.
WEIGHT_DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
# The header's name → what config.json calls it.
CONFIG_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def dtype_name(dtype: np.dtype) -> str:
    """What a safetensors header calls a numpy type.

    Raises:
        ValueError: a checkpoint cannot hold this type.
    """
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise ValueError(f"a checkpoint cannot hold elements of type {dtype}; it can hold {', '.join(DTYPES)}")


def cast(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Cast a weight, of any shape, to F32, F16 or BF16; to fewer bits it is rounded to nearest even.

    Args:
        array: the weight.
        dtype: the header's name of the type to have.
        name: the tensor's name, for the error.

    Raises:
        UserError: a finite number would become infinite.
    """
    if dtype_name(array.dtype) == dtype:
        return array
    # float32 holds every fp16 and bf16 number exactly.
    wide = array.astype(np.float32)
    with np.errstate(over="ignore"):  # found below
        result = wide.astype(DTYPES[dtype])
    if np.any(np.isinf(result.astype(np.float32)) & np.isfinite(wide)):
        largest = np.max(np.abs(wide[np.isfinite(wide)]))
        raise UserError(f"{name}: {largest:g} does not fit into {dtype}; choose bf16 or fp32")
    return result
