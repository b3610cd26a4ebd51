import os

import pytest

from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.strategy_files import read_strategy, write_merged_strategy, write_strategy_files
from r1parallel.parallel.layout.strategy_proto import ParallelStrategyMap
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.layout.tensor_layout import StageLayouts, TensorLayout

CONFIG = ModelConfig(vocab_size=16, hidden_size=8, intermediate_size=12, num_layers=3, num_heads=4, num_kv_heads=2)


def same(one: StageLayouts, other: StageLayouts) -> bool:
    return one.stage_size == other.stage_size and one.stages == other.stages


@pytest.mark.parametrize("opt_shard", [False, True])
@pytest.mark.parametrize("mesh", [Mesh(), Mesh(tp=2), Mesh(dp=2, pp=3, tp=2), Mesh(dp=4)])
def test_files_say_what_the_layout_says(tmp_path, mesh, opt_shard):
    layout = ModelLayout(CONFIG, mesh, opt_shard)
    files = write_strategy_files(layout, tmp_path / "s")
    assert [file.name for file in files] == [f"strategy_{rank}.ckpt" for rank in range(mesh.world_size)]
    assert same(read_strategy(tmp_path / "s"), layout)
    write_merged_strategy(layout, tmp_path / "m" / "merged.ckpt")
    assert same(read_strategy(tmp_path / "m" / "merged.ckpt"), layout)
    if mesh.pp == 1:
        assert same(read_strategy(files[-1]), layout)


def test_merged_names_carry_the_stage(tmp_path):
    write_merged_strategy(ModelLayout(CONFIG, Mesh(pp=2, tp=2)), tmp_path / "merged.ckpt")
    message = ParallelStrategyMap.FromString((tmp_path / "merged.ckpt").read_bytes())
    names = [item.param_name for item in message.parallel_layout_item]
    assert names[0] == "0-model.tok_embeddings.embedding_weight"
    assert names[-1] == "1-lm_head.weight"
    assert [item.parallel_strategys.stage for item in message.parallel_strategy_item] == [0, 1]


def test_a_smaller_world_removes_what_the_larger_one_left(tmp_path):
    write_strategy_files(ModelLayout(CONFIG, Mesh(dp=4)), tmp_path)
    write_strategy_files(ModelLayout(CONFIG, Mesh(tp=2)), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["strategy_0.ckpt", "strategy_1.ckpt"]


def damaged(folder, change):
    """One rank file whose message was changed."""
    (file,) = write_strategy_files(StageLayouts(1, ({"a": TensorLayout((1,), (-1,))},)), folder)
    message = ParallelStrategyMap.FromString(file.read_bytes())
    change(message)
    file.write_bytes(message.SerializeToString())
    return file


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such strategy file"):
        read_strategy(tmp_path / "missing.ckpt")
    with pytest.raises(UserError, match=r"no strategy_<rank>.ckpt"):
        read_strategy(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no strategy_<rank>.ckpt"):
        read_strategy(tmp_path / "empty")
    (tmp_path / "noise.ckpt").write_bytes(b"\xff\xff\xff")
    with pytest.raises(UserError, match="damaged"):
        read_strategy(tmp_path / "noise.ckpt")
    file = damaged(tmp_path, lambda message: message.ClearField("parallel_strategy_item"))
    with pytest.raises(UserError, match="holds no layouts"):
        read_strategy(file)
    file = damaged(tmp_path, lambda m: m.parallel_layout_item[0].parallel_layouts.tensor_map.add(dim=[0]))
    with pytest.raises(UserError, match="several axes"):
        read_strategy(file)
    file = damaged(tmp_path, lambda m: m.parallel_layout_item[0].parallel_layouts.tensor_map[0].dim.append(1))
    with pytest.raises(UserError, match="tensor_map"):
        read_strategy(file)


def test_incomplete_sets_are_refused(tmp_path):
    layout = ModelLayout(CONFIG, Mesh(pp=3, tp=2))
    files = write_strategy_files(layout, tmp_path)
    with pytest.raises(UserError, match=r"stages \[1\] only"):
        read_strategy(files[2])
    files[5].unlink()
    with pytest.raises(UserError, match="describes 6 ranks"):
        read_strategy(tmp_path)
    write_strategy_files(ModelLayout(CONFIG, Mesh(pp=3, dp=2)), tmp_path / "other")
    os.replace(tmp_path / "other" / "strategy_1.ckpt", tmp_path / "strategy_1.ckpt")
    with pytest.raises(UserError, match="differs from another file of stage 0"):
        read_strategy(tmp_path)
    write_strategy_files(layout, tmp_path)
    uneven = StageLayouts(1, ({"a": TensorLayout((1,), (-1,))}, {"b": TensorLayout((2,), (-1,))}))
    write_strategy_files(uneven, tmp_path / "uneven")
    with pytest.raises(UserError, match="unequal numbers of devices"):
        read_strategy(tmp_path / "uneven")
