"""Inputs that are damaged: refused in one line, and nothing is left behind."""

import random
import shutil

import pytest
from faults import CONFIG, FOUR, make_all, make_model, names, picture, refused, rewrite, slice_, values

from r1parallel.checkpoint.formats.tensor_file import INDEX_FILE, read_file
from r1parallel.checkpoint.reading.source import STRATEGY_FILE
from r1parallel.checkpoint.slice import reshard_checkpoint
from r1parallel.errors import UserError
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout

RANK_FILE = "rank_2/checkpoint_2.safetensors"
INPUTS = {  # what is read → the file that is damaged
    "full": "model.safetensors",
    "ckpt": "model.ckpt",
    "shards": "model-00002-of-00003.safetensors",
    "cut": RANK_FILE,
    "cut_ckpt": "rank_2/checkpoint_2.ckpt",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, server):
    folder = make_all(tmp_path_factory.mktemp("made"), server)
    reshard_checkpoint(folder / "full", folder / "cut_ckpt", None, FOUR, kind="ckpt")
    reshard_checkpoint(folder / "cut", folder / "ckpt", FOUR, None, kind="ckpt")
    make_model(folder / "shards", 1, shard=6_000)
    return folder


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
