"""MindSpore as the judge: its tools read our strategy files and cut as we do; it loads our slices and computes."""

import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from helpers.msrun import run_workers
from helpers.stored import read_all, read_entry
from load_cases import CONFIG, CUTS, batch, logps_program
from safetensors.numpy import save_file

from r1parallel.checkpoint.formats.tensor_file import open_rank
from r1parallel.checkpoint.slice import reshard_checkpoint, slice_checkpoint
from r1parallel.config.model import ModelConfig
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.strategy_files import read_strategy, write_merged_strategy, write_strategy_files
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.layout.tensor_layout import StageLayouts

WORKER = Path(__file__).with_name("load_worker.py")

pytestmark = pytest.mark.usefixtures("mindspore_cpu")

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
    """What MindSpore loads of a rank's only .ckpt file."""
    (file,) = (folder / f"rank_{rank}").glob("*.ckpt")
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


def check_same_ranks(ours, theirs, world_size):
    """MindSpore loads the same from our files as from its own."""
    for rank in range(world_size):
        found, expected = read_rank(ours, rank), read_rank(theirs, rank)
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), (name, rank)
            assert found[name].tobytes() == value.tobytes(), (name, rank)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_mindspore_loads_our_ckpt_slices_and_merges_them(tmp_path, full, name):
    source, values, tied = full
    layout = layout_of(name, tied)
    strategy = str(tmp_path / "merged.ckpt")
    write_merged_strategy(layout, strategy)
    ms.transform_checkpoints(str(source), str(tmp_path / "theirs"), "checkpoint_", None, strategy)
    reshard_checkpoint(source / "rank_0" / "full.ckpt", tmp_path / "ours", None, layout, kind="ckpt")
    check_same_ranks(tmp_path / "ours", tmp_path / "theirs", layout.world_size)
    ms.transform_checkpoints(str(tmp_path / "ours"), str(tmp_path / "back"), "full_", strategy, None)
    reshard_checkpoint(tmp_path / "theirs", tmp_path / "merged", layout, None)  # and we theirs
    for merged in (read_rank(tmp_path / "back", 0), read_all(tmp_path / "merged")):
        assert {n: a.tobytes() for n, a in merged.items()} == {n: a.tobytes() for n, a in values.items()}


@pytest.mark.parametrize("name", ["dp2-opt", "tp2-pp2", "dp2-tp2-pp2-opt-uneven"])
def test_mindspore_cuts_optimizer_state_as_we_do(tmp_path, noisy_values, name):
    """By a strategy that names the state, as MindSpore writes it for a training program; the step is in none."""
    parameters = layout_of(name, tied=False)
    tables = [{p + n: cut for n, cut in table.items() for p in ("", "adam_m.")} for table in parameters.stages]
    layout = StageLayouts(parameters.stage_size, tuple(tables))
    values = noisy_values(parameters.config)
    values |= {f"adam_m.{name}": value.astype(np.float16) for name, value in values.items()}
    values["global_step"] = np.array([7], np.int32)
    (tmp_path / "full" / "rank_0").mkdir(parents=True)
    tensors = [{"name": name, "data": ms.Tensor(value)} for name, value in values.items()]
    ms.save_checkpoint(tensors, str(tmp_path / "full" / "rank_0" / "full.ckpt"))
    write_merged_strategy(layout, tmp_path / "named.ckpt")
    ms.transform_checkpoints(
        str(tmp_path / "full"), str(tmp_path / "theirs"), "checkpoint_", None, str(tmp_path / "named.ckpt")
    )
    for folder, by in (("by-named", layout), ("by-parameters", parameters)):
        reshard_checkpoint(tmp_path / "full", tmp_path / folder, None, by, kind="ckpt")
        check_same_ranks(tmp_path / folder, tmp_path / "theirs", layout.world_size)
    assert "global_step" in read_rank(tmp_path / "theirs", layout.world_size - 1)


@pytest.mark.slow
@pytest.mark.usefixtures("mindspore_cpu")
def test_mindspore_loads_our_slices_and_computes_the_same(tmp_path, noisy_values):
    """Into the program of each rank of a job, by its own functions, compared with one process and the full file."""
    values = noisy_values(CONFIG, seed=6)
    save_file(values, tmp_path / "full.safetensors")
    for name, cut in CUTS.items():
        reshard_checkpoint(tmp_path / "full.safetensors", tmp_path / name, None, cut.layout, kind=cut.kind)
    one = ModelLayout(CONFIG, Mesh())
    reshard_checkpoint(tmp_path / "full.safetensors", tmp_path / "one", None, None, kind="ckpt")
    model, program = logps_program(one, World())
    parameters = ms.load_checkpoint(str(tmp_path / "one" / "model.ckpt"))
    assert ms.load_param_into_net(model, parameters, strict_load=True) == ([], [])
    expected = program(*batch()).asnumpy()
    assert expected.std() > 0.1
    done = run_workers(WORKER, [str(tmp_path), *CUTS], 4, tmp_path / "job", limit_s=400)
    assert done.returncode == 0, done.output[-3000:]
    for name in CUTS:
        for rank in range(4):
            found = np.load(tmp_path / f"{name}-{rank}.npy")
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=f"{name}, {rank}")


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
def test_mindspore_merges_the_rank_files_into_ours(tmp_path, noisy_values, name):
    layout = layout_of(name, tied=True)
    write_strategy_files(layout, tmp_path / "ranks")
    ms.merge_pipeline_strategys(str(tmp_path / "ranks"), str(tmp_path / "theirs.ckpt"))
    assert read_strategy(tmp_path / "theirs.ckpt").stages == layout.stages
    save_file(noisy_values(layout.config), tmp_path / "full.safetensors")
    for strategy in ("theirs.ckpt", "ranks"):
        cut = tmp_path / f"by-{strategy}"
        reshard_checkpoint(tmp_path / "full.safetensors", cut, None, read_strategy(tmp_path / strategy))
    cuts = [{str(f.relative_to(cut)): f.read_bytes() for f in cut.rglob("rank_*/*")} for cut in tmp_path.glob("by-*")]
    assert len(cuts[0]) == 2 * layout.world_size
    assert cuts[0] == cuts[1]


def test_mindspore_can_be_imported_after_our_reader(tmp_path):
    """Both declare the messages of a strategy file; only a new process shows whether they get along."""
    write_merged_strategy(layout_of("tp2", tied=False), tmp_path / "s.ckpt")
    code = f"""
import r1parallel.parallel.layout.strategy_files
import mindspore as ms
table = ms.build_searched_strategy({str(tmp_path / "s.ckpt")!r})
print("columns:", list(table["0-model.layers.0.attention.wo.weight"].tensor_map[0].dim))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=150, start_new_session=True
    )
    assert "columns: [-1, 0]" in result.stdout, result.stdout[-2000:] + result.stderr[-4000:]
