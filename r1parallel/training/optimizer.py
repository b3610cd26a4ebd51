"""AdamW on gradients that were added up before, in two graphs: the norm first, so that bad numbers stop the run."""

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from r1parallel.config.schema import OptimizerConfig


def decays(name: str) -> bool:
    """Whether weight decay applies: to matrices, not to biases and norm weights."""
    return not (name.endswith("bias") or "norm" in name)


class GradientNorm(nn.Cell):
    """Global L2 norm of the gradient sums, fp32 [1]."""

    def __init__(self, sums: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.sums = sums
        self.square, self.sum, self.sqrt = ops.Square(), ops.ReduceSum(), ops.Sqrt()

    def construct(self) -> Tensor:
        total = 0.0
        for gradient in self.sums:
            total = total + self.sum(self.square(gradient))
        return self.sqrt(total).reshape((1,))


class AdamW(nn.Cell):
    """Decoupled weight decay (Loshchilov and Hutter 2019), torch.optim.AdamW's formula to the letter.

    p ← p·(1 − lr·decay);  m, v ← moments;  p ← p − lr·(m / (1 − β1ᵗ)) / (√(v / (1 − β2ᵗ)) + eps).
    MindSpore's Adam operator adds eps before the bias correction of v; passing eps·√(1 − β2ᵗ) makes both the same.

    Args:
        parameters: what is trained.
        sums: the gradient sums; set to zero by the update.
        config: betas, eps, weight decay.
    """

    def __init__(self, parameters: ParameterTuple, sums: ParameterTuple, config: OptimizerConfig):
        super().__init__(auto_prefix=False)
        self.parameters, self.sums = parameters, sums
        self.first_moments = parameters.clone("adam_m", "zeros")
        self.second_moments = parameters.clone("adam_v", "zeros")
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
        return {p.name: p for p in (*self.first_moments, *self.second_moments)}


def scalar(value: float) -> Tensor:
    """A host number as the 0-d fp32 tensor that the graphs take."""
    return Tensor(value, ms.float32)
