"""Optimizers on gradients that were added up before: the norm first, so that bad numbers stop the run.

These graphs see one rank's slices only. An update is made element by element, so no rank needs another's; only the norm
is a sum over ranks, and `step.py` takes it.
"""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from r1parallel.config.schema import OptimizerConfig

_MOMENTUM = 0.9


def decays(name: str) -> bool:
    """Whether weight decay applies: to matrices, not to biases and norm weights."""
    return not (name.endswith("bias") or "norm" in name)


class SquaredNorms(nn.Cell):
    """Sum of squares of each gradient sum, fp32 [number of parameters]."""

    def __init__(self, sums: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.sums = sums
        self.square, self.sum, self.stack = ops.Square(), ops.ReduceSum(), ops.Stack()

    def construct(self) -> Tensor:
        squares: tuple[Tensor, ...] = ()
        for gradient in self.sums:
            squares = (*squares, self.sum(self.square(gradient)))
        return self.stack(squares)


class AdamW(nn.Cell):
    """Decoupled weight decay (Loshchilov and Hutter 2019), torch.optim.AdamW's formula to the letter.

    p ← p·(1 − lr·decay);  m, v ← moments;  p ← p − lr·(m / (1 − β1ᵗ)) / (√(v / (1 − β2ᵗ)) + eps).
    MindSpore's Adam operator adds eps before the bias correction of v; passing eps·√(1 − β2ᵗ) makes both the same.

    Args:
        parameters: what is trained.
        sums: the gradient sums; set to zero by the update.
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
        self.count = len(parameters)
        self.adam = ops.Adam()
        self.assign, self.mul = ops.Assign(), ops.Mul()

    def construct(self, scale: Tensor, lr: Tensor, beta1_power: Tensor, beta2_power: Tensor, eps: Tensor) -> Tensor:
        """All arguments fp32 scalars; `scale` multiplies the sums (gradient clipping), `eps` is bias-corrected."""
        for i in range(self.count):
            parameter, total = self.parameters[i], self.sums[i]
            if self.decay[i] > 0.0:
                self.assign(parameter, self.mul(parameter, 1.0 - lr * self.decay[i]))
            self.adam(
                parameter,
                self.first_moments[i],
                self.second_moments[i],
                beta1_power,
                beta2_power,
                lr,
                self.beta1,
                self.beta2,
                eps,
                self.mul(total, scale),
            )
            self.assign(total, ops.zeros_like(total))
        return lr

    def state(self) -> dict[str, Parameter]:
        """Name → Parameter of the moments."""
        return self.moments


class Momentum(nn.Cell):
    """v ← 0.9·v + g;  p ← p − lr·v (Polyak 1964), without decay. It divides by nothing, which shows rounding as it is.

    Args:
        parameters: what is trained.
        sums: the gradient sums; set to zero by the update.
    """

    def __init__(self, parameters: Sequence[Parameter], sums: Sequence[Parameter]):
        super().__init__(auto_prefix=False)
        self.parameters, self.sums = ParameterTuple(parameters), ParameterTuple(sums)
        self.velocities = zeros_like("momentum", parameters)
        self.by_name = {p.name: p for p in self.velocities}  # see AdamW
        self.count = len(parameters)
        self.assign, self.add, self.sub, self.mul = ops.Assign(), ops.Add(), ops.Sub(), ops.Mul()

    def construct(self, scale: Tensor, lr: Tensor, beta1_power: Tensor, beta2_power: Tensor, eps: Tensor) -> Tensor:
        """As AdamW's; only `scale` and `lr` are used."""
        for i in range(self.count):
            parameter, total = self.parameters[i], self.sums[i]
            velocity = self.add(self.mul(self.velocities[i], _MOMENTUM), self.mul(total, scale))
            self.assign(self.velocities[i], velocity)
            self.assign(parameter, self.sub(parameter, self.mul(velocity, lr)))
            self.assign(total, ops.zeros_like(total))
        return lr

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
