"""Gradient accumulation over the micro-batches of one optimizer step.

Shape letters: B rows of a micro-batch, N rows of an optimizer step, K numbers that a loss returns for each row.
"""

from typing import Any

import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops
from mindspore.parallel.nn import MicroBatchInterleaved, Pipeline

from r1parallel.models.parameters import unallocated
from r1parallel.parallel.device import has_fused_kernels
from r1parallel.training.multi_tensor import MultiTensorAdd

_add_up = ops.MultitypeFuncGraph("add_up")
_clear = ops.MultitypeFuncGraph("clear")


@_add_up.register("Tensor", "Tensor")
def _add(total: Any, gradient: Any) -> Any:
    return ops.assign_add(total, gradient)


@_clear.register("Tensor", "Tensor")
def _set_zero(total: Any, gradient: Any) -> Any:
    total = ops.depend(total, gradient)
    return ops.assign(total, ops.zeros_like(total))


class Gradients(nn.Cell):
    """Forward and backward of one micro-batch; its gradients are added to `sums`.

    Args:
        loss: inputs → rows_BK; the sum of all its elements that have a gradient is the loss. The weight of a token
            includes every denominator, so the sum over micro-batches is the loss of the optimizer step.
        parameters: what is trained.
        sums: one zero-initialised Parameter each.
    """

    def __init__(self, loss: nn.Cell, parameters: ParameterTuple, sums: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.loss, self.sums = loss, sums
        self.gradient = ms.value_and_grad(loss, None, parameters)
        self.each = ops.HyperMap()
        self.is_fused, self.can_fuse = False, has_fused_kernels()  # see parallelize.py
        self.multi_tensor_add = MultiTensorAdd(len(parameters))

    def construct(self, *inputs: Tensor) -> Tensor:
        rows_BK, gradients = self.gradient(*inputs)
        if self.is_fused:
            return ops.depend(rows_BK, self.multi_tensor_add(*self.sums, *gradients))
        return ops.depend(rows_BK, self.each(_add_up, self.sums, gradients))


class Placed(nn.Cell):
    """A loss whose micro-batches can be summed: each row of its result is at its place among N rows."""

    def __init__(self, loss: nn.Cell):
        super().__init__(auto_prefix=False)
        self.loss, self.place = loss, ops.MatMul(transpose_a=True)

    def construct(self, place_BN: Tensor, *inputs: Tensor) -> Tensor:
        """place_BN has a 1 in each row, at the row's place."""
        return self.place(place_BN, self.loss(*inputs))


class PipelineGradients(nn.Cell):
    """Forward and backward of all micro-batches of an optimizer step, in MindSpore's pipeline schedule (1F1B).

    Args:
        loss: a `Placed` loss.
        parameters: what is trained.
        sums: one zero-initialised Parameter each.
        micro_batch_num: number of micro-batches, which are slices of the rows of its inputs.
        opt_shard: the optimizer's state is split over dp.
    """

    def __init__(
        self, loss: nn.Cell, parameters: ParameterTuple, sums: ParameterTuple, micro_batch_num: int, opt_shard: bool
    ):
        super().__init__(auto_prefix=False)
        self.network = Pipeline(loss, micro_batch_num)
        self.parameters, self.sums = parameters, sums
        with unallocated():
            self.accu_grads = parameters.clone("accu_grads", "zeros")  # the compiler looks for this very name
        self.gradient = ops.GradOperation(get_by_list=True)
        self.each, self.opt_shard = ops.HyperMap(), opt_shard

    def construct(self, *inputs: Tensor) -> Tensor:
        rows_NK = self.network(*inputs)
        gradients = self.gradient(self.network, self.parameters)(*inputs)
        accumulated = ops.depend(self.accu_grads, gradients)
        # With split optimizer state the accumulated gradients were scattered once more, into `gradients`.
        added = self.each(_add_up, self.sums, gradients if self.opt_shard else accumulated)
        rows_NK = ops.depend(rows_NK, added)
        return ops.depend(rows_NK, self.each(_clear, accumulated, gradients))


class Interleaved(MicroBatchInterleaved):
    """A `Placed` loss in parts of a micro-batch, whose communication and computation may overlap.

    MindSpore's own starts its sum with a number, which no strategy fits that also fits two tensors.
    """

    def construct(self, *inputs: Tensor) -> Tensor:
        rows_NK = self.network(*self.interleave_inputs[0](0, *inputs))
        for i in range(1, self.interleave_num):
            rows_NK = self.add(rows_NK, self.network(*self.interleave_inputs[i](i, *inputs)))
        return rows_NK
