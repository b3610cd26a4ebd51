import pytest

from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError
from r1parallel.parallel.layout.describe import describe_rank, first_ranks, parse_ranks
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout

CONFIG = ModelConfig(16, 8, 12, 3, 4, 2, tie_word_embeddings=True)


def test_what_lies_on_a_rank():
    layout = ModelLayout(CONFIG, Mesh(dp=2, pp=2, tp=2), stage_layers=(1, 2))
    lines = [" ".join(line.split()) for line in describe_rank(layout, 5).splitlines()]
    assert lines[0] == "rank 5 of 8: data-parallel copy 0, pipeline stage 1, tensor-parallel part 1"
    assert [line.split()[0] for line in lines[1:3]] == ["parameter", "model.layers.1-2.attention.wq.weight"]
    assert "model.layers.1-2.attention.wq.weight 8 x 8 [4:8, :] 4 x 8" in lines
    assert "model.layers.1-2.attention.wo.weight 8 x 8 [:, 4:8] 8 x 4" in lines
    assert "model.layers.1-2.attention.wk.bias 4 [2:4] 2" in lines
    assert "model.norm_out.weight 8 [:] 8" in lines
    assert len(lines) == 1 + 1 + 12 + 1 + 1  # title, head, one block, last norm, sum
    held = 2 * (2 * 32 + 2 * 16 + 4 + 2 + 2 + 3 * 48 + 16) + 8
    assert lines[-1] == f"{held:,} numbers, {held * 2 / 2**30:.3g} GiB in bf16"


def test_a_single_layer_keeps_its_name():
    layout = ModelLayout(CONFIG, Mesh(pp=2), stage_layers=(1, 2))
    text = describe_rank(layout, 0)
    assert "model.layers.0.ffn_norm.weight" in text
    assert "norm_out" not in text


def test_ranks_are_numbers_of_the_run():
    assert parse_ranks("5, 0,5", 8) == [5, 0]
    for text in ("8", "a", "-1", "", "1,,2"):
        with pytest.raises(UserError, match="give numbers from 0 to 7"):
            parse_ranks(text, 8)


def test_first_rank_of_each_stage():
    assert first_ranks(ModelLayout(CONFIG, Mesh(dp=2, pp=3, tp=2))) == [0, 4, 8]
