"""The GRPO loss. Shape letters: B rows of a micro-batch, S slots, C completion slots, N rows of an update."""

from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from r1parallel.models.logps import CompletionLogps


def sequence_mean_weights(lengths_N: np.ndarray, kept_N: np.ndarray, completion_length: int) -> np.ndarray:
    """What each token counts for: 1 / (length · number of kept rows) (Shao et al. 2024, eq. 3), float32 [N, C].

    Every denominator of the loss is in here, taken over all rows of the update before these are cut into micro-batches
    or spread over ranks. The graph only sums, so the loss cannot depend on how the rows were cut.
    """
    inside_NC = np.arange(completion_length) < lengths_N[:, None]
    rows = max(1, int(kept_N.sum()))
    weights_N = np.where(kept_N, 1.0 / (lengths_N * rows), 0.0)
    return (inside_NC * weights_N[:, None]).astype(np.float32)


class TokenValues(NamedTuple):
    """What `GRPOLoss` says of every token, float32 [N, C] each."""

    loss: np.ndarray
    logps: np.ndarray
    ratio: np.ndarray
    kl: np.ndarray
    clipped: np.ndarray


def token_values(rows_N5C: np.ndarray) -> TokenValues:
    """The five parts of what `GRPOLoss` gives."""
    return TokenValues(*np.split(rows_N5C, 5, axis=1))


class GRPOLoss(nn.Cell):
    """Σ weight · (−min(ratio·A, clip(ratio)·A) + β·(exp(δ) − δ − 1)), with δ = ref − logp (the k3 estimate of KL).

    Args:
        logps: gives the policy's log-probs.
        epsilon_low: the ratio is clipped below at 1 − epsilon_low …
        epsilon_high: … and above at 1 + epsilon_high.
        beta: weight of the KL term; 0 leaves it out of the graph.
        on_policy: there is one update a rollout, so the old policy is this one: ratio 1, its gradient kept.
    """

    def __init__(self, logps: CompletionLogps, epsilon_low: float, epsilon_high: float, beta: float, on_policy: bool):
        super().__init__(auto_prefix=False)
        self.logps = logps
        self.low, self.high, self.beta, self.on_policy = (
            1.0 - epsilon_low,
            1.0 + epsilon_high,
            beta,
            on_policy,
        )
        self.masked, self.counts, self.select = ops.Mul(), ops.Greater(), ops.Select()
        self.old_difference, self.ratio, self.gain, self.smaller = ops.Sub(), ops.Exp(), ops.Mul(), ops.Minimum()
        self.clip_low, self.clip_high, self.negate = ops.Maximum(), ops.Minimum(), ops.Neg()
        self.ref_difference, self.exp, self.minus, self.minus_one = ops.Sub(), ops.Exp(), ops.Sub(), ops.Sub()
        self.times_beta, self.add, self.less, self.cast = ops.Mul(), ops.Add(), ops.Less(), ops.Cast()
        self.weigh, self.join = ops.Mul(), ops.Concat(1)

    def inside(self, weights_BC: Tensor, difference_BC: Tensor) -> Tensor:
        """The difference of log-probs where a token counts, else 0: past its end a row holds arbitrary numbers."""
        return self.select(self.counts(weights_BC, 0.0), difference_BC, self.masked(weights_BC, 0.0))

    def construct(
        self,
        tokens_BS: Tensor,
        starts_B: Tensor,
        old_BC: Tensor,
        ref_BC: Tensor,
        advantages_B1: Tensor,
        weights_BC: Tensor,
    ) -> Tensor:
        """Of every token five numbers, side by side as [B, 5·C]; `token_values` names them. Only the first is learned.

        They are: its share of the loss, log-prob, ratio, KL estimate, and 1 where clipping cut the gradient.
        """
        logps_BC = self.logps(tokens_BS, starts_B)
        old_BC = ops.stop_gradient(logps_BC) if self.on_policy else old_BC
        ratio_BC = self.ratio(self.inside(weights_BC, self.old_difference(logps_BC, old_BC)))
        free_BC = self.gain(ratio_BC, advantages_B1)
        clipped_BC = self.gain(self.clip_high(self.clip_low(ratio_BC, self.low), self.high), advantages_B1)
        loss_BC = self.negate(self.smaller(free_BC, clipped_BC))
        kl_BC = self.masked(weights_BC, 0.0)
        if self.beta > 0.0:
            delta_BC = self.inside(weights_BC, self.ref_difference(ref_BC, logps_BC))
            kl_BC = self.minus_one(self.minus(self.exp(delta_BC), delta_BC), 1.0)
            loss_BC = self.add(loss_BC, self.times_beta(kl_BC, self.beta))
        cut_BC = self.cast(self.less(clipped_BC, free_BC), ms.float32)
        said = (logps_BC, ratio_BC, kl_BC, cut_BC)
        return self.join((self.weigh(loss_BC, weights_BC), *(ops.stop_gradient(x_BC) for x_BC in said)))
