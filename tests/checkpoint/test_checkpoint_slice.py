import errno

import numpy as np
import pytest
from helpers.stored import read_entry

from r1parallel.checkpoint.formats.manifest import manifest_path
from r1parallel.checkpoint.formats.tensor_file import open_checkpoint
from r1parallel.checkpoint.reading.source import STRATEGY_FILE
from r1parallel.checkpoint.slice import merge_checkpoint, reshard_checkpoint, slice_checkpoint
from r1parallel.checkpoint.writing.tensor_writer import write_tensor_file
from r1parallel.errors import UserError
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.strategy_files import write_strategy_files
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.layout.tensor_layout import StageLayouts, TensorLayout

EMBEDDING = "model.tok_embeddings.embedding_weight"


def values(folder):
    return {name: read_entry(entry) for name, entry in open_checkpoint(folder).items()}


def same(one, other):
    return set(one) == set(other) and all(one[name].tobytes() == other[name].tobytes() for name in one)


def rank_file(folder, rank):
    return folder / f"rank_{rank}" / f"checkpoint_{rank}.safetensors"


MESHES = [(Mesh(), False), (Mesh(tp=2), False), (Mesh(dp=2, pp=2, tp=2), True), (Mesh(dp=2, pp=2), False)]


@pytest.mark.parametrize(("mesh", "opt_shard"), MESHES)
def test_cut_and_merge(tmp_path, make_folder, tied_config, mesh, opt_shard):
    source = make_folder("full", tied_config, hf=False, dtype="BF16")
    full = values(source)
    layout = ModelLayout(tied_config, mesh, opt_shard)
    slice_checkpoint(source, tmp_path / "cut", layout)
    for rank in range(mesh.world_size):
        part = values(rank_file(tmp_path / "cut", rank))
        expected = {name: full[name][layout.slices(name, rank)] for name in layout.stages[rank // mesh.stage_size]}
        assert same(part, expected)
    assert (tmp_path / "cut" / "config.json").exists()
    merge_checkpoint(tmp_path / "cut", tmp_path / "merged", layout)
    assert same(values(tmp_path / "merged"), full)
    assert (tmp_path / "merged" / "tokenizer.json").exists()


@pytest.mark.parametrize(("src", "src_opt"), MESHES)
@pytest.mark.parametrize(("dst", "dst_opt"), MESHES)
def test_from_any_cut_to_any_other(tmp_path, make_folder, config, src, src_opt, dst, dst_opt):
    source = make_folder("full", config, hf=False)
    one, other = ModelLayout(config, src, src_opt), ModelLayout(config, dst, dst_opt)
    slice_checkpoint(source, tmp_path / "one", one)
    reshard_checkpoint(tmp_path / "one", tmp_path / "other", one, other)
    slice_checkpoint(source, tmp_path / "direct", other)
    for rank in range(dst.world_size):
        assert rank_file(tmp_path / "other", rank).read_bytes() == rank_file(
            tmp_path / "direct", rank
        ).read_bytes() or same(
            values(rank_file(tmp_path / "other", rank)), values(rank_file(tmp_path / "direct", rank))
        )


def rewrite(file, change):
    tensors = values(file)
    change(tensors)
    names = {"float32": "F32", "float16": "F16"}
    file.unlink()
    manifest_path(file).unlink()
    write_tensor_file(file, [(n, a.shape, names[a.dtype.name], a) for n, a in tensors.items()])


def double(tensors):
    tensors[EMBEDDING] = tensors[EMBEDDING] * 2


@pytest.mark.parametrize(
    ("mesh", "rank", "change", "message"),
    [
        (Mesh(dp=2), 1, double, "embedding_weight differs from its copy in .*rank_0"),
        (Mesh(tp=2), 1, lambda t: t.pop(EMBEDDING), "embedding_weight is missing"),
        (Mesh(tp=2), 1, lambda t: t.update(more=np.ones(2, np.float32)), "more is not in the strategy for this rank"),
        (Mesh(tp=2), 1, lambda t: t.update({EMBEDDING: t[EMBEDDING][1:]}), "does not fit rank 0"),
        (Mesh(tp=2), 1, lambda t: t.update({EMBEDDING: t[EMBEDDING].astype(np.float16)}), "does not fit rank 0"),
    ],
)
def test_ranks_that_disagree_are_refused(tmp_path, make_folder, tied_config, mesh, rank, change, message):
    layout = ModelLayout(tied_config, mesh)
    slice_checkpoint(make_folder("full", tied_config, hf=False), tmp_path / "cut", layout)
    rewrite(rank_file(tmp_path / "cut", rank), change)
    with pytest.raises(UserError, match=message):
        merge_checkpoint(tmp_path / "cut", tmp_path / "merged", layout)
    assert not (tmp_path / "merged").exists()


def test_wrong_strategies_are_refused(tmp_path, make_folder, config, tied_config):
    full = make_folder("full", config, hf=False)
    with pytest.raises(UserError, match=r"lm_head.weight is in no stage"):
        slice_checkpoint(full, tmp_path / "x", ModelLayout(tied_config, Mesh(tp=2)))
    with pytest.raises(UserError, match=r"embed_tokens.*convert_weight"):
        only_hf = StageLayouts(1, ({"lm_head.weight": TensorLayout((1,), (-1, -1))},))
        slice_checkpoint(make_folder("hf", config), tmp_path / "x", only_hf)
    with pytest.raises(UserError, match=r"has no lm_head.weight, which --dst_strategy asks for"):
        tied = make_folder("tied", tied_config, hf=False)
        slice_checkpoint(tied, tmp_path / "x", ModelLayout(config, Mesh()))
    everything = {name: TensorLayout((3,), (-1,) * len(shape)) for name, shape in config.parameter_shapes().items()}
    norm = "model.norm_out.weight"
    with pytest.raises(UserError, match=r"norm_out.weight: shape \(8,\) cannot be cut into \(3,\)"):
        slice_checkpoint(full, tmp_path / "x", StageLayouts(3, ({**everything, norm: TensorLayout((3,), (0,))},)))
    slice_checkpoint(full, tmp_path / "cut", ModelLayout(config, Mesh(tp=2)))
    with pytest.raises(UserError, match=r"has folders for ranks 0, 1; .* ranks 0 to 3"):
        merge_checkpoint(tmp_path / "cut", tmp_path / "x", ModelLayout(config, Mesh(tp=2, dp=2)))
    with pytest.raises(UserError, match=r"missing: no such folder"):
        merge_checkpoint(tmp_path / "missing", tmp_path / "x", ModelLayout(config, Mesh()))
    (tmp_path / "cut" / STRATEGY_FILE).unlink()
    with pytest.raises(UserError, match=r"no strategy.ckpt there says how; give the strategy"):
        slice_checkpoint(tmp_path / "cut", tmp_path / "x", ModelLayout(config, Mesh()))
    with pytest.raises(UserError, match="not empty"):
        slice_checkpoint(full, tmp_path / "cut", ModelLayout(config, Mesh()))
    assert not (tmp_path / "x").exists()


def test_optimizer_state_may_be_left_out_of_a_checkpoint(tmp_path):
    table = {name: TensorLayout((2,), (0,)) for name in ("w", "adam_m.w", "adam_v.w")}
    layout = StageLayouts(2, (table,))
    (tmp_path / "full").mkdir()
    file = tmp_path / "full" / "model.safetensors"
    write_tensor_file(file, [("w", (4,), "F32", np.arange(4, dtype=np.float32))])
    slice_checkpoint(file, tmp_path / "cut", layout, prefix="part_")
    assert values(tmp_path / "cut" / "rank_1" / "part_1.safetensors")["w"].tolist() == [2.0, 3.0]
    merge_checkpoint(tmp_path / "cut", tmp_path / "merged", layout)
    assert values(tmp_path / "merged")["w"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_failure_midway_leaves_nothing(tmp_path, make_folder, config, monkeypatch):
    from r1parallel.checkpoint import slice as module

    source = make_folder("full", config, hf=False)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "copy_side_files", fail)
    with pytest.raises(UserError, match=r"cut.r1parallel.tmp: cannot be written: No space left on device"):
        slice_checkpoint(source, tmp_path / "cut", ModelLayout(config, Mesh()))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_command_line(tmp_path, make_folder, config, tool, capsys):
    source = make_folder("full", config, hf=False)
    write_strategy_files(ModelLayout(config, Mesh(tp=2, pp=2)), tmp_path / "s")
    main = tool("slice_ckpt")
    cut = ["--src_checkpoint", str(source), "--dst_checkpoint_dir", str(tmp_path / "cut")]
    main([*cut, "--dst_strategy", str(tmp_path / "s"), "--prefix", "p_"])
    assert (tmp_path / "cut" / "rank_3" / "p_3.safetensors").exists()
    merge = ["--src_checkpoint", str(tmp_path / "cut"), "--dst_checkpoint_dir", str(tmp_path / "merged")]
    main([*merge, "--src_strategy", str(tmp_path / "s"), "--dst_strategy", "None"])
    assert same(values(tmp_path / "merged"), values(source))
    assert str(tmp_path / "merged") in capsys.readouterr().out
    with pytest.raises(UserError, match="nothing to do"):
        main(cut)


def test_a_damaged_tensor_is_found_where_only_a_part_of_it_is_wanted(tmp_path, make_folder, config):
    full = make_folder("full", config, hf=False)
    entry = open_checkpoint(full)[EMBEDDING]
    with (full / "model.safetensors").open("r+b") as stream:
        stream.seek(entry.extents[0][0])  # in the first row, which rank 0 gets
        stream.write(b"\xff")
    with pytest.raises(UserError, match=rf"{EMBEDDING} is not what model.safetensors.manifest.json says"):
        reshard_checkpoint(full, tmp_path / "cut", None, ModelLayout(config, Mesh(tp=2)), ranks=[1])
    assert sorted(path.name for path in tmp_path.rglob("*.safetensors")) == ["model.safetensors"]
