"""Inputs that are not all there, or do not belong together: refused in one line, and nothing is left behind."""

import re
import shutil
from dataclasses import replace

import pytest
from faults import CONFIG, make_model, names, picture, refused, rewrite, slice_, state, values

from r1parallel.checkpoint.convert import Target, convert_weight
from r1parallel.checkpoint.slice import reshard_checkpoint
from r1parallel.config.model import ModelConfig
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.strategy_files import read_strategy, write_strategy_files
from r1parallel.parallel.layout.table import ModelLayout

RANK_FILE = "rank_2/checkpoint_2.safetensors"


@pytest.fixture(autouse=True)
def source_is_untouched(made):
    before = picture(made)
    yield
    assert picture(made) == before


@pytest.fixture
def room(tmp_path):
    """A folder for what is written."""
    folder = tmp_path / "room"
    folder.mkdir()
    return folder


def remove_rank(path):
    shutil.rmtree(path / "rank_1")


def add_rank(path):
    shutil.copytree(path / "rank_1", path / "rank_4")


def remove_file(path):
    (path / RANK_FILE).unlink()


def add_file(path):
    shutil.copy(path / RANK_FILE, path / "rank_2" / "older.safetensors")


def rank_of_another_run(path):
    wider = replace(CONFIG, hidden_size=32)
    make_model(path.parent / "wider", 1, config=wider)
    reshard_checkpoint(
        path.parent / "wider", path.parent / "wider_cut", None, ModelLayout(wider, Mesh(dp=2, tp=2), True)
    )
    shutil.copytree(path.parent / "wider_cut" / "rank_1", path / "rank_1", dirs_exist_ok=True)


def file_is_a_folder(path):
    (path / RANK_FILE).unlink()
    (path / RANK_FILE).mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_rank, "has folders for ranks 0, 2, 3; the strategy describes ranks 0 to 3"),
        (add_rank, "has folders for ranks 0, 1, 2, 3, 4; the strategy describes"),
        (remove_file, "rank_2: expected exactly one .safetensors or .ckpt file, found none"),
        (add_file, "found checkpoint_2.safetensors, older.safetensors; "),
        (rank_of_another_run, "does not fit rank 0's"),
        (file_is_a_folder, "rank_2: expected exactly one .safetensors or .ckpt file, found none"),
    ],
)
def test_ranks_that_are_not_all_of_one_checkpoint(made, tmp_path, room, change, message):
    path = shutil.copytree(made / "cut", tmp_path / "cut")
    change(path)
    assert message in refused(room, lambda: rewrite(path, room))


@pytest.mark.parametrize(
    ("source", "file", "message"),
    [
        ("old_shards", "model-00002-of-00003.safetensors", "which is missing"),
        ("old_shards", "model.safetensors.index.json", "holds none of"),
        ("full", "model.safetensors", "holds none of"),
    ],
)
def test_a_missing_file(made, tmp_path, room, source, file, message):
    path = shutil.copytree(made / source, tmp_path / source)
    (path / file).unlink()
    assert message in refused(room, lambda: rewrite(path, room))


LARGER = ModelConfig(32, 16, 24, 3, 4, 2)
TIED = replace(CONFIG, tie_word_embeddings=True)


@pytest.mark.parametrize(
    ("model", "other", "message"),
    [
        (CONFIG, LARGER, "asks for"),
        (LARGER, CONFIG, "is in no stage"),
        (CONFIG, TIED, "is in no stage"),
        (TIED, CONFIG, "asks for"),
    ],
)
@pytest.mark.parametrize("how", ["slice", "merge", "convert"])
def test_the_strategy_of_another_model(tmp_path, room, model, other, message, how):
    full, new, layout = tmp_path / "full", room / "new", ModelLayout(other, Mesh(tp=2, dp=2))
    make_model(full, 1, "hf" if how == "convert" else "ours", config=model)
    if how == "convert":
        line = refused(room, lambda: convert_weight(full, new, Target(layout=layout)))
    elif how == "slice":
        line = refused(room, lambda: reshard_checkpoint(full, new, None, layout))
    else:
        message = "is not in the strategy for this rank|is missing, which the strategy places"
        reshard_checkpoint(full, tmp_path / "cut", None, ModelLayout(model, layout.mesh))
        line = refused(room, lambda: reshard_checkpoint(tmp_path / "cut", new, layout, None))
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("mesh", "opt_shard", "message"),
    [
        (Mesh(tp=2), True, "has folders for ranks 0, 1, 2, 3; the strategy describes ranks 0 to 1"),
        (Mesh(dp=2, tp=2), False, "cut in another way than the given strategy"),
        (Mesh(dp=4), True, "cut in another way than the given strategy"),
        (Mesh(dp=4), False, "cut in another way than the given strategy"),
    ],
)
def test_the_strategy_of_another_mesh(made, room, mesh, opt_shard, message):
    layout = ModelLayout(CONFIG, mesh, opt_shard)
    assert re.search(message, refused(room, lambda: reshard_checkpoint(made / "cut", room / "new", layout, None)))


def test_a_strategy_folder_that_lacks_a_rank(server, made, tmp_path, room):
    shutil.copytree(made / "four", tmp_path / "four")
    (tmp_path / "four" / "strategy_2.ckpt").unlink()
    for flag, source in (("--dst_strategy", "full"), ("--src_strategy", "cut")):
        line = server.refuse(slice_(made, flag, tmp_path / "four", source=source)(room / "new"))
        assert "describes 4 ranks but has files for ranks [0, 1, 3]" in line
        assert names(room) == []
    assert read_strategy(made / "four").world_size == 4


def test_copies_on_more_ranks_than_files_can_be_open(server, made, room):
    many = ModelLayout(CONFIG, Mesh(dp=100, tp=1))
    reshard_checkpoint(made / "full", room.parent / "many", None, many)
    write_strategy_files(many, room.parent / "strategy")
    command = slice_(room.parent, "--src_strategy", room.parent / "strategy", source="many")
    server.succeed(command(room / "new"), open_files=100)
    assert state(room / "new", {"full": values(made / "full")}) == "full"


@pytest.mark.parametrize("place", ["../full/model.safetensors", "/etc/passwd", "..", "", "a/../model.safetensors"])
def test_an_index_that_leads_out(made, tmp_path, room, place):
    path = shutil.copytree(made / "old_shards", tmp_path / "source")
    index = path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001-of-00003.safetensors", place))
    assert re.search("is no file name in this folder|which is missing", refused(room, lambda: rewrite(path, room)))
