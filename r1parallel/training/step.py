"""One optimizer update: gradients of micro-batches are added up, judged, then applied."""

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from r1parallel.config.schema import OptimizerConfig
from r1parallel.errors import UserError
from r1parallel.training.optimizer import AdamW, GradientNorm, scalar


class Accumulate(nn.Cell):
    """Forward and backward of one micro-batch; its gradients are added to `sums`.

    Args:
        loss: a cell that returns (loss, extra, …); only the first is differentiated. A loss is a sum over tokens whose
            weights already hold every denominator, so adding micro-batches up gives the loss of the whole batch.
        parameters: what is trained.
        sums: one zero-initialised Parameter each.
    """

    def __init__(self, loss: nn.Cell, parameters: ParameterTuple, sums: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.loss, self.sums = loss, sums
        self.gradient = ms.value_and_grad(loss, None, parameters, has_aux=True)
        self.count = len(parameters)
        self.add = ops.AssignAdd()

    def construct(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values, gradients = self.gradient(*inputs)
        for i in range(self.count):
            self.add(self.sums[i], gradients[i])
        return values


class TrainStep:
    """Owns the gradient sums and the optimizer of one model.

    Args:
        loss: see `Accumulate`.
        parameters: what is trained.
        config: optimizer settings.
    """

    def __init__(self, loss: nn.Cell, parameters: Sequence[ms.Parameter], config: OptimizerConfig):
        trained = ParameterTuple(list(parameters))
        sums = trained.clone("gradient_sum", "zeros")
        self.config = config
        self.updates = 0  # applied so far
        self.optimizer = AdamW(trained, sums, config)
        self._accumulate = Accumulate(loss, trained, sums)
        self._accumulate.set_train()
        self._norm = GradientNorm(sums)

    def accumulate(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Add one micro-batch's gradients; returns the loss and the extras of the loss cell."""
        return tuple(value.asnumpy() for value in self._accumulate(*(Tensor(x) for x in inputs)))

    def apply(self, lr: float, loss: float, where: str) -> float:
        """Update the parameters with what was added up; returns the gradient norm before clipping.

        Args:
            lr: learning rate.
            loss: of the whole batch, only looked at.
            where: names step and rows in the message.

        Raises:
            UserError: loss or gradient norm is not finite; the parameters are left as they were.
        """
        norm = float(self._norm().asnumpy()[0])
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise UserError(
                    f"{name} is {value} at {where}; stopped before the update; lower lr or look at these rows"
                )
        limit = self.config.max_grad_norm
        scale = min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
        self.updates += 1
        beta1_power, beta2_power = self.config.adam_beta1**self.updates, self.config.adam_beta2**self.updates
        eps = self.config.eps * math.sqrt(1.0 - beta2_power)
        self.optimizer(scalar(scale), scalar(lr), scalar(beta1_power), scalar(beta2_power), scalar(eps))
        return norm

    def state(self) -> dict[str, np.ndarray]:
        """Copies of the optimizer's moments."""
        return {name: p.asnumpy().copy() for name, p in self.optimizer.state().items()}

    def load_state(self, values: dict[str, np.ndarray], updates: int) -> None:
        """Go on from `state()` after `updates` updates."""
        moments = self.optimizer.state()
        assert set(values) == set(moments), sorted(set(values) ^ set(moments))[:3]
        for name, parameter in moments.items():
            parameter.set_data(Tensor(np.ascontiguousarray(values[name])))
        self.updates = updates
