"""The two graphs of a rollout. Shape letters as in `models/cache.py`; V vocabulary."""

from mindspore import Tensor, nn, ops
from mindspore.ops import Primitive
from mindspore.parallel import Layout

from r1parallel.generation.sampling import Sampler
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.mesh import Mesh


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

    def construct(self, tokens_QS: Tensor, places_QX: Tensor, first_Q: Tensor) -> Tensor:
        """See `prompt_model`. What is returned has no meaning: of the last layer only keys and values are computed."""
        self.model.hidden(tokens_QS, places_QX, first_Q)
        return self.done(first_Q, 0)


class NextToken(Launched):
    """Run a token of every row through the model and draw the next one."""

    def __init__(self, model: Qwen2ForCausalLM, sampler: Sampler):
        super().__init__(auto_prefix=False)
        self.model, self.sampler = model, sampler

    def construct(
        self,
        tokens_B1: Tensor,
        spots: Tensor,
        positions_B: Tensor,
        uniform_B1: Tensor,
        seen_BV: Tensor,
        stop_bias_BV: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See `token_model` and `Sampler`."""
        logits_BV = self.model.logits(self.model.hidden(tokens_B1, spots, positions_B))
        return self.sampler(logits_BV, uniform_B1, seen_BV, stop_bias_BV)


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
