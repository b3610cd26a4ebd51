"""What an update does to gradient sums besides reading them: one operator each where the CPU has a kernel for it."""

from typing import Any

from mindspore import ops
from mindspore.ops.auto_generate import InplaceZero

from r1parallel.parallel.device import has_fused_kernels

square_sum = ops.MultitypeFuncGraph("square_sum")
clear = ops.MultitypeFuncGraph("clear")

_half_squares, _in_place_zero = ops.L2Loss(), InplaceZero()


@ops.constexpr
def _has_kernels() -> bool:
    return has_fused_kernels()


@square_sum.register("Tensor")
def _square_sum(total: Any) -> Any:
    # Not everywhere: MindSpore's own kernel on the CPU is wrong by a percent where a tensor is large.
    if _has_kernels():
        return _half_squares(total) * 2.0
    return ops.sum(ops.square(total))


@clear.register("Tensor")
def _clear(total: Any) -> Any:
    # The compiler makes a constant of the zeros, as large as the sum.
    if _has_kernels():
        return _in_place_zero(total)
    return ops.assign(total, ops.zeros_like(total))
