"""From logits to a token, inside the graph. Shape letters: B rows, V vocabulary, N blocks of S tokens each."""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from r1parallel.config.schema import SamplingConfig

_NEVER = -1e9  # logit of a token that must not be drawn
_BELOW_ONE = 1.0 - 2.0**-24  # x times this is less than x in fp32, for every x that is neither zero nor subnormal


def block_size(vocab_size: int) -> int:
    """S: the least divisor of V that is not below its root, so that blocks need neither padding nor a copy of [B, V].

    V = 49152 has S = 256. A prime V is one block: right as well, but it takes twice as long as without blocks.
    """
    return next(size for size in range(math.isqrt(vocab_size - 1) + 1, vocab_size + 1) if vocab_size % size == 0)


class Sampler(nn.Cell):
    """Draw one token a row by inverting the cumulative distribution at a given uniform number.

    In this order: repetition penalty (Keskar et al. 2019), stop ids held back, temperature, top_k, top_p
    (Holtzman et al. 2020). What the settings leave out is left out of the graph.

    Few operators read all of [B, V], for on the CPU they took longer than a layer of a small model: the cumulative
    distribution is inverted in two levels, first over sums of blocks, then inside the block that was hit, and a
    log-prob is computed for one token, not for all.

    Args:
        config: temperature 0 takes the most probable token.
        vocab_size: V.
    """

    def __init__(self, config: SamplingConfig, vocab_size: int):
        super().__init__()
        self.temperature, self.penalty = config.temperature, config.repetition_penalty
        self.top_k = config.top_k if 0 < config.top_k < vocab_size else 0
        self.top_p = config.top_p if config.top_p < 1.0 else 0.0
        self.holds_back = config.min_tokens > 0
        self.reshapes = bool(self.penalty != 1.0 or self.holds_back or self.top_k or self.top_p)
        self.vocab_size, self.size = vocab_size, block_size(vocab_size)
        self.log_blocks = math.log(vocab_size // self.size)
        self.offsets_1S = Tensor(np.arange(self.size, dtype=np.int32)[None])
        self.divide, self.times, self.hold_back = ops.RealDiv(), ops.Mul(), ops.Add()
        self.greater, self.greater_equal, self.select = ops.Greater(), ops.GreaterEqual(), ops.Select()
        self.largest, self.sort, self.column = ops.TopK(sorted=True), ops.Sort(-1, True), ops.StridedSlice()
        self.less, self.less_equal, self.fill = ops.Less(), ops.LessEqual(), ops.MaskedFill()
        self.softmax, self.cumulative, self.sub = ops.Softmax(-1), ops.CumSum(), ops.Sub()
        self.sum, self.min, self.max = ops.ReduceSum(True), ops.ReduceMin(True), ops.ReduceMax(True)
        self.mean, self.best = ops.ReduceMean(True), ops.ArgMaxWithValue(-1, True)
        self.scale, self.at_most, self.cast, self.reshape = ops.Mul(), ops.Minimum(), ops.Cast(), ops.Reshape()
        self.first_of, self.place, self.inside = ops.Mul(), ops.Add(), ops.Add()
        self.pick, self.part, self.log, self.add = ops.GatherD(), ops.RealDiv(), ops.Log(), ops.Add()
        self.less_log, self.join = ops.Sub(), ops.Concat(1)

    def adjusted(self, logits_BV: Tensor, seen_BV: Tensor, stop_bias_BV: Tensor) -> Tensor:
        """Logits after penalty and held-back stop ids."""
        if self.penalty != 1.0:
            divided_BV, multiplied_BV = self.divide(logits_BV, self.penalty), self.times(logits_BV, self.penalty)
            punished_BV = self.select(self.greater(logits_BV, 0.0), divided_BV, multiplied_BV)
            logits_BV = self.select(self.greater(seen_BV, 0.0), punished_BV, logits_BV)
        return self.hold_back(logits_BV, stop_bias_BV) if self.holds_back else logits_BV

    def truncated(self, logits_BV: Tensor) -> Tensor:
        """Logits with everything outside top_k and top_p set to never."""
        if self.top_k:
            values_BK, _ = self.largest(logits_BV, self.top_k)
            kth_B1 = self.column(values_BK, (0, self.top_k - 1), (logits_BV.shape[0], self.top_k), (1, 1))
            logits_BV = self.fill(logits_BV, self.less(logits_BV, kth_B1), _NEVER)
        if self.top_p:
            sorted_BV, _ = self.sort(logits_BV)
            weights_BV = self.softmax(sorted_BV)
            before_BV = self.sub(self.cumulative(weights_BV, -1), weights_BV)
            kept_BV = self.fill(sorted_BV, self.greater_equal(before_BV, self.top_p), -_NEVER)
            smallest_B1 = self.min(kept_BV, -1)
            logits_BV = self.fill(logits_BV, self.less(logits_BV, smallest_B1), _NEVER)
        return logits_BV

    def passed(self, running_BX: Tensor, goal_B1: Tensor) -> Tensor:
        """1 for each running sum that does not exceed the goal, else 0; never 1 for all.

        The first 0 stands where the running sum grows, so never at a share of 0. A goal that rounding has put past the
        end counts as the greatest number before it.
        """
        reached_B1 = self.at_most(goal_B1, self.times(self.last(running_BX), _BELOW_ONE))
        return self.cast(self.less_equal(running_BX, reached_B1), ms.float32)

    def last(self, x_BX: Tensor) -> Tensor:
        """The last column."""
        rows, columns = x_BX.shape
        return self.column(x_BX, (0, columns - 1), (rows, columns), (1, 1))

    def count(self, passed_BX: Tensor) -> Tensor:
        """How many ones, int32 [B, 1]."""
        return self.cast(self.sum(passed_BX, -1), ms.int32)

    def inside_block(self, share_BV: Tensor, block_B1: Tensor) -> Tensor:
        """The shares of one block of each row, [B, S]."""
        return self.pick(share_BV, 1, self.place(self.first_of(block_B1, self.size), self.offsets_1S))

    def drawn(self, share_BV: Tensor, sums_BN: Tensor, uniform_B1: Tensor) -> Tensor:
        """The first token whose running sum exceeds the uniform number's part of the whole, int32 [B, 1]."""
        running_BN = self.cumulative(sums_BN, -1)
        goal_B1 = self.scale(uniform_B1, self.last(running_BN))
        passed_BN = self.passed(running_BN, goal_B1)
        block_B1 = self.count(passed_BN)
        # What the blocks before make together, taken from the very sums that were compared: the rest is not negative.
        rest_B1 = self.sub(goal_B1, self.max(self.scale(running_BN, passed_BN), -1))
        running_BS = self.cumulative(self.inside_block(share_BV, block_B1), -1)
        return self.inside(self.first_of(block_B1, self.size), self.count(self.passed(running_BS, rest_B1)))

    def shares(self, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution, [B, V], and its sums over blocks, [B, N]."""
        share_BV = self.softmax(logits_BV)
        rows, blocks = logits_BV.shape[0], self.vocab_size // self.size
        # Two dimensions: the CPU's kernel is eight times slower over the last of three.
        sums = self.sum(self.reshape(share_BV, (rows * blocks, self.size)), -1)
        return share_BV, self.reshape(sums, (rows, blocks))

    def logp(self, token_B1: Tensor, logits_BV: Tensor, share_BV: Tensor, sums_BN: Tensor) -> Tensor:
        """Log-prob of a token, [B, 1], as its distance from a likely one, for its own share may be 0 in fp32.

        That is the best token of the best block: its share is at least 1 / V. Two things of the CPU's kernels are made
        up for. Softmax adds V numbers one after the other, which leaves the whole 2e-5 off where V is 49152; sums of
        blocks are right. Log errs by 4e-7 of its result; in units of the average block, which is near the root of
        the smallest share, that is half as large at most.
        """
        block_B1, _ = self.best(sums_BN)
        inner_B1, share_B1 = self.best(self.inside_block(share_BV, block_B1))
        likely_B1 = self.inside(self.first_of(block_B1, self.size), inner_B1)
        distance_B1 = self.sub(self.pick(logits_BV, 1, token_B1), self.pick(logits_BV, 1, likely_B1))
        likely_logp_B1 = self.less_log(self.log(self.part(share_B1, self.mean(sums_BN, -1))), self.log_blocks)
        return self.add(distance_B1, likely_logp_B1)

    def construct(
        self, logits_BV: Tensor, uniform_B1: Tensor, seen_BV: Tensor, stop_bias_BV: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The token, int32 [B, 1], and two log-probs of it side by side, [B, 2].

        The first is under the model itself at this temperature (at 1 where the most probable token is taken), nothing
        left out; the second under the distribution that was drawn from, where that is another.
        `seen_BV` (1 where a token occurred before) and `stop_bias_BV` are read only where the settings need them.
        """
        adjusted_BV = self.adjusted(logits_BV, seen_BV, stop_bias_BV)
        if self.temperature == 0.0:
            token_B1, _ = self.best(adjusted_BV)
            logp_B1 = self.logp(token_B1, logits_BV, *self.shares(logits_BV))
            return token_B1, self.join((logp_B1, logp_B1))
        if self.temperature != 1.0:
            adjusted_BV = self.divide(adjusted_BV, self.temperature)
        allowed_BV = self.truncated(adjusted_BV)
        share_BV, sums_BN = self.shares(allowed_BV)
        token_B1 = self.drawn(share_BV, sums_BN, uniform_B1)
        drawn_B1 = self.logp(token_B1, allowed_BV, share_BV, sums_BN)
        if not self.reshapes:
            return token_B1, self.join((drawn_B1, drawn_B1))
        model_BV = logits_BV if self.temperature == 1.0 else self.divide(logits_BV, self.temperature)
        logp_B1 = self.logp(token_B1, model_BV, *self.shares(model_BV))
        return token_B1, self.join((logp_B1, drawn_B1))
