"""The KL divergence from the reference: estimators of it, in the graph and in NumPy, and the weight it gets.

With d = logp − ref of a token that the policy drew (Schulman 2020, "Approximating KL Divergence"):
k1 d, unbiased;  k2 d²/2;  k3 exp(−d) + d − 1, unbiased and never negative;  abs |d|.
What is unbiased as a value need not be so as a gradient: see `docs/algorithms.md`.
"""

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn, ops

from r1parallel.config.schema import RLConfig


def kl_values(logps: np.ndarray, ref: np.ndarray, estimator: str, clamp: float) -> np.ndarray:
    """The estimate of every token, float64 of the inputs' shape.

    Args:
        logps: of the policy.
        ref: of the reference.
        estimator: k1, k2, k3 or abs.
        clamp: the difference is kept within ±clamp; 0: as it is.
    """
    difference = logps.astype(np.float64) - ref
    if clamp > 0.0:
        difference = np.clip(difference, -clamp, clamp)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    if estimator == "abs":
        return np.abs(difference)
    assert estimator == "k3", estimator
    return np.exp(-difference) + difference - 1.0


class KL(nn.Cell):
    """The same in the graph: value of `kl_estimator`, gradient of `kl_gradient`, times the ratio if so asked.

    The value's gradient is replaced straight-through: value = sg(value − other) + other.
    """

    def __init__(self, settings: RLConfig):
        super().__init__()
        self.estimator = settings.kl_estimator
        self.gradient = settings.kl_estimator if settings.kl_gradient == "same" else settings.kl_gradient
        self.clamp, self.weighted = settings.kl_clamp, settings.kl_importance_weighted
        self.difference, self.clamp_low, self.clamp_high = ops.Sub(), ops.Maximum(), ops.Minimum()
        self.square, self.half, self.abs = ops.Square(), ops.Mul(), ops.Abs()
        self.negate, self.exp, self.plus, self.minus_one = ops.Neg(), ops.Exp(), ops.Add(), ops.Sub()
        self.rest, self.through, self.times_ratio = ops.Sub(), ops.Add(), ops.Mul()

    def estimate(self, difference: Tensor, estimator: str) -> Tensor:
        if estimator == "k1":
            return difference
        if estimator == "k2":
            return self.half(self.square(difference), 0.5)
        if estimator == "abs":
            return self.abs(difference)
        return self.minus_one(self.plus(self.exp(self.negate(difference)), difference), 1.0)

    def construct(self, logps: Tensor, ref: Tensor, ratio: Tensor) -> Tensor:
        difference = self.difference(logps, ref)
        if self.clamp > 0.0:
            difference = self.clamp_high(self.clamp_low(difference, -self.clamp), self.clamp)
        kl = self.estimate(difference, self.estimator)
        if self.gradient != self.estimator:
            other = self.estimate(difference, self.gradient)
            kl = self.through(ops.stop_gradient(self.rest(kl, other)), other)
        return self.times_ratio(kl, ratio) if self.weighted else kl


@dataclass
class Beta:
    """The weight of the KL term; `value` follows the measured KL where the settings say so.

    After Ziegler et al. 2019, section 2.2, whose step is a constant:
    β ← β · (1 + clip(KL / target − 1, −0.2, 0.2) · completions / horizon).
    """

    settings: RLConfig
    value: float

    def move(self, completion_kl: float, completions: int) -> None:
        """After a step of so many completions with this mean KL of a completion, in nats."""
        if self.settings.kl_controller == "fixed":
            return
        error = float(np.clip(completion_kl / self.settings.kl_target - 1.0, -0.2, 0.2))
        self.value *= 1.0 + error * completions / self.settings.kl_horizon
