"""Optimizers on accumulated gradients: the norm first, so that a value that is not finite stops the run.

These graphs see one rank's slices only. The optimizer step is elementwise, so no rank needs another's slices; only the
norm is a sum over ranks, which `step.py` computes. Loops over parameters are HyperMaps: a loop in `construct` takes
ten times as long to compile.
"""

from collections.abc import Sequence
from typing import Any

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.ops.auto_generate import InplaceZero

from r1parallel.config.schema import OptimizerConfig
from r1parallel.parallel.device import has_fused_kernels
from r1parallel.training.multi_tensor import MultiTensorAdamW, MultiTensorSquareSum

_MOMENTUM = 0.9

_adamw = ops.MultitypeFuncGraph("adamw")
_momentum = ops.MultitypeFuncGraph("momentum")
_square_sum = ops.MultitypeFuncGraph("square_sum")
_clear = ops.MultitypeFuncGraph("clear")
_in_place_zero = InplaceZero()


@_square_sum.register("Tensor")
def _square_sum_of_one(total: Any) -> Any:
    return ops.sum(ops.square(total))


@ops.constexpr
def _has_kernels() -> bool:
    return has_fused_kernels()


@_clear.register("Tensor")
def _clear_one(total: Any) -> Any:
    # The compiler makes a constant of the zeros, as large as the sum.
    if _has_kernels():
        return _in_place_zero(total)
    return ops.assign(total, ops.zeros_like(total))


@_adamw.register("Function", *["Number"] * 2, *["Tensor"] * 5, "Number", *["Tensor"] * 4)
def _adamw_of_one(
    adam: Any,
    beta1: Any,
    beta2: Any,
    scale: Any,
    lr: Any,
    beta1_power: Any,
    beta2_power: Any,
    eps: Any,
    decay: Any,
    parameter: Any,
    total: Any,
    first: Any,
    second: Any,
) -> Any:
    if decay > 0.0:
        ops.assign(parameter, parameter * (1.0 - lr * decay))
    adam(parameter, first, second, beta1_power, beta2_power, lr, beta1, beta2, eps, total * scale)
    return _clear(total)


@_momentum.register(*["Tensor"] * 5)
def _momentum_of_one(scale: Any, lr: Any, parameter: Any, total: Any, velocity: Any) -> Any:
    ops.assign(velocity, velocity * _MOMENTUM + total * scale)
    ops.assign(parameter, parameter - velocity * lr)
    return _clear(total)


def decays(name: str) -> bool:
    """Whether weight decay applies: to matrices, not to biases and norm weights."""
    return not (name.endswith("bias") or "norm" in name)


class SquaredNorms(nn.Cell):
    """Sum of squares of each gradient sum, fp32 [number of parameters]."""

    def __init__(self, sums: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.sums, self.each, self.stack = sums, ops.HyperMap(), ops.Stack()
        self.multi_tensor = MultiTensorSquareSum(len(sums)) if has_fused_kernels() else None

    def construct(self) -> Tensor:
        if self.multi_tensor is not None:
            return self.multi_tensor(*self.sums)
        return self.stack(self.each(_square_sum, self.sums))


class AdamW(nn.Cell):
    """Decoupled weight decay (Loshchilov and Hutter 2019), torch.optim.AdamW's formula to the letter.

    p ← p·(1 − lr·decay);  m, v ← moments;  p ← p − lr·(m / (1 − β1ᵗ)) / (√(v / (1 − β2ᵗ)) + eps).
    MindSpore's Adam operator adds eps before the bias correction of v; passing eps·√(1 − β2ᵗ) makes both the same.
    Where the CPU has kernels, one operator makes the whole step. It corrects no bias itself: it is given
    lr·√(1 − β2ᵗ) / (1 − β1ᵗ), and a decay that times this is lr·decay.

    Args:
        parameters: what is trained.
        sums: the gradient sums; set to zero by the step.
        config: betas, eps, weight decay.
    """

    def __init__(self, parameters: Sequence[Parameter], sums: Sequence[Parameter], config: OptimizerConfig):
        super().__init__(auto_prefix=False)
        self.parameters, self.sums = ParameterTuple(parameters), ParameterTuple(sums)
        self.first_moments = zeros_like("adam_m", parameters)
        self.second_moments = zeros_like("adam_v", parameters)
        # A dictionary, because MindSpore empties a Cell's tuples of what its parallel mode has not cut.
        self.moments = {p.name: p for p in (*self.first_moments, *self.second_moments)}
        self.beta1, self.beta2 = config.adam_beta1, config.adam_beta2
        self.decay = tuple(config.weight_decay if decays(p.name) else 0.0 for p in parameters)
        self.multi_tensor = MultiTensorAdamW(self.beta1, self.beta2, self.decay) if has_fused_kernels() else None
        self.adam, self.each, self.partial = ops.Adam(), ops.HyperMap(), ops.Partial()

    def construct(self, scale: Tensor, lr: Tensor, beta1_power: Tensor, beta2_power: Tensor, eps: Tensor) -> Tensor:
        """All arguments fp32 scalars; `scale` multiplies the sums (gradient clipping), `eps` is bias-corrected."""
        if self.multi_tensor is not None:
            ratio = ops.sqrt(1.0 - beta2_power) / (1.0 - beta1_power)
            tensors = (*self.parameters, *self.sums, *self.first_moments, *self.second_moments)
            return self.multi_tensor(1.0 / scale, lr * ratio, 1.0 / ratio, eps, *tensors)
        update = self.partial(_adamw, self.adam, self.beta1, self.beta2, scale, lr, beta1_power, beta2_power, eps)
        done = self.each(update, self.decay, self.parameters, self.sums, self.first_moments, self.second_moments)
        return ops.depend(lr, done)

    def state(self) -> dict[str, Parameter]:
        """Name → Parameter of the moments."""
        return self.moments


class Momentum(nn.Cell):
    """v ← 0.9·v + g;  p ← p − lr·v (Polyak 1964), without decay. It divides by nothing, which shows rounding as it is.

    Args:
        parameters: what is trained.
        sums: the gradient sums; set to zero by the step.
    """

    def __init__(self, parameters: Sequence[Parameter], sums: Sequence[Parameter]):
        super().__init__(auto_prefix=False)
        self.parameters, self.sums = ParameterTuple(parameters), ParameterTuple(sums)
        self.velocities = zeros_like("momentum", parameters)
        self.by_name = {p.name: p for p in self.velocities}  # see AdamW
        self.each, self.partial = ops.HyperMap(), ops.Partial()

    def construct(self, scale: Tensor, lr: Tensor, beta1_power: Tensor, beta2_power: Tensor, eps: Tensor) -> Tensor:
        """As AdamW's; only `scale` and `lr` are used."""
        done = self.each(self.partial(_momentum, scale, lr), self.parameters, self.sums, self.velocities)
        return ops.depend(lr, done)

    def state(self) -> dict[str, Parameter]:
        """Name → Parameter of the velocities."""
        return self.by_name


def make_optimizer(parameters: Sequence[Parameter], sums: Sequence[Parameter], config: OptimizerConfig) -> nn.Cell:
    """The optimizer that `config.type` names."""
    return Momentum(parameters, sums) if config.type == "momentum" else AdamW(parameters, sums, config)


def zeros_like(prefix: str, parameters: Sequence[Parameter]) -> ParameterTuple:
    """A zero-initialised Parameter `<prefix>.<name>` for each one, of the shape that it has now."""
    return ParameterTuple(
        [
            Parameter(initializer("zeros", tuple(p.shape), ms.float32), name=f"{prefix}.{p.name}", requires_grad=False)
            for p in parameters
        ]
    )


def scalar(value: float) -> Tensor:
    """A host number as the 0-d fp32 tensor that the graphs take."""
    return Tensor(value, ms.float32)
