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
    """hidden_RH, targets_R → log softmax(logits)[target], fp32, in chunks of rows.

    Of all the logits the backward pass keeps one fp32 copy, the log-probs; every other [rows, V] array lives for one
    chunk only. The fused log softmax matters: on CPU an operator that broadcasts keeps index tables of 16 bytes for
    every element of its output.
    """

    def __init__(self, model: Qwen2ForCausalLM, rows: int):
        super().__init__(auto_prefix=False)
        self.model = model
        wanted = min(_MAX_CHUNKS, max(1, rows * model.config.vocab_size // _CHUNK_ELEMENTS))
        edges = [rows * i // wanted for i in range(wanted + 1)]
        self.chunks = tuple(pairwise(edges))
        self.hidden_size = model.config.hidden_size
        self.slice_rows, self.slice_targets = ops.StridedSlice(), ops.StridedSlice()
        self.cast = ops.Cast()
        self.log_softmax = ops.LogSoftmax(-1)
        self.pick = ops.GatherD()
        self.reshape, self.join = ops.Reshape(), ops.Concat(0)

    def chunk(self, hidden_RH: Tensor, targets_R: Tensor) -> Tensor:
        """Log-probs of one chunk of rows, [rows]."""
        logits_RV = self.cast(self.model.logits(hidden_RH), ms.float32)
        logps_R1 = self.pick(self.log_softmax(logits_RV), 1, self.reshape(targets_R, (-1, 1)))
        return self.reshape(logps_R1, (-1,))

    def construct(self, hidden_RH: Tensor, targets_R: Tensor) -> Tensor:
        if len(self.chunks) == 1:
            return self.chunk(hidden_RH, targets_R)
        parts: tuple[Tensor, ...] = ()
        for first, last in self.chunks:
            rows_RH = self.slice_rows(hidden_RH, (first, 0), (last, self.hidden_size), (1, 1))
            parts = (*parts, self.chunk(rows_RH, self.slice_targets(targets_R, (first,), (last,), (1,))))
        return self.join(parts)


class CompletionLogps(nn.Cell):
    """tokens [prompt | completion], starts → log-probs of the completion's tokens. Prompts contribute no logits.

    Args:
        model: without a cache, `num_keys` = P + C.
        rows: B.
        prompt_length: P; prompts stand at the right end of these slots.
        completion_length: C; completions stand at the left end of these.
    """

    def __init__(self, model: Qwen2ForCausalLM, rows: int, prompt_length: int, completion_length: int):
        super().__init__(auto_prefix=False)
        self.model = model
        self.token_logps = TokenLogps(model, rows * completion_length)
        self.rows, self.prompt_length, self.completion_length = rows, prompt_length, completion_length
        self.slots = Tensor(np.arange(prompt_length + completion_length, dtype=np.int32))
        self.reshape, self.slice_hidden, self.slice_tokens = (
            ops.Reshape(),
            ops.StridedSlice(),
            ops.StridedSlice(),
        )

    def construct(self, tokens_BS: Tensor, starts_B: Tensor) -> Tensor:
        """tokens_BS int32, starts_B int32 → logps_BC fp32. What stands past a completion's end has no meaning."""
        prompt, completion, size = self.prompt_length, self.completion_length, self.model.config.hidden_size
        hidden_TH = self.model.hidden(tokens_BS, self.slots, starts_B)
        hidden_BSH = self.reshape(hidden_TH, (self.rows, prompt + completion, size))
        # The state at slot i predicts the token at slot i + 1.
        hidden_BCH = self.slice_hidden(
            hidden_BSH, (0, prompt - 1, 0), (self.rows, prompt + completion - 1, size), (1, 1, 1)
        )
        targets_BC = self.slice_tokens(tokens_BS, (0, prompt), (self.rows, prompt + completion), (1, 1))
        logps_R = self.token_logps(self.reshape(hidden_BCH, (-1, size)), self.reshape(targets_BC, (-1,)))
        return self.reshape(logps_R, (self.rows, completion))
