"""Running one operator in a graph of its own, and what attention comes to in float64."""

from typing import NamedTuple

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops.auto_generate import FlashAttentionScore


class _Both(nn.Cell):
    """What a cell gives, and the gradients of all its inputs, in one graph."""

    def __init__(self, cell: nn.Cell):
        super().__init__(auto_prefix=False)
        self.cell, self.gradient = cell, ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, *inputs_and_slope):  # a tuple among the inputs would be a constant
        return self.cell(*inputs_and_slope[:-1]), self.gradient(self.cell)(*inputs_and_slope)


def run(cell: nn.Cell, *inputs: np.ndarray) -> np.ndarray:
    """What a cell of one result gives."""
    return cell(*(Tensor(x) for x in inputs)).asnumpy()


def run_both(cell: nn.Cell, inputs: tuple[np.ndarray, ...], slope: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The same, and the gradients of Σ result · slope."""
    result, gradients = _Both(cell)(*(Tensor(x) for x in (*inputs, slope)))
    return result.asnumpy(), [gradient.asnumpy() for gradient in gradients]


def normal(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Random float32 arrays."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


class Flash(nn.Cell):
    """FlashAttentionScore of query, key, value and, if there is one, a mask."""

    def __init__(self, heads: int, **options):
        super().__init__()
        self.flash = FlashAttentionScore(heads, **options)

    def construct(self, query, key, value, hidden=None):
        return self.flash(query, key, value, None, None, None, hidden)[3]


class Attended(NamedTuple):
    """What attention gives, and the gradients of Σ output · slope; all [B, heads, S, D], float64."""

    output: np.ndarray
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray


def attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, hidden: np.ndarray, scale: float, slope: np.ndarray
) -> Attended:
    """Softmax over the keys that are not hidden; a query that sees none gives zeros.

    Args:
        query: [B, N, S, D]; head n reads key head n // (N / M).
        key: [B, M, K, D], as is `value`.
        hidden: bool, [B, 1, S, K].
        scale: of the scores.
        slope: [B, N, S, D].
    """
    group = query.shape[1] // key.shape[1]
    q, slope = query.astype(np.float64), slope.astype(np.float64)
    k, v = (np.repeat(x.astype(np.float64), group, axis=1) for x in (key, value))
    scores = q @ k.swapaxes(2, 3) * scale
    weights = np.where(hidden, 0.0, np.exp(scores - scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    weights /= np.where(total > 0, total, 1.0)
    output = weights @ v
    slopes = slope @ v.swapaxes(2, 3)
    slopes = weights * (slopes - (slopes * weights).sum(-1, keepdims=True)) * scale
    keys, values = slopes.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ slope
    grouped = (*key.shape[:2], group, *key.shape[2:])
    return Attended(output, slopes @ k, keys.reshape(grouped).sum(2), values.reshape(grouped).sum(2))
