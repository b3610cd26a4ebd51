"""MindSpore's own tools on our strategy files: they read them, and cut and merge checkpoints as we do."""

import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from safetensors.numpy import save_file
from stored import read_entry

from r1parallel.checkpoint.slice import slice_checkpoint
from r1parallel.checkpoint.tensor_file import open_rank
from r1parallel.config.model import ModelConfig
from r1parallel.parallel.layout import ModelLayout
from r1parallel.parallel.mesh import Mesh
from r1parallel.parallel.strategy import read_strategy, write_merged_strategy, write_strategy_files

# mesh, optimizer parallel, layers of each stage
LAYOUTS = {
    "dp2": (Mesh(dp=2), False, None),
    "tp2": (Mesh(tp=2), False, None),
    "pp3": (Mesh(pp=3), False, None),
    "pp2-uneven": (Mesh(pp=2), False, (1, 2)),
    "dp2-opt": (Mesh(dp=2), True, None),
    "dp2-tp2-opt": (Mesh(dp=2, tp=2), True, None),
    "dp3-tp2-opt": (Mesh(dp=3, tp=2), True, None),  # some tensors cannot be cut 3 or 6 ways
    "tp2-pp2": (Mesh(tp=2, pp=2), False, None),
    "dp2-pp2-opt": (Mesh(dp=2, pp=2), True, None),
    "dp2-tp2-pp2-opt-uneven": (Mesh(dp=2, tp=2, pp=2), True, (2, 1)),
}


def layout_of(name: str, tied: bool) -> ModelLayout:
    config = ModelConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=12,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        tie_word_embeddings=tied,
    )
    mesh, opt_shard, stage_layers = LAYOUTS[name]
    return ModelLayout(config, mesh, opt_shard, stage_layers)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def full(request, tmp_path_factory, noisy_values):
    """A full checkpoint: .ckpt in rank_0 for MindSpore, whose safetensors are cut wrongly; model.safetensors for us."""
    values = noisy_values(layout_of("dp2", request.param).config)
    folder = tmp_path_factory.mktemp("full")
    (folder / "rank_0").mkdir()
    tensors = [{"name": name, "data": ms.Tensor(value)} for name, value in values.items()]
    ms.save_checkpoint(tensors, str(folder / "rank_0" / "full.ckpt"))
    save_file(values, folder / "model.safetensors")
    return folder, values, request.param


def read_rank(folder, rank):
    (file,) = (folder / f"rank_{rank}").iterdir()
    return {name: parameter.asnumpy() for name, parameter in ms.load_checkpoint(str(file)).items()}


def check_cut(folder, layout, values):
    """Every rank's file holds the slices of its layout and nothing else."""
    for rank in range(layout.world_size):
        cut = read_rank(folder, rank)
        assert set(cut) == set(layout.stages[rank // layout.stage_size])
        for name, value in cut.items():
            np.testing.assert_array_equal(value, values[name][layout.slices(name, rank)], err_msg=f"{name}, {rank}")


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_mindspore_cuts_and_merges_as_we_do(tmp_path, full, name):
    source, values, tied = full
    layout = layout_of(name, tied)
    strategy = tmp_path / "merged.ckpt"
    write_merged_strategy(layout, strategy)
    ms.transform_checkpoints(str(source), str(tmp_path / "cut"), "checkpoint_", None, str(strategy))
    check_cut(tmp_path / "cut", layout, values)
    slice_checkpoint(source / "model.safetensors", tmp_path / "ours", read_strategy(strategy))
    for rank in range(layout.world_size):
        ours, theirs = open_rank(tmp_path / "ours" / f"rank_{rank}"), read_rank(tmp_path / "cut", rank)
        assert set(ours) == set(theirs)
        for parameter, value in theirs.items():
            np.testing.assert_array_equal(read_entry(ours[parameter]), value)
    ms.transform_checkpoints(str(tmp_path / "cut"), str(tmp_path / "back"), "full_", str(strategy), None)
    merged = read_rank(tmp_path / "back", 0)
    assert set(merged) == set(values)
    for parameter, value in merged.items():
        np.testing.assert_array_equal(value, values[parameter])


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("tp2", "dp2-tp2-opt"),
        ("tp2-pp2", "dp2-opt"),
        ("dp2-tp2-opt", "pp2-uneven"),
        ("pp3", "dp2-tp2-pp2-opt-uneven"),
        ("dp2-tp2-pp2-opt-uneven", "tp2"),
    ],
)
def test_mindspore_goes_from_one_cut_to_another(tmp_path, full, start, end):
    source, values, tied = full
    files = {}
    for name in (start, end):
        files[name] = str(tmp_path / f"{name}.ckpt")
        write_merged_strategy(layout_of(name, tied), files[name])
    ms.transform_checkpoints(str(source), str(tmp_path / "a"), "a_", None, files[start])
    ms.transform_checkpoints(str(tmp_path / "a"), str(tmp_path / "b"), "b_", files[start], files[end])
    check_cut(tmp_path / "b", layout_of(end, tied), values)


@pytest.mark.parametrize("name", ["tp2", "dp2-tp2-pp2-opt-uneven", "pp3"])
def test_mindspore_merges_the_rank_files_into_ours(tmp_path, name):
    layout = layout_of(name, tied=True)
    write_strategy_files(layout, tmp_path / "ranks")
    ms.merge_pipeline_strategys(str(tmp_path / "ranks"), str(tmp_path / "theirs.ckpt"))
    assert read_strategy(tmp_path / "theirs.ckpt").stages == layout.stages


def test_mindspore_can_be_imported_after_our_reader(tmp_path):
    """Both declare the messages of a strategy file; only a new process shows whether they get along."""
    write_merged_strategy(layout_of("tp2", tied=False), tmp_path / "s.ckpt")
    code = f"""
import r1parallel.parallel.strategy
import mindspore as ms
table = ms.build_searched_strategy({str(tmp_path / "s.ckpt")!r})
print("columns:", list(table["0-model.layers.0.attention.wo.weight"].tensor_map[0].dim))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=150, start_new_session=True
    )
    assert "columns: [-1, 0]" in result.stdout, result.stdout[-2000:] + result.stderr[-4000:]
