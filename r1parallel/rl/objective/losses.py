"""The policy loss of all algorithms. Shape letters: R graph rows, K target slots of a row, N completions, C.

`docs/algorithms.md` says which formula is from which paper.
"""

from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from r1parallel.config.schema import RLConfig
from r1parallel.rl.objective.kl import KL


def loss_weights(
    lengths_N: np.ndarray, counted_N: np.ndarray, completion_length: int, settings: RLConfig, max_tokens: int
) -> np.ndarray:
    """The loss weight of each token, float64 [N, C]: every denominator of the loss, over all rows of one update.

    The graph only sums, so the loss cannot depend on how the rows are cut into micro-batches, packed or spread over
    ranks. Rows that are not counted are in no denominator.

    Args:
        lengths_N: tokens of each completion.
        counted_N: bool, rows that are learned from.
        completion_length: C.
        settings: `loss_aggregation` and `loss_constant`.
        max_tokens: the constant where `loss_constant` is 0.

    Returns:
        sequence_mean: 1 / (length · rows); token_mean: 1 / tokens; constant: 1 / (constant · rows).
    """
    inside_NC = (np.arange(completion_length) < lengths_N[:, None]) & counted_N[:, None]
    rows = max(1, int(counted_N.sum()))
    if settings.loss_aggregation == "sequence_mean":
        share_N1 = 1.0 / (np.maximum(lengths_N, 1)[:, None] * rows)
    elif settings.loss_aggregation == "token_mean":
        share_N1 = np.full((len(lengths_N), 1), 1.0 / max(1, int(inside_NC.sum())))
    else:
        share_N1 = np.full((len(lengths_N), 1), 1.0 / (rows * (settings.loss_constant or max_tokens)))
    return inside_NC * share_N1


class TokenInputs(NamedTuple):
    """Inputs of `PolicyLoss` for every target slot, float32 [R, K] each.

    Attributes:
        old: log-probs before the first update.
        ref: log-probs of the reference.
        advantages: of the token.
        weights: what the token counts for, 0 where it does not.
        policy_weights: the same times the correction for the rollout.
        kl_weights: the same times beta.
        sequences: number of the completion that a slot belongs to, any numbering.
        shares: 1 / length of that completion, 0 where no token stands.
    """

    old: np.ndarray
    ref: np.ndarray
    advantages: np.ndarray
    weights: np.ndarray
    policy_weights: np.ndarray
    kl_weights: np.ndarray
    sequences: np.ndarray
    shares: np.ndarray

    def concatenated(self) -> np.ndarray:
        """Side by side, [R, 8·K]."""
        return np.concatenate(self, axis=1).astype(np.float32)


class TokenValues(NamedTuple):
    """Outputs of `PolicyLoss` for every target slot, float32 [R, K] each."""

    loss: np.ndarray
    logps: np.ndarray
    ratio: np.ndarray
    kl: np.ndarray
    clipped: np.ndarray
    entropy: np.ndarray


NUM_INPUTS, NUM_VALUES = len(TokenInputs._fields), len(TokenValues._fields)


def token_values(rows: np.ndarray) -> TokenValues:
    """Split the output of `PolicyLoss`, [R, 6·K], into its fields."""
    return TokenValues(*np.split(rows, NUM_VALUES, axis=1))


class SequenceRatio(nn.Cell):
    """Log ratios of tokens → the mean over each token's completion (Zheng et al. 2025), [R, K] → [R, K].

    A product with a matrix that says which slots belong together: a packed row holds several completions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.same, self.cast, self.share, self.mean = ops.Equal(), ops.Cast(), ops.Mul(), ops.BatchMatMul()
        self.tile_rows, self.tile_columns, self.reshape = ops.Tile(), ops.Tile(), ops.Reshape()

    def construct(self, difference_RK: Tensor, sequences_RK: Tensor, shares_RK: Tensor) -> Tensor:
        rows, slots = difference_RK.shape
        ours_RKK = self.tile_rows(self.reshape(sequences_RK, (rows, 1, slots)), (1, slots, 1))
        theirs_RKK = self.tile_columns(self.reshape(sequences_RK, (rows, slots, 1)), (1, 1, slots))
        together_RKK = self.cast(self.same(ours_RKK, theirs_RKK), ms.float32)
        shared_RK1 = self.reshape(self.share(difference_RK, shares_RK), (rows, slots, 1))
        return self.reshape(self.mean(together_RKK, shared_RK1), (rows, slots))


class PolicyLoss(nn.Cell):
    """Σ policy_weight · policy loss + kl_weight · KL − entropy_coef · weight · entropy.

    With r = exp(logp − old), A the advantage and sg what gets no gradient, the policy loss of a token is
    clip:       −min(r·A, clip(r, 1 − epsilon_low, 1 + epsilon_high)·A), and at most −dual_clip·A where A < 0
    cispo:      −sg(clip(r, 1 − epsilon_low, 1 + epsilon_high))·A·logp
    reinforce:  −A·logp

    Args:
        logps: gives the policy's log-probs, [R, K]; beside them its entropies where the settings ask for these.
        settings: which of the above, ratio of tokens or sequences, KL, entropy.
        on_policy: there is one update a rollout, so the old policy is this one: ratio 1, its gradient kept.
    """

    def __init__(self, logps: nn.Cell, settings: RLConfig, on_policy: bool):
        super().__init__(auto_prefix=False)
        self.logps, self.on_policy, self.form = logps, on_policy, settings.policy_loss
        self.low, self.high = 1.0 - settings.epsilon_low, 1.0 + settings.epsilon_high
        self.dual_clip, self.entropy_coef = settings.dual_clip, settings.entropy_coef
        self.by_sequence = settings.importance_level == "sequence"
        self.has_kl = settings.beta > 0.0 and settings.kl_place == "loss"
        self.has_entropy = wants_entropy(settings)
        self.sequence_ratio, self.kl = SequenceRatio(), KL(settings)
        self.position = {name: i for i, name in enumerate(TokenInputs._fields)}  # of an input among the parts
        self.split_inputs, self.split_logps = ops.Split(1, NUM_INPUTS), ops.Split(1, 2)
        self.zero, self.counts, self.select = ops.Mul(), ops.Greater(), ops.Select()
        self.old_difference, self.ratio, self.gain, self.smaller = ops.Sub(), ops.Exp(), ops.Mul(), ops.Minimum()
        self.clip_low, self.clip_high, self.negate = ops.Maximum(), ops.Minimum(), ops.Neg()
        self.dual, self.negative, self.larger = ops.Mul(), ops.Less(), ops.Maximum()
        self.less, self.differs, self.cast = ops.Less(), ops.NotEqual(), ops.Cast()
        self.weigh, self.add, self.reward_entropy = ops.Mul(), ops.Add(), ops.Mul()
        self.join = ops.Concat(1)

    def construct(self, tokens_RS: Tensor, row_data: Tensor, token_inputs: Tensor) -> Tensor:
        """Six values for every target slot, [R, 6·K]; `token_values` names them. Only the first has a gradient.

        Args:
            tokens_RS: int32.
            row_data: how the rows are filled, as `logps` takes it.
            token_inputs: `TokenInputs.concatenated()`.
        """
        parts, at = self.split_inputs(token_inputs), self.position
        advantages, weights = parts[at["advantages"]], parts[at["weights"]]
        zero = self.zero(weights, 0.0)
        logps, entropy = self.logps(tokens_RS, row_data), zero
        if self.has_entropy:
            logps, entropy = self.split_logps(logps)
        inside = self.counts(weights, 0.0)
        # Past its end a row holds arbitrary numbers.
        logps = self.select(inside, logps, zero)
        old = ops.stop_gradient(logps) if self.on_policy else self.select(inside, parts[at["old"]], zero)
        difference = self.old_difference(logps, old)
        if self.by_sequence:
            difference = self.sequence_ratio(difference, parts[at["sequences"]], parts[at["shares"]])
        ratio = self.ratio(difference)
        policy, clipped = self.policy(ratio, advantages, logps)
        loss = self.weigh(policy, parts[at["policy_weights"]])
        kl = zero
        if self.has_kl:
            kl = self.kl(logps, self.select(inside, parts[at["ref"]], zero), ratio)
            loss = self.add(loss, self.weigh(kl, parts[at["kl_weights"]]))
        if self.entropy_coef > 0.0:
            bonus = self.reward_entropy(self.select(inside, entropy, zero), -self.entropy_coef)
            loss = self.add(loss, self.weigh(bonus, weights))
        reported = (logps, ratio, kl, clipped, entropy)  # in the order of `TokenValues`
        return self.join((loss, *(ops.stop_gradient(x) for x in reported)))

    def policy(self, ratio: Tensor, advantages: Tensor, logps: Tensor) -> tuple[Tensor, Tensor]:
        """The policy loss of every slot, and 1 where clipping changed it."""
        if self.form == "reinforce":
            return self.negate(self.gain(advantages, logps)), self.zero(ratio, 0.0)
        bounded = self.clip_high(self.clip_low(ratio, self.low), self.high)
        if self.form == "cispo":
            weight = ops.stop_gradient(bounded)
            clipped = self.cast(self.differs(bounded, ratio), ms.float32)
            return self.negate(self.gain(self.gain(weight, advantages), logps)), clipped
        free, limited = self.gain(ratio, advantages), self.gain(bounded, advantages)
        kept = self.smaller(free, limited)
        clipped = self.less(limited, free)
        if self.dual_clip > 0.0:
            floor = self.dual(advantages, self.dual_clip)
            raised = self.select(self.negative(advantages, 0.0), self.larger(kept, floor), kept)
            return self.negate(raised), self.cast(self.differs(raised, free), ms.float32)
        return self.negate(kept), self.cast(clipped, ms.float32)


def wants_entropy(settings: RLConfig) -> bool:
    """Whether the log-probs have to bring entropies with them."""
    return settings.calculate_entropy or settings.entropy_coef > 0.0
