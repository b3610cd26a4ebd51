"""Qwen2.5 as MindSpore Cells. No line here knows of ranks: `parallel/parallelize.py` splits the operators from outside.

Every call says where its tokens stand, in two tensors, `slots` and `row_data`. Their meaning is that of the rows that
the model was made for: `PaddedRows` (geometry.py), `PackedRows` (packing.py), `TokenRows`, `ChunkRows` (kv_cache.py).
Shape letters: B rows, S queries, K keys, T = B·S, H hidden, V vocabulary.
"""

from collections.abc import Callable

from mindspore import Tensor, lazy_inline, nn, ops

from r1parallel.config.model import ModelConfig
from r1parallel.models.fused.operators import PLAIN, Operators
from r1parallel.models.fused.whole_block import weights
from r1parallel.models.layers.attention import Attention
from r1parallel.models.layers.layers import FeedForward


class Block(nn.Cell):
    """x + attention(norm(x)), then x + feed_forward(norm(x)). Its weights are kept as the attention keeps its own.

    The compiler reads and types the first block of a model only and takes the others for copies of it.
    """

    @lazy_inline(attrs=[], policy="front")
    def __init__(self, config: ModelConfig, operators: Operators, attention: Attention):
        super().__init__()
        self.attention_norm = operators.norm(config.hidden_size, config.rms_norm_eps)
        self.attention = attention
        self.ffn_norm = operators.norm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(
            config.hidden_size, config.intermediate_size, attention.wo.transposed, operators.linear
        )
        self.add_attention, self.add_feed_forward = ops.Add(), ops.Add()
        # A block that attends to the tokens of the call alone can be one operator; `parallelize` says whether it is.
        self.is_fused, self.can_fuse = False, operators.whole_block is not None and type(attention) is Attention
        if operators.whole_block is not None and self.can_fuse:
            self.whole = operators.whole_block(config)

    def construct(self, x_TH: Tensor, geometry: tuple[Tensor, ...], slots: Tensor) -> Tensor:
        if self.is_fused:
            cos, sin, _, _, hidden = geometry
            return self.whole(x_TH, cos, sin, hidden, weights(self))[0]
        x_TH = self.add_attention(x_TH, self.attention(self.attention_norm(x_TH), geometry, slots))
        return self.add_feed_forward(x_TH, self.feed_forward(self.ffn_norm(x_TH)))


class Qwen2Model(nn.Cell):
    """Token ids → the last layer's normalised hidden states.

    Args:
        config: sizes of the model.
        num_keys: K, slots that can be attended to.
        operators: what it is made of.
        make_block: called once a layer.
    """

    def __init__(self, config: ModelConfig, num_keys: int, operators: Operators, make_block: Callable[[], Block]):
        super().__init__()
        self.config, self.num_keys, self.make_geometry = config, num_keys, operators.geometry
        self.tok_embeddings = operators.embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.CellList([make_block() for _ in range(config.num_layers)])
        self.norm_out = operators.norm(config.hidden_size, config.rms_norm_eps)
        self.reshape = ops.Reshape()
        self.cut((config.num_layers,))

    def cut(self, counts: tuple[int, ...]) -> None:
        """Make runs of so many consecutive layers. Each has a geometry of its own: between runs only x_TH passes."""
        assert sum(counts) == self.config.num_layers, counts
        self.counts = counts
        self.geometries = nn.CellList([self.make_geometry(self.config, self.num_keys) for _ in counts])

    def construct(self, tokens_BS: Tensor, slots: Tensor, row_data: Tensor) -> Tensor:
        """tokens_BS, slots, row_data, all int32 → hidden_TH."""
        x_TH, first = self.tok_embeddings(self.reshape(tokens_BS, (-1,))), 0
        for run, count in enumerate(self.counts):
            geometry = self.geometries[run](slots, row_data)
            for i in range(first, first + count):
                x_TH = self.layers[i](x_TH, geometry, slots)
            first += count
        return self.norm_out(x_TH)


class Qwen2ForCausalLM(nn.Cell):
    """The model with its head. `hidden` and `logits` are apart because few positions need logits.

    Args:
        config: sizes of the model.
        num_keys: K, slots that can be attended to.
        operators: what it is made of.
        make_attention: a block's attention; None: over the keys of the call itself.
        block: kind of the blocks.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_keys: int,
        operators: Operators = PLAIN,
        make_attention: Callable[[ModelConfig], Attention] | None = None,
        block: type[Block] = Block,
    ):
        super().__init__()
        self.config = config
        make = make_attention or operators.attention
        self.model = Qwen2Model(config, num_keys, operators, lambda: block(config, operators, make(config)))
        self.tied = config.tie_word_embeddings
        self.lm_head = operators.tied_head() if self.tied else operators.head(config.hidden_size, config.vocab_size)

    def hidden(self, tokens_BS: Tensor, slots: Tensor, row_data: Tensor) -> Tensor:
        """Hidden states, [T, H]."""
        return self.model(tokens_BS, slots, row_data)

    def logits(self, hidden_TH: Tensor) -> Tensor:
        """Logits of the given hidden states, [T, V]."""
        if self.tied:
            return self.lm_head(hidden_TH, self.model.tok_embeddings.embedding_weight)
        return self.lm_head(hidden_TH)

    def construct(self, tokens_BS: Tensor, slots: Tensor, row_data: Tensor) -> Tensor:
        """Logits of every position, [T, V]."""
        return self.logits(self.hidden(tokens_BS, slots, row_data))
