"""Log-probabilities of completions, the one place where a loss or a KL term gets them from.

Shape letters: B rows, P prompt slots, C completion slots, R = B·C, H hidden, V vocabulary.
"""

from itertools import pairwise

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from r1parallel.models.qwen2_5 import Qwen2ForCausalLM

_CHUNK_ELEMENTS = 1 << 22  # logits that one chunk may hold
_MAX_CHUNKS = 8  # more of them make the graph longer and save little


class TokenLogps(nn.Cell):
    """logits_RV, targets_R → log softmax(logits)[target], fp32 [R].

    The fused log softmax matters on CPU: an operator that broadcasts keeps index tables of 16 bytes for every element
    of its output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_softmax = ops.LogSoftmax(-1)
        self.pick = ops.GatherD()
        self.reshape = ops.Reshape()

    def construct(self, logits_RV: Tensor, targets_R: Tensor) -> Tensor:
        logps_R1 = self.pick(self.log_softmax(logits_RV), 1, self.reshape(targets_R, (-1, 1)))
        return self.reshape(logps_R1, (-1,))


class SplitVocabularyLogps(nn.Cell):
    """The same from logits whose vocabulary lies on several ranks: only sums and maxima over V leave a rank.

    logp = (z_target − max) − log Σ exp(z − max), as in Megatron-LM's vocabulary-parallel cross entropy (Shoeybi et al.
    2019, section 3). The target is found by a product with its one-hot row, which every rank makes for its own part.
    """

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = vocab_size
        self.max, self.tile, self.shift = ops.ReduceMax(keep_dims=True), ops.Tile(), ops.Sub()
        self.exp, self.total, self.log = ops.Exp(), ops.ReduceSum(), ops.Log()
        self.one_hot, self.pick, self.picked = ops.OneHot(), ops.Mul(), ops.ReduceSum()
        self.subtract = ops.Sub()
        self.on, self.off = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)

    def construct(self, logits_RV: Tensor, targets_R: Tensor) -> Tensor:
        max_RV = self.tile(self.max(ops.stop_gradient(logits_RV), -1), (1, self.vocab_size))
        shifted_RV = self.shift(logits_RV, max_RV)
        target_RV = self.one_hot(targets_R, self.vocab_size, self.on, self.off)
        target_R = self.picked(self.pick(shifted_RV, target_RV), -1)
        return self.subtract(target_R, self.log(self.total(self.exp(shifted_RV), -1)))


class CompletionLogps(nn.Cell):
    """tokens [prompt | completion], starts → log-probs of the completion's tokens. Prompts contribute no logits.

    Logits are made for some of the C slots of every row at a time. Of all of them the backward pass keeps one fp32
    copy, the log-probs; every other [rows, V] array lives for one such chunk only.

    Args:
        model: without a cache, `num_keys` = P + C.
        rows: B.
        prompt_length: P; prompts stand at the right end of these slots.
        completion_length: C; completions stand at the left end of these.
        split_vocab: the head's vocabulary lies on several ranks.
    """

    def __init__(
        self,
        model: Qwen2ForCausalLM,
        rows: int,
        prompt_length: int,
        completion_length: int,
        split_vocab: bool = False,
    ):
        super().__init__(auto_prefix=False)
        self.model = model
        vocab_size = model.config.vocab_size
        self.token_logps = SplitVocabularyLogps(vocab_size) if split_vocab else TokenLogps()
        wanted = max(1, rows * completion_length * vocab_size // _CHUNK_ELEMENTS)
        wanted = min(_MAX_CHUNKS, completion_length, wanted)
        self.chunks = tuple(pairwise(completion_length * i // wanted for i in range(wanted + 1)))
        self.rows, self.prompt_length = rows, prompt_length
        self.slots = Tensor(np.arange(prompt_length + completion_length, dtype=np.int32))
        self.reshape, self.cast, self.join = ops.Reshape(), ops.Cast(), ops.Concat(1)
        self.slice_hidden, self.slice_tokens = ops.StridedSlice(), ops.StridedSlice()

    def construct(self, tokens_BS: Tensor, starts_B: Tensor) -> Tensor:
        """tokens_BS int32, starts_B int32 → logps_BC fp32. What stands past a completion's end has no meaning."""
        rows, size = self.rows, self.model.config.hidden_size
        hidden_TH = self.model.hidden(tokens_BS, self.slots, starts_B)
        hidden_BSH = self.reshape(hidden_TH, (rows, -1, size))
        parts: tuple[Tensor, ...] = ()
        for first, last in self.chunks:
            # The state at slot i predicts the token at slot i + 1.
            begin, end = self.prompt_length + first, self.prompt_length + last
            hidden_BcH = self.slice_hidden(hidden_BSH, (0, begin - 1, 0), (rows, end - 1, size), (1, 1, 1))
            targets_Bc = self.slice_tokens(tokens_BS, (0, begin), (rows, end), (1, 1))
            logits_RV = self.cast(self.model.logits(self.reshape(hidden_BcH, (-1, size))), ms.float32)
            logps_R = self.token_logps(logits_RV, self.reshape(targets_Bc, (-1,)))
            parts = (*parts, self.reshape(logps_R, (rows, last - first)))
        return parts[0] if len(parts) == 1 else self.join(parts)
