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
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
# What MindSpore's .ckpt calls it → what a safetensors header does.
CKPT_DTYPES = {
    "Float64": "F64",
    "Float32": "F32",
    "Float16": "F16",
    "BFloat16": "BF16",
    "Int64": "I64",
    "Int32": "I32",
    "Int16": "I16",
    "Int8": "I8",
    "UInt64": "U64",
    "UInt32": "U32",
    "UInt16": "U16",
    "UInt8": "U8",
    "Bool": "BOOL",
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
    with np.errstate(over="ignore"):  # found below
        result = array.astype(DTYPES[dtype])
    infinite = _infinite(result, dtype)
    if np.any(infinite):
        finite = np.isfinite(array)
        if np.any(infinite & finite):
            largest = np.max(np.abs(array[finite].astype(np.float64)))
            raise UserError(f"{name}: {largest:g} does not fit into {dtype}; choose bf16 or fp32")
    return result


def _infinite(array: np.ndarray, dtype: str) -> np.ndarray:
    """Where a number is infinite. Words are compared where elements have 16 bits, which is four times faster."""
    if dtype == "F32":
        return np.isinf(array)
    infinity = np.array(np.inf, DTYPES[dtype]).view(np.uint16)
    return (array.view(np.uint16) & 0x7FFF) == infinity
