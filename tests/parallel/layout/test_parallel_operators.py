"""The operator half of the layout table: complete, all ones on one rank, and derived from the weights."""

from dataclasses import replace

import pytest
from mindspore import nn
from mindspore.ops import Primitive

from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import RecomputeConfig, RLConfig, SamplingConfig
from r1parallel.generation.programs import FillCache, NextTokens
from r1parallel.generation.sampling import Sampler
from r1parallel.models import logps as logps_module
from r1parallel.models.decoding.model import prompt_model, token_model
from r1parallel.models.fused.operators import FUSED, PLAIN, choose_operators
from r1parallel.models.fused.packing import packed
from r1parallel.models.logps import CompletionLogps, PackedLogps
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.operators import UNSPLIT, strategies
from r1parallel.parallel.parallelize import parallelize
from r1parallel.rl.objective.losses import PolicyLoss
from r1parallel.training.gradients import Placed
from r1parallel.training.sft import SFTLoss

SIZES = ModelConfig(64, 32, 64, 2, 4, 2, tie_word_embeddings=False)
DEEP = replace(SIZES, num_layers=4)
LOSS_CELLS = ("SFTLoss", "PolicyLoss", "SequenceRatio", "KL")
# Entries that a program gives itself: MindSpore has no rule for them.
LAID_OUT_BY_HAND = {("KVCache", "write"), ("KVCache", "pick"), ("KVCache", "look")}
BF16 = {trained: choose_operators("bfloat16", trained) for trained in (False, True)}


def operators(program):
    """(cell, attribute, operator) of every operator that the program's Cells hold."""
    for _, cell in program.cells_and_names():
        for name, value in vars(cell).items():
            if isinstance(value, Primitive):
                yield cell, name, value
        for name in vars(cell)["_primitives"]:
            if isinstance(getattr(cell, name), Primitive):
                yield cell, name, getattr(cell, name)


def sft_loss(config, split_vocab, operators=PLAIN):
    return Placed(SFTLoss(CompletionLogps(Qwen2ForCausalLM(config, 8, operators), 2, 4, 4, split_vocab)))


def grpo_loss(config, split_vocab):
    """Every operator that any setting uses is held by every loss."""
    logps = CompletionLogps(Qwen2ForCausalLM(config, 8), 2, 4, 4, split_vocab, 0.9, entropy=True)
    return Placed(PolicyLoss(logps, RLConfig(entropy_coef=0.1), on_policy=False))


def packed_loss(config, split_vocab, operators=PLAIN):
    logps = PackedLogps(Qwen2ForCausalLM(config, 12, packed(operators)), 2, 12, 6, split_vocab)
    return Placed(PolicyLoss(logps, RLConfig(), on_policy=False))


def token_generator(config, split_vocab, operators=PLAIN):
    sampler = Sampler(SamplingConfig(top_k=3, top_p=0.9, min_tokens=2, repetition_penalty=1.1), config.vocab_size)
    return NextTokens(token_model(config, 2, 8, operators, split=True), sampler, 2, 8)


def prompt_generator(config, split_vocab, operators=PLAIN):
    return FillCache(prompt_model(token_model(config, 2, 8, operators, split=True), 4, operators))


PROGRAMS = {make.__name__: make for make in (sft_loss, grpo_loss, packed_loss, token_generator, prompt_generator)}


def of(make, operators):
    """The same program made of other operators, with heads that Ascend's take."""
    return lambda config, split_vocab: make(replace(config, hidden_size=64), split_vocab, operators)


FUSED_PROGRAMS = {
    f"{kind}-{make.__name__}": of(make, operators)
    for kind, trained, frozen in (("cpu", FUSED, FUSED), ("bf16", BF16[True], BF16[False]))
    for make, operators in (
        (sft_loss, trained),
        (packed_loss, trained),
        (token_generator, frozen),
        (prompt_generator, frozen),
    )
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("split_vocab", [False, True])
@pytest.mark.parametrize("name", [*PROGRAMS, *FUSED_PROGRAMS])
def test_every_operator_of_a_program_has_a_strategy(name, tied, split_vocab):
    program = (PROGRAMS | FUSED_PROGRAMS)[name](replace(SIZES, tie_word_embeddings=tied), split_vocab)
    found = list(operators(program))
    assert len(found) > 70
    wanted = {(type(cell).__name__, name) for cell, name, op in found if op.name not in UNSPLIT}
    given = {(type(cell).__name__, name) for cell, _, _ in found for name in strategies(cell)}
    assert wanted - given - LAID_OUT_BY_HAND == set()
    # And none for an operator that is not there: `add` is a bias, which some projections have.
    assert given - {(type(cell).__name__, name) for cell, name, _ in found} == set()


@pytest.mark.parametrize("name", [*PROGRAMS, *FUSED_PROGRAMS])
def test_one_rank_splits_nothing(name):
    program = (PROGRAMS | FUSED_PROGRAMS)[name](SIZES, False)
    parallelize(program, Mesh(dp=1, pp=1, tp=1), (2,))
    seen = [op.in_strategy for _, _, op in operators(program) if op.attrs.get("in_strategy") is not None]
    assert len(seen) > 50
    assert {parts for strategy in seen for operand in strategy for parts in operand} == {1}


def test_projections_are_split_as_their_weights_are():
    model = Qwen2ForCausalLM(SIZES, 8)
    parallelize(model, Mesh(dp=2, pp=1, tp=4), (2,))
    block = model.model.layers[0]
    assert block.attention.wq.matmul.in_strategy == ((2, 1), (4, 1))
    assert block.attention.wq.add.in_strategy == ((2, 4), (4,))
    assert block.attention.wo.matmul.in_strategy == ((2, 4), (1, 4))
    assert block.feed_forward.w2.matmul.in_strategy == ((2, 4), (1, 4))
    assert block.attention.core.scores.in_strategy == ((2, 4, 1, 1), (2, 4, 1, 1))
    assert model.lm_head.matmul.in_strategy == ((2, 1), (4, 1))
    assert model.model.tok_embeddings.gather.in_strategy == ((4, 1), (2,))


def test_transposed_weights_turn_their_strategy():
    model = token_model(SIZES, 2, 8)
    parallelize(model, Mesh(dp=1, pp=1, tp=2), (2,))
    block = model.model.layers[0]
    assert block.attention.wq.matmul.in_strategy == ((1, 1), (1, 2))
    assert block.attention.wo.matmul.in_strategy == ((1, 2), (2, 1))
    assert model.lm_head.matmul.in_strategy == ((1, 1), (2, 1))


def test_every_part_of_the_log_probs_has_a_strategy(monkeypatch):
    monkeypatch.setattr(logps_module, "_CHUNK_ELEMENTS", 1)
    program = sft_loss(SIZES, False)
    parallelize(program, Mesh(dp=2, pp=1, tp=2), (2,))
    logps = program.loss.logps
    assert len(logps.chunks) == 4
    assert logps.join.in_strategy == ((2, 1),) * 4


def test_losses_are_whole_on_every_rank():
    """Else the ranks of the last stage would not all hold what the loss says of each row."""
    for make in (sft_loss, grpo_loss, packed_loss):
        program = make(SIZES, True)
        parallelize(program, Mesh(dp=2, pp=1, tp=2), (2,))
        inner = [cell for _, cell in program.loss.cells_and_names() if type(cell).__name__ in LOSS_CELLS]
        for cell in (program, *inner):
            for name in strategies(cell):
                strategy = getattr(cell, name).in_strategy
                assert {parts for operand in strategy for parts in operand} == {1}, (type(cell).__name__, name)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_sequence_parallel_splits_the_rows_between_the_blocks(sequence_parallel):
    model = Qwen2ForCausalLM(SIZES, 8)
    parallelize(model, Mesh(dp=2, pp=1, tp=2), (2,), sequence_parallel)
    rows = 4 if sequence_parallel else 2
    for block in model.model.layers:
        assert block.add_attention.in_strategy == ((rows, 1), (rows, 1))
        assert block.add_feed_forward.in_strategy == ((rows, 1), (rows, 1))
        assert block.attention_norm.normalize.in_strategy == ((rows, 1), (rows, 1))
        assert block.feed_forward.gate.in_strategy == ((2, 2), (2, 2))
        for row_parallel in (block.attention.wo, block.feed_forward.w2):
            assert row_parallel.matmul.attrs.get("out_strategy") == (((rows, 1),) if sequence_parallel else None)


def stages_of(cells):
    return [cell.pipeline_stage for cell in cells]


@pytest.mark.parametrize("stages", [(2, 2), (3, 1), (1, 1, 2)])
def test_every_layer_gets_its_stage(stages):
    program = sft_loss(DEEP, False)
    parallelize(program, Mesh(pp=len(stages)), stages)
    causal, last = program.loss.logps.model, len(stages) - 1
    expected = [stage for stage, count in enumerate(stages) for _ in range(count)]
    assert stages_of(causal.model.layers) == expected
    assert causal.model.counts == stages
    assert stages_of(causal.model.geometries) == list(range(len(stages)))
    assert causal.model.tok_embeddings.pipeline_stage == 0
    assert causal.model.norm_out.pipeline_stage == causal.lm_head.pipeline_stage == last


def test_without_a_pipeline_no_stage_is_set():
    program = sft_loss(DEEP, False)
    parallelize(program, Mesh(dp=2), (4,))
    assert not any("pipeline_stage" in vars(cell) for _, cell in program.cells_and_names())
    assert program.loss.logps.model.model.counts == (4,)


@pytest.mark.parametrize(("tied", "pp", "whole"), [(True, 2, True), (False, 2, False), (True, 1, False)])
def test_an_embedding_that_is_sent_to_another_stage_stays_whole(tied, pp, whole):
    """MindSpore cannot split the optimizer's state of what it sends; `layout.py` has the same rule."""
    model = Qwen2ForCausalLM(replace(DEEP, tie_word_embeddings=tied), 8)
    parallelize(model, Mesh(dp=2, pp=pp), (2, 2) if pp == 2 else (4,))
    not_split = {p.name for p in model.get_parameters() if not p.parallel_optimizer}
    assert not_split == ({"model.tok_embeddings.embedding_weight"} if whole else set())


def recomputed_blocks(model):
    return [i for i, block in enumerate(model.model.layers) if "output_recompute" in block.get_flags()]


def recomputed_operators(model):
    """Layer → attributes of its operators that are marked one by one."""
    marked = {}
    for i, block in enumerate(model.model.layers):
        for _, name, op in operators(block):
            if op.attrs.get("recompute"):
                marked.setdefault(i, set()).add(name)
    return marked


@pytest.mark.parametrize("layers", [[], [0, 2]])
def test_whole_blocks_are_recomputed(layers):
    model = Qwen2ForCausalLM(DEEP, 8)
    parallelize(model, Mesh(), (4,), recompute=RecomputeConfig(recompute=True, recompute_layers=layers))
    assert recomputed_blocks(model) == (layers or [0, 1, 2, 3])
    assert recomputed_operators(model) == {}
    others = [cell for _, cell in model.cells_and_names() if cell not in (*model.model.layers,)]
    assert not any("output_recompute" in cell.get_flags() for cell in others)


@pytest.mark.parametrize("layers", [[], [0, 2]])
def test_selected_operators_are_recomputed(layers):
    model = Qwen2ForCausalLM(DEEP, 8)
    parallelize(model, Mesh(), (4,), recompute=RecomputeConfig(select_recompute=True, recompute_layers=layers))
    assert recomputed_blocks(model) == []
    selected = {"scale", "scores", "add_mask", "softmax", "silu", "gate"}
    assert recomputed_operators(model) == {i: selected for i in layers or range(4)}
    for i in layers or range(4):  # RMSNorm has a `scale` too
        norm = model.model.layers[i].attention_norm
        assert not norm.scale.attrs.get("recompute")


def test_without_the_switch_nothing_is_recomputed():
    for recompute in (None, RecomputeConfig(), RecomputeConfig(recompute_layers=[1])):
        model = Qwen2ForCausalLM(DEEP, 8)
        parallelize(model, Mesh(), (4,), recompute=recompute)
        assert recomputed_blocks(model) == []
        assert recomputed_operators(model) == {}


def test_names_of_cells_tell_their_strategies_apart():
    """An entry is found by a Cell's class name, so no other Cell of a program may have that name."""
    kinds = {}
    for make in (PROGRAMS | FUSED_PROGRAMS).values():
        for split_vocab in (False, True):
            for _, cell in make(SIZES, split_vocab).cells_and_names():
                if not isinstance(cell, nn.CellList):
                    kinds.setdefault(type(cell).__name__, set()).add(type(cell))
    assert all(len(same) == 1 for same in kinds.values())
