"""Gradients of one update, added up over its micro-batches."""

from typing import Any

import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops
from mindspore.parallel.nn import Pipeline

_add_up = ops.MultitypeFuncGraph("add_up")


@_add_up.register("Tensor", "Tensor")
def _add(total: Any, gradient: Any) -> Any:
    return ops.assign_add(total, gradient)


class Gradients(nn.Cell):
    """Forward and backward of one micro-batch; its gradients are added to `sums`.

    Args:
        loss: inputs → rows_BK, of which column 0 is each row's share of the loss and nothing else has a gradient. What a
            token counts for already holds every denominator, so adding up micro-batches gives the loss of the batch.
        parameters: what is trained.
        sums: one zero-initialised Parameter each.
    """

    def __init__(self, loss: nn.Cell, parameters: ParameterTuple, sums: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.loss, self.sums = loss, sums
        self.gradient = ms.value_and_grad(loss, None, parameters)
        self.each = ops.HyperMap()

    def construct(self, *inputs: Tensor) -> Tensor:
        rows_BK, gradients = self.gradient(*inputs)
        return ops.depend(rows_BK, self.each(_add_up, self.sums, gradients))


_clear = ops.MultitypeFuncGraph("clear")


@_clear.register("Tensor", "Tensor")
def _set_zero(total: Any, gradient: Any) -> Any:
    return ops.assign(total, ops.zeros_like(ops.depend(total, gradient)))


class PipelineGradients(nn.Cell):
    """Forward and backward of all micro-batches of an update, in MindSpore's pipeline schedule."""

    def __init__(self, loss: nn.Cell, parameters: ParameterTuple, sums: ParameterTuple, micro: int, opt_shard: bool):
        super().__init__(auto_prefix=False)
        self.network = Pipeline(loss, micro, stage_config=None)
        self.parameters, self.sums = parameters, sums
        self.accu_grads = parameters.clone("accu_grads", "zeros")  # the compiler looks for this very name
        self.gradient = ops.GradOperation(get_by_list=True)
        self.each, self.opt_shard = ops.HyperMap(), opt_shard

    def construct(self, *inputs: Tensor) -> Tensor:
        rows = self.network(*inputs)
        gradients = self.gradient(self.network, self.parameters)(*inputs)
        accumulated = ops.depend(self.accu_grads, gradients)
        if self.opt_shard:
            done = self.each(_add_up, self.sums, gradients)
        else:
            done = self.each(_add_up, self.sums, accumulated)
        rows = ops.depend(rows, done)
        return ops.depend(rows, self.each(_clear, accumulated, gradients))
