"""The two graphs of a rollout. Shape letters as in `models/layers/kv_cache.py`; V vocabulary."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import Primitive
from mindspore.parallel import Layout

from r1parallel.generation.sampling import Sampler
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.layout.mesh import Mesh


def _hand_down_once(program: nn.Cell, name: str) -> None:
    if name != program.compile_phase:
        nn.Cell.compile_phase.fset(program, name)


class Launched(nn.Cell):
    """A program of many launches: MindSpore hands a name down to all Cells before each, which takes milliseconds."""

    compile_phase = property(nn.Cell.compile_phase.fget, _hand_down_once)


class FillCache(Launched):
    """Run chunks of prompts through the model, for the sake of what it writes to the cache."""

    def __init__(self, model: Qwen2ForCausalLM):
        super().__init__(auto_prefix=False)
        self.model, self.done = model, ops.Add()

    def construct(self, tokens_QS: Tensor, slots_QX: Tensor, first_Q: Tensor) -> Tensor:
        """See `prompt_model`. What is returned has no meaning: of the last layer only keys and values are computed."""
        self.model.hidden(tokens_QS, slots_QX, first_Q)
        return self.done(first_Q, 0)


class NextTokens(Launched):
    """Run a token of every row through the model and draw the next one, which is run through in its turn, and so on.

    Args:
        model: see `token_model`.
        sampler: draws.
        count: N, tokens of a launch. More than one only where what is drawn changes nothing in how the next is.
        slots: K.
    """

    def __init__(self, model: Qwen2ForCausalLM, sampler: Sampler, count: int, slots: int):
        super().__init__(auto_prefix=False)
        self.model, self.sampler, self.parts = model, sampler, count
        # A row that is free stays at the last slot, and so does one whose text has come to its end.
        steps = [np.array([[0, i]], np.int32) for i in range(count)]
        self.steps_12 = [Tensor(step) for step in steps]
        self.ends_12 = Tensor(np.array([[np.iinfo(np.int32).max, slots - 1]], np.int32))
        self.go_on, self.at_most, self.later = ops.Add(), ops.Minimum(), ops.Add()
        self.uniform, self.cast, self.join = ops.StridedSlice(), ops.Cast(), ops.Concat(1)

    def construct(
        self,
        tokens_B1: Tensor,
        row_slots_B2: Tensor,
        positions_B: Tensor,
        uniform_BN: Tensor,
        seen_BV: Tensor,
        stop_bias_BV: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See `token_model` and `Sampler`; → tokens int32 [B, N], and two log-probs of each, [B, 2·N]."""
        rows = tokens_B1.shape[0]
        drawn: tuple[Tensor, ...] = ()
        logps: tuple[Tensor, ...] = ()
        for i in range(self.parts):
            here_B2 = self.at_most(self.go_on(row_slots_B2, self.steps_12[i]), self.ends_12)
            hidden_BH = self.model.hidden(tokens_B1, here_B2, self.later(positions_B, i))
            uniform_B1 = self.uniform(uniform_BN, (0, i), (rows, i + 1), (1, 1))
            drawn_B1, logps_B2 = self.sampler(self.model.logits(hidden_BH), uniform_B1, seen_BV, stop_bias_BV)
            tokens_B1 = self.cast(drawn_B1, ms.int32)  # the best of all comes as int64, which a split embedding refuses
            drawn, logps = (*drawn, tokens_B1), (*logps, logps_B2)
        return self.join(drawn), self.join(logps)


def split_cache(tokens: Qwen2ForCausalLM, prompts: Qwen2ForCausalLM, mesh: Mesh) -> None:
    """Split the cache over rows and heads. MindSpore has no rule for what writes to it, so its layouts stand here.

    Numbers of tokens and rows, which these operators are told, are those of a dp rank's own part.
    """
    grid = Layout((mesh.dp, mesh.tp), ("dp", "tp"))
    caches, lines, numbers = grid("dp", "None", "tp", "None"), grid("dp", "tp", "None"), grid("dp")
    for layer in [*tokens.model.layers, *prompts.model.layers]:
        cache = layer.attention.cache
        _lay_out(cache.pick, (lines, numbers), lines)
        _lay_out(cache.look, (caches, numbers), caches)
        _lay_out(cache.write, (caches, grid("dp", "None"), lines), caches)


def _lay_out(operator: Primitive, inputs: tuple[Layout, ...], output: Layout) -> None:
    operator.add_prim_attr("self_define_shard", True)
    operator.shard(inputs, (output,))
