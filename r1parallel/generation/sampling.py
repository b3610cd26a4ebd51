"""From logits to a token, inside the graph. Shape letters: B rows, V vocabulary."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from r1parallel.config.schema import SamplingConfig

_NEVER = -1e9  # logit of a token that must not be drawn


class Sampler(nn.Cell):
    """Draw one token a row by inverting the cumulative distribution at a given uniform number.

    In this order: repetition penalty (Keskar et al. 2019), stop ids held back, temperature, top_k, top_p
    (Holtzman et al. 2020). What the settings leave out is left out of the graph.

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
        self.vocab_size = vocab_size
        self.divide, self.times, self.hold_back = ops.RealDiv(), ops.Mul(), ops.BiasAdd()
        self.greater, self.greater_equal, self.select = ops.Greater(), ops.GreaterEqual(), ops.Select()
        self.largest, self.sort, self.column = ops.TopK(sorted=True), ops.Sort(-1, True), ops.StridedSlice()
        self.less, self.less_equal, self.fill = ops.Less(), ops.LessEqual(), ops.MaskedFill()
        self.softmax, self.log_softmax, self.cumulative = ops.Softmax(-1), ops.LogSoftmax(-1), ops.CumSum()
        self.sub, self.min, self.sum = ops.Sub(), ops.ReduceMin(keep_dims=True), ops.ReduceSum(keep_dims=True)
        self.scale, self.at_most, self.cast = ops.Mul(), ops.Minimum(), ops.Cast()
        self.argmax, self.reshape, self.pick = ops.Argmax(-1, ms.int32), ops.Reshape(), ops.GatherD()
        self.join = ops.Concat(1)

    def adjusted(self, logits_BV: Tensor, seen_BV: Tensor, stop_bias_V: Tensor) -> Tensor:
        """Logits after penalty and held-back stop ids."""
        if self.penalty != 1.0:
            divided_BV, multiplied_BV = self.divide(logits_BV, self.penalty), self.times(logits_BV, self.penalty)
            punished_BV = self.select(self.greater(logits_BV, 0.0), divided_BV, multiplied_BV)
            logits_BV = self.select(self.greater(seen_BV, 0.0), punished_BV, logits_BV)
        return self.hold_back(logits_BV, stop_bias_V) if self.holds_back else logits_BV

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

    def construct(
        self, logits_BV: Tensor, uniform_B1: Tensor, seen_BV: Tensor, stop_bias_V: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The token, int32 [B, 1], and two log-probs of it side by side, [B, 2].

        The first is under the model itself at this temperature (at 1 where the most probable token is taken), nothing
        left out; the second under the distribution that was drawn from, where that is another.
        `seen_BV` (1 where a token occurred before) and `stop_bias_V` are read only where the settings need them.
        """
        adjusted_BV = self.adjusted(logits_BV, seen_BV, stop_bias_V)
        if self.temperature == 0.0:
            token_B1 = self.reshape(self.argmax(adjusted_BV), (-1, 1))
            logp_B1 = self.pick(self.log_softmax(logits_BV), 1, token_B1)
            return token_B1, self.join((logp_B1, logp_B1))
        allowed_BV = self.truncated(self.divide(adjusted_BV, self.temperature))
        share_BV = self.softmax(allowed_BV)
        total_BV = self.cumulative(share_BV, -1)
        rows = logits_BV.shape[0]
        whole_B1 = self.column(total_BV, (0, self.vocab_size - 1), (rows, self.vocab_size), (1, 1))
        passed_BV = self.cast(self.less_equal(total_BV, self.scale(uniform_B1, whole_B1)), ms.float32)
        token_B1 = self.cast(self.at_most(self.sum(passed_BV, -1), self.vocab_size - 1.0), ms.int32)
        model_BV = logits_BV if self.temperature == 1.0 else self.divide(logits_BV, self.temperature)
        logp_B1 = self.pick(self.log_softmax(model_BV), 1, token_B1)
        drawn_B1 = self.pick(self.log_softmax(allowed_BV), 1, token_B1) if self.reshapes else logp_B1
        return token_B1, self.join((logp_B1, drawn_B1))
