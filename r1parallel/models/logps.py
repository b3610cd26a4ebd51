"""Log-probabilities of tokens, for every loss and KL term.

Shape letters: B rows, S slots of a row, P prompt slots, C completion slots, T slots and K targets of a packed row,
X = 3·T + 2·K, c slots or targets of a chunk, R = B·c, H hidden, V vocabulary.
"""

from itertools import pairwise

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from r1parallel.models.qwen2_5 import Qwen2ForCausalLM

_CHUNK_ELEMENTS = 12 << 20  # logits that one chunk may hold; products of fewer rows with so many weights are slower
_MAX_CHUNKS = 8  # more of them make the graph longer and save little


class TokenLogps(nn.Cell):
    """logits_RV, targets_R → log softmax(logits)[target], fp32 [R], and with `entropy` −Σ p·log p of each row too.

    The fused log softmax matters on CPU: an operator that broadcasts keeps index tables of 16 bytes for every element
    of its output. The gradient of the entropy takes four times the memory of all logits, so it is made only where the
    entropy is learned.
    """

    def __init__(self, entropy: bool = False, learn_entropy: bool = True) -> None:
        super().__init__()
        self.entropy, self.learn_entropy = entropy, learn_entropy
        self.log_softmax = ops.LogSoftmax(-1)
        self.pick = ops.GatherD()
        self.reshape = ops.Reshape()
        self.exp, self.mul, self.expected, self.negate = ops.Exp(), ops.Mul(), ops.ReduceSum(), ops.Neg()

    def construct(self, logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, ...]:
        logps_RV = self.log_softmax(logits_RV)
        logps_R = self.reshape(self.pick(logps_RV, 1, self.reshape(targets_R, (-1, 1))), (-1,))
        if not self.entropy:
            return (logps_R,)
        if not self.learn_entropy:
            logps_RV = ops.stop_gradient(logps_RV)
        return logps_R, self.negate(self.expected(self.mul(self.exp(logps_RV), logps_RV), -1))


class SplitVocabularyLogps(nn.Cell):
    """The same from logits whose vocabulary lies on several ranks: only sums and maxima over V leave a rank.

    logp = (z_target − max) − log Σ exp(z − max), as in Megatron-LM's vocabulary-parallel cross entropy (Shoeybi et al.
    2019, section 3). The target is found by a product with its one-hot row, which every rank makes for its own part.
    With s = z − max the entropy is log Σ exp(s) − Σ exp(s)·s / Σ exp(s).

    The logarithm is taken as log1p(Σ − 1), with Σ ≥ 1: how MindSpore's Log rounds on the CPU depends on how its threads
    share the elements out, which changes over a kernel's first launches, so equal rows could give unequal log-probs.
    """

    def __init__(self, vocab_size: int, entropy: bool = False, learn_entropy: bool = True):
        super().__init__()
        self.vocab_size, self.entropy, self.learn_entropy = vocab_size, entropy, learn_entropy
        self.max, self.tile, self.shift = ops.ReduceMax(keep_dims=True), ops.Tile(), ops.Sub()
        self.exp, self.total, self.minus_one, self.log1p = ops.Exp(), ops.ReduceSum(), ops.Sub(), ops.Log1p()
        self.one_hot, self.pick, self.picked = ops.OneHot(), ops.Mul(), ops.ReduceSum()
        self.subtract = ops.Sub()
        self.on, self.off = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)
        self.mul, self.weighted, self.mean, self.less = ops.Mul(), ops.ReduceSum(), ops.RealDiv(), ops.Sub()

    def construct(self, logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, ...]:
        max_RV = self.tile(self.max(ops.stop_gradient(logits_RV), -1), (1, self.vocab_size))
        shifted_RV = self.shift(logits_RV, max_RV)
        target_RV = self.one_hot(targets_R, self.vocab_size, self.on, self.off)
        target_R = self.picked(self.pick(shifted_RV, target_RV), -1)
        exp_RV = self.exp(shifted_RV)
        total_R = self.total(exp_RV, -1)
        log_R = self.log1p(self.minus_one(total_R, 1.0))
        logps_R = self.subtract(target_R, log_R)
        if not self.entropy:
            return (logps_R,)
        if not self.learn_entropy:
            exp_RV, shifted_RV = ops.stop_gradient(exp_RV), ops.stop_gradient(shifted_RV)
            total_R, log_R = ops.stop_gradient(total_R), ops.stop_gradient(log_R)
        mean_R = self.mean(self.weighted(self.mul(exp_RV, shifted_RV), -1), total_R)
        return logps_R, self.less(log_R, mean_R)


class _Logps(nn.Cell):
    """Log-probs of some tokens of every row, and the entropy of the distributions that they are drawn from.

    Logits are made for some of a row's tokens at a time. Of all of them the backward pass keeps one fp32 copy, the
    log-probs; every other [R, V] array lives for one such chunk only.

    Args:
        model: without a cache.
        rows: B.
        count: how many tokens of a row are scored.
        split_vocab: the head's vocabulary lies on several ranks.
        temperature: logits are divided by it.
        entropy: give the entropies too, in nats.
        learn_entropy: these have a gradient.
    """

    def __init__(
        self,
        model: Qwen2ForCausalLM,
        rows: int,
        count: int,
        split_vocab: bool,
        temperature: float,
        entropy: bool,
        learn_entropy: bool,
    ):
        super().__init__(auto_prefix=False)
        assert temperature > 0.0, temperature
        self.model, self.rows, self.temperature = model, rows, temperature
        vocab_size = model.config.vocab_size
        self.token_logps: nn.Cell
        if split_vocab:
            self.token_logps = SplitVocabularyLogps(vocab_size, entropy, learn_entropy)
        else:
            self.token_logps = TokenLogps(entropy, learn_entropy)
        wanted = max(1, rows * count * vocab_size // _CHUNK_ELEMENTS)
        wanted = min(_MAX_CHUNKS, count, wanted)
        self.chunks = tuple(pairwise(count * i // wanted for i in range(wanted + 1)))
        self.parts = len(self.chunks) * (2 if entropy else 1)
        self.reshape, self.cast, self.divide, self.join = ops.Reshape(), ops.Cast(), ops.RealDiv(), ops.Concat(1)

    def scored(self, hidden_BcH: Tensor, targets_Bc: Tensor) -> tuple[Tensor, ...]:
        """Log-probs of a chunk's targets, and what else was asked for, fp32 [B, c] each."""
        hidden_RH = self.reshape(hidden_BcH, (-1, self.model.config.hidden_size))
        logits_RV = self.cast(self.model.logits(hidden_RH), ms.float32)
        if self.temperature != 1.0:
            logits_RV = self.divide(logits_RV, self.temperature)
        values: tuple[Tensor, ...] = ()
        for value_R in self.token_logps(logits_RV, self.reshape(targets_Bc, (-1,))):
            values = (*values, self.reshape(value_R, (self.rows, -1)))
        return values

    def concat_chunks(self, chunks: tuple[tuple[Tensor, ...], ...]) -> Tensor:
        """The chunks' log-probs side by side, then their entropies."""
        parts: tuple[Tensor, ...] = ()
        for kind in range(self.parts // len(self.chunks)):
            for values in chunks:
                parts = (*parts, values[kind])
        return parts[0] if len(parts) == 1 else self.join(parts)


class CompletionLogps(_Logps):
    """tokens [prompt | completion], starts → log-probs of the completion's tokens. Prompts contribute no logits.

    Args:
        model: without a cache, `num_keys` = P + C.
        rows: B.
        prompt_length: P; prompts stand at the right end of these slots.
        completion_length: C; completions stand at the left end of these.
        split_vocab: the head's vocabulary lies on several ranks.
        temperature: log-probs are those of softmax(logits / temperature).
        entropy: give the entropies of these distributions too, in nats.
        learn_entropy: the entropies have a gradient, which takes memory.
    """

    def __init__(
        self,
        model: Qwen2ForCausalLM,
        rows: int,
        prompt_length: int,
        completion_length: int,
        split_vocab: bool = False,
        temperature: float = 1.0,
        entropy: bool = False,
        learn_entropy: bool = True,
    ):
        super().__init__(model, rows, completion_length, split_vocab, temperature, entropy, learn_entropy)
        self.prompt_length = prompt_length
        self.slots = Tensor(np.arange(prompt_length + completion_length, dtype=np.int32))
        self.slice_hidden, self.slice_tokens = ops.StridedSlice(), ops.StridedSlice()

    def construct(self, tokens_BS: Tensor, starts_B: Tensor) -> Tensor:
        """tokens_BS int32, starts_B int32 → logps_BC fp32, with `entropy` [B, 2·C]: log-probs, then entropies.

        What stands past a completion's end has no meaning.
        """
        rows, size = self.rows, self.model.config.hidden_size
        hidden_TH = self.model.hidden(tokens_BS, self.slots, starts_B)
        hidden_BSH = self.reshape(hidden_TH, (rows, -1, size))
        chunks: tuple[tuple[Tensor, ...], ...] = ()
        for first, last in self.chunks:
            # The state at slot i predicts the token at slot i + 1.
            begin, end = self.prompt_length + first, self.prompt_length + last
            hidden_BcH = self.slice_hidden(hidden_BSH, (0, begin - 1, 0), (rows, end - 1, size), (1, 1, 1))
            targets_Bc = self.slice_tokens(tokens_BS, (0, begin), (rows, end), (1, 1))
            chunks = (*chunks, self.scored(hidden_BcH, targets_Bc))
        return self.concat_chunks(chunks)


class PackedLogps(_Logps):
    """tokens, segment map of packed rows → log-probs of their targets. Other tokens contribute no logits.

    A target's hidden state is found by a product with a one-hot row, whose backward pass adds up in a fixed order;
    several targets may have one source.

    Args:
        model: without a cache, `num_keys` = T, of `packed` operators.
        rows: B.
        row_length: T.
        targets: K.
        split_vocab: the head's vocabulary lies on several ranks.
        temperature: as in `CompletionLogps`.
        entropy: as in `CompletionLogps`.
        learn_entropy: as in `CompletionLogps`.
    """

    def __init__(
        self,
        model: Qwen2ForCausalLM,
        rows: int,
        row_length: int,
        targets: int,
        split_vocab: bool = False,
        temperature: float = 1.0,
        entropy: bool = False,
        learn_entropy: bool = True,
    ):
        super().__init__(model, rows, targets, split_vocab, temperature, entropy, learn_entropy)
        self.row_length, self.targets = row_length, targets
        self.slots = Tensor(np.arange(row_length, dtype=np.int32))
        self.part, self.one_hot, self.take = ops.StridedSlice(), ops.OneHot(), ops.BatchMatMul()
        self.on, self.off = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)

    def construct(self, tokens_BT: Tensor, segment_map_BX: Tensor) -> Tensor:
        """tokens_BT int32, `SegmentMap.concatenated()` → logps_BK fp32; with `entropy` [B, 2·K], entropies last.

        What stands where there is no target has no meaning.
        """
        rows, length = self.rows, self.row_length
        hidden_TH = self.model.hidden(tokens_BT, self.slots, segment_map_BX)
        hidden_BTH = self.reshape(hidden_TH, (rows, length, -1))
        chunks: tuple[tuple[Tensor, ...], ...] = ()
        for first, last in self.chunks:
            begin, end = 3 * length + first, 3 * length + last
            sources_Bc = self.part(segment_map_BX, (0, begin), (rows, end), (1, 1))
            targets_Bc = self.part(segment_map_BX, (0, begin + self.targets), (rows, end + self.targets), (1, 1))
            one_hot_RT = self.one_hot(self.reshape(sources_Bc, (-1,)), length, self.on, self.off)
            one_hot_BcT = self.reshape(self.cast(one_hot_RT, hidden_BTH.dtype), (rows, -1, length))
            chunks = (*chunks, self.scored(self.take(one_hot_BcT, hidden_BTH), targets_Bc))
        return self.concat_chunks(chunks)
