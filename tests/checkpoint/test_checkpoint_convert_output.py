"""Where convert_weight writes: shards, single files, beside and over what is there; or nothing at all."""

import json

import pytest
from outcomes import one_line, tree, values

from r1parallel.checkpoint.formats.manifest import SUFFIX
from r1parallel.checkpoint.formats.tensor_file import INDEX_FILE, open_checkpoint
from r1parallel.checkpoint.reading import windows
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.strategy_files import read_strategy, write_merged_strategy
from r1parallel.parallel.layout.table import ModelLayout


@pytest.fixture(autouse=True)
def many_windows(monkeypatch):
    monkeypatch.setattr(windows, "WINDOW", 100)


@pytest.fixture
def convert(tool):
    main = tool("convert_weight")
    return lambda *flags: main([str(flag) for flag in flags])


@pytest.fixture
def source(make_folder, config):
    """Hugging Face's names, bf16."""
    return make_folder("hf", config, dtype="BF16")


@pytest.mark.parametrize(
    ("size", "limit"), [("500", 500), ("1KB", 1000), ("1.5kb", 1500), ("0.001 MB", 1000), ("5GB", None), (None, None)]
)
def test_shard_sizes(tmp_path, convert, source, size, limit):
    flags = ["--max_shard_size", size] if size else []
    convert("--input_path", source, "--output_path", tmp_path / "ours", *flags)
    convert("--input_path", source, "--output_path", tmp_path / "one", "--max_shard_size", "1GB")
    assert values(tmp_path / "ours") == values(tmp_path / "one")
    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 1 if limit else [file.name for file in files] == ["model.safetensors"]
    for file in files if limit else []:
        entries = open_checkpoint(file)
        assert entries.nbytes <= limit or len(entries) == 1
        assert (file.with_name(file.name + SUFFIX)).is_file()
    if limit:
        index = json.loads((tmp_path / "ours" / INDEX_FILE).read_text())
        assert index["metadata"]["total_size"] == open_checkpoint(tmp_path / "one").nbytes
        assert set(index["weight_map"].values()) == {file.name for file in files}


@pytest.mark.parametrize("size", ["0", "much", "5TB", "1e3", "-1", "5K", "0.1B", "", "nan", "inf"])
def test_sizes_that_are_none(tmp_path, convert, source, size):
    flags = ("--input_path", source, "--output_path", tmp_path / "x", f"--max_shard_size={size}")
    assert one_line(convert, *flags) == f"--max_shard_size {size}: is no size; give bytes, or as 500MB or 5GB"


def test_ckpt_as_output(tmp_path, convert, source):
    convert("--input_path", source, "--output_path", tmp_path / "ours")
    convert("--input_path", source, "--output_path", tmp_path / "ms", "--output_format", "ckpt")
    convert("--input_path", source, "--output_path", tmp_path / "named" / "mine.ckpt")
    names = {"config.json", "tokenizer.json"}
    assert {path.name for path in (tmp_path / "ms").iterdir()} == names | {"model.ckpt", f"model.ckpt{SUFFIX}"}
    assert {path.name for path in (tmp_path / "named").iterdir()} == names | {"mine.ckpt", f"mine.ckpt{SUFFIX}"}
    assert values(tmp_path / "ms") == values(tmp_path / "named" / "mine.ckpt") == values(tmp_path / "ours")
    convert("--input_path", tmp_path / "ms", "--output_path", tmp_path / "hf2", "--reversed")
    assert values(tmp_path / "hf2") == values(source)


def test_one_file_among_others(tmp_path, convert, make_folder, source, tied_config):
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "other.ckpt").write_text("mine")
    (folder / "model.safetensors").write_text("mine too")
    convert("--input_path", source, "--output_path", folder / "x.ckpt")
    before = tree(folder)
    assert before["other.ckpt"] == b"mine"
    assert before["model.safetensors"] == b"mine too"
    again = ("--input_path", source, "--output_path", folder / "x.ckpt", "--dtype", "fp32")
    assert one_line(convert, *again) == f"{folder / 'x.ckpt'}: exists; choose another --output_path or give --overwrite"
    assert tree(folder) == before
    convert(*again, "--overwrite")
    assert {entry.dtype for entry in open_checkpoint(folder / "x.ckpt").values()} == {"F32"}
    assert set(tree(folder)) == set(before)
    tied = make_folder("tied", tied_config)
    message = one_line(convert, "--input_path", tied, "--output_path", folder / "y.ckpt")
    assert "config.json: is of another model" in message
    assert set(tree(folder)) == set(before)


@pytest.mark.parametrize(("first", "then"), [(["500"], ["5GB"]), (["5GB"], ["500"]), (["400"], ["700"])])
@pytest.mark.parametrize("ckpt", [False, True])
def test_overwrite_leaves_one_checkpoint(tmp_path, convert, source, first, then, ckpt):
    ours = tmp_path / "ours"
    convert("--input_path", source, "--output_path", ours, "--max_shard_size", *first)
    (ours / "notes.txt").write_text("mine")
    again = ("--input_path", source, "--output_path", ours, "--dtype", "fp32", "--max_shard_size", *then)
    again += ("--output_format", "ckpt") if ckpt else ()
    before = tree(ours)
    assert "exists; choose another --output_path or give --overwrite" in one_line(convert, *again)
    assert tree(ours) == before
    convert(*again, "--overwrite")
    convert(*again[:2], "--output_path", tmp_path / "fresh", *again[4:])
    assert tree(ours) == {**tree(tmp_path / "fresh"), "notes.txt": b"mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "hf", "ours"]


def test_dry_run_prints_and_writes_nothing(tmp_path, capsys, convert, source, config):
    write_merged_strategy(ModelLayout(config, Mesh(tp=2, pp=2)), tmp_path / "s.ckpt")
    before = tree(tmp_path)
    flags = ("--input_path", source, "--output_path", tmp_path / "deep" / "new", "--dry_run")
    convert(*flags)
    full = capsys.readouterr().out
    convert(*flags, "--dst_strategy", tmp_path / "s.ckpt")
    cut = capsys.readouterr().out
    convert(*flags, "--max_shard_size", "500")
    shards = capsys.readouterr().out
    assert tree(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "s.ckpt"]
    count = len(config.parameter_shapes())
    for text in (full, cut, shards):
        assert f"{source}: {count} tensors" in text
        assert "enough" in text and "NOT ENOUGH" not in text
    assert f"model.safetensors: {count} tensors" in full
    assert "in 4 files" in cut
    assert "rank_0/checkpoint_0.safetensors … " in cut
    assert "model-00001-of-" in shards
    convert(*(flag for flag in flags if flag != "--dry_run"))
    size = (tmp_path / "deep" / "new" / "model.safetensors").stat().st_size
    assert f"needs {size / 1000:.2f} kB" in full


def test_dry_run_makes_the_same_checks(tmp_path, convert, make_folder, config):
    source = make_folder("hf", config, change=lambda arrays: arrays.pop("model.norm.weight"))
    flags = ("--input_path", source, "--output_path", tmp_path / "x", "--dry_run")
    assert "model.norm.weight (8,) is missing" in one_line(convert, *flags)


def test_a_folder_of_ranks_is_not_overwritten(tmp_path, convert, source, config):
    write_merged_strategy(ModelLayout(config, Mesh(tp=2)), tmp_path / "s.ckpt")
    cut = ("--input_path", source, "--output_path", tmp_path / "cut", "--overwrite")
    convert(*cut, "--dst_strategy", tmp_path / "s.ckpt")
    before = tree(tmp_path / "cut")
    assert "is there already and not empty" in one_line(convert, *cut, "--dst_strategy", tmp_path / "s.ckpt")
    assert "holds a checkpoint that is cut into ranks" in one_line(convert, *cut)
    assert tree(tmp_path / "cut") == before
    assert read_strategy(tmp_path / "cut" / "strategy.ckpt").world_size == 2


@pytest.mark.parametrize("output", [".", "x.ckpt", "model.safetensors"])
def test_into_the_folder_where_the_user_is(tmp_path, monkeypatch, convert, source, output):
    """Empty, as one makes it for this."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert("--input_path", source, "--output_path", output)
    convert("--input_path", source, "--output_path", tmp_path / "there")
    assert values(tmp_path / "here" / output) == values(tmp_path / "there")


def test_a_link_is_not_written_through(tmp_path, convert, source):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "x.ckpt").symlink_to(tmp_path / "real" / "x.ckpt")
    for output in ("link", "x.ckpt", "link/y.ckpt"):
        message = one_line(convert, "--input_path", source, "--output_path", tmp_path / output, "--overwrite")
        assert "is a symbolic link" in message
    assert list((tmp_path / "real").iterdir()) == []


def test_one_file_beside_shards_of_an_index_is_refused(tmp_path, convert, source):
    """The folder could not be read any more."""
    convert("--input_path", source, "--output_path", tmp_path / "ours", "--max_shard_size", "500")
    before = tree(tmp_path / "ours")
    one = ("--input_path", source, "--output_path", tmp_path / "ours" / "model.safetensors")
    assert INDEX_FILE in one_line(convert, *one, "--overwrite")
    assert tree(tmp_path / "ours") == before
