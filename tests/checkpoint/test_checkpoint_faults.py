"""Inputs that are damaged, incomplete or of another model: refused in one line, and nothing is left behind."""

import random
import re
import shutil
from dataclasses import replace

import pytest
from faults import CONFIG, FOUR, Server, make_all, make_model, names, picture, slice_, state, values

from r1parallel.checkpoint.convert import Target, convert_weight
from r1parallel.checkpoint.slice import reshard_checkpoint
from r1parallel.checkpoint.source import STRATEGY_FILE
from r1parallel.checkpoint.tensor_file import INDEX_FILE, read_file
from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError
from r1parallel.parallel.layout import ModelLayout
from r1parallel.parallel.mesh import Mesh
from r1parallel.parallel.strategy import read_strategy, write_strategy_files

RANK_FILE = "rank_2/checkpoint_2.safetensors"
INPUTS = {  # what is read → the file that is damaged
    "full": "model.safetensors",
    "ckpt": "model.ckpt",
    "shards": "model-00002-of-00003.safetensors",
    "cut": RANK_FILE,
    "cut_ckpt": "rank_2/checkpoint_2.ckpt",
}


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory, server):
    folder = make_all(tmp_path_factory.mktemp("made"), server)
    reshard_checkpoint(folder / "full", folder / "cut_ckpt", None, FOUR, kind="ckpt")
    reshard_checkpoint(folder / "cut", folder / "ckpt", FOUR, None, kind="ckpt")
    make_model(folder / "shards", 1, shard=6_000)
    return folder


@pytest.fixture
def room(tmp_path):
    """A folder for what is written."""
    folder = tmp_path / "room"
    folder.mkdir()
    return folder


def rewrite(path, room):
    """Read all of a checkpoint and write it otherwise: what is cut is put together, what is not is cut."""
    is_cut = (path / "rank_0").exists()
    reshard_checkpoint(path, room / "new", None, None if is_cut else FOUR)


def refused(room, call):
    """The line that a call is refused with, after which nothing is there."""
    with pytest.raises(UserError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    assert names(room) == []
    return str(caught.value)


def refused_or_right(room, path, expected):
    """Whether damage was noticed; where it was not, it did none."""
    try:
        rewrite(path, room)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        assert names(room) == []
        return True
    assert values(room / "new") == expected
    shutil.rmtree(room / "new")
    return False


def damaged_copy(made, tmp_path, source, with_manifests=True):
    path = tmp_path / source
    shutil.copytree(made / source, path)
    if not with_manifests:
        for file in path.rglob("*.manifest.json"):
            file.unlink()
    return path, path / INPUTS[source]


def flip(content, bit):
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


@pytest.mark.parametrize("with_manifests", [True, False], ids=["manifest", "bare"])
@pytest.mark.parametrize("source", INPUTS)
def test_a_file_that_is_cut_short_or_longer(made, tmp_path, room, source, with_manifests):
    path, file = damaged_copy(made, tmp_path, source, with_manifests)
    content = file.read_bytes()
    chance = random.Random(0)
    starts = [extent[0] for entry in read_file(file)[0].values() for extent in entry.extents]
    lengths = {0, 1, 7, 8, 9, len(content) - 1, *starts, *(start - 1 for start in starts)}
    for length in sorted(lengths | {chance.randrange(len(content)) for _ in range(20)}):
        file.write_bytes(content[:length])
        refused(room, lambda: rewrite(path, room))
    for more in (b"\0", b"\n", b"\0" * 8, b"\0" * 4096, content):
        file.write_bytes(content + more)
        refused(room, lambda: rewrite(path, room))
    file.write_bytes(content)
    rewrite(path, room)
    assert values(room / "new") == values(made / "full")


@pytest.mark.parametrize("source", INPUTS)
def test_a_file_that_is_cut_short_while_it_is_read(server, made, tmp_path, room, source):
    _, file = damaged_copy(made, tmp_path, source)
    strategy = "--src_strategy" if "cut" in source else "--dst_strategy"
    line = server.refuse(slice_(tmp_path, strategy, made / "four", source=source)(room / "new"), cut_short=str(file))
    assert "was it cut short while it was read?" in line or "is not what" in line
    assert names(room) == []


@pytest.mark.parametrize("source", INPUTS)
def test_flipped_bits_in_data_are_seen_by_the_manifest(made, tmp_path, room, source):
    path, file = damaged_copy(made, tmp_path, source)
    content = file.read_bytes()
    chance = random.Random(1)
    for name, entry in read_file(file)[0].items():
        offset, size = chance.choice(entry.extents)
        file.write_bytes(flip(content, 8 * offset + chance.randrange(8 * size)))
        line = refused(room, lambda: rewrite(path, room))
        assert f"{name} is not what {file.name}.manifest.json says" in line or "differs from its copy" in line


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_flipped_bits_in_a_copy_are_seen_without_a_manifest(made, tmp_path, room, kind):
    path = tmp_path / "copies"
    reshard_checkpoint(made / "full", path, None, ModelLayout(CONFIG, Mesh(dp=2, tp=2)), kind=kind)
    for manifest in path.rglob("*.manifest.json"):
        manifest.unlink()
    file = path / f"rank_2/checkpoint_2.{kind}"
    content = file.read_bytes()
    chance = random.Random(1)
    for name, entry in read_file(file)[0].items():
        offset, size = entry.extents[0]
        file.write_bytes(flip(content, 8 * offset + chance.randrange(8 * size)))
        line = refused(room, lambda: rewrite(path, room))
        assert f"{name} differs from its copy in" in line


@pytest.mark.parametrize("with_manifests", [True, False], ids=["manifest", "bare"])
@pytest.mark.parametrize("source", INPUTS)
def test_flipped_bits_in_headers(made, tmp_path, room, source, with_manifests):
    path, file = damaged_copy(made, tmp_path, source, with_manifests)
    content, expected = file.read_bytes(), values(made / "full")
    in_data = {
        byte
        for entry in read_file(file)[0].values()
        for offset, size in entry.extents
        for byte in range(offset, offset + size)
    }
    header = [byte for byte in range(len(content)) if byte not in in_data]
    chance = random.Random(2)
    noticed = 0
    for byte in chance.sample(header, 60):
        file.write_bytes(flip(content, 8 * byte + chance.randrange(8)))
        noticed += refused_or_right(room, path, expected)
    assert noticed > 30


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("full", "model.safetensors.manifest.json"),
        ("cut", f"{RANK_FILE}.manifest.json"),
        ("shards", INDEX_FILE),
        ("cut", STRATEGY_FILE),
    ],
)
def test_flipped_bits_in_what_lies_beside(made, tmp_path, room, source, name):
    path, _ = damaged_copy(made, tmp_path, source)
    content, expected = (path / name).read_bytes(), values(made / "full")
    chance = random.Random(3)
    noticed = 0
    for bit in chance.sample(range(8 * len(content)), 60):
        (path / name).write_bytes(flip(content, bit))
        noticed += refused_or_right(room, path, expected)
    for length in chance.sample(range(len(content) - 1), 10):
        (path / name).write_bytes(content[:length])
        refused_or_right(room, path, expected)
    assert noticed > 30


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
    path, _ = damaged_copy(made, tmp_path, "cut")
    change(path)
    assert message in refused(room, lambda: rewrite(path, room))


@pytest.mark.parametrize("source", ["shards", "full"])
def test_a_missing_file(made, tmp_path, room, source):
    path, file = damaged_copy(made, tmp_path, source)
    file.unlink()
    assert re.search("which is missing|holds none of", refused(room, lambda: rewrite(path, room)))


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


@pytest.fixture(autouse=True)
def source_is_untouched(made):
    before = picture(made)
    yield
    assert picture(made) == before
