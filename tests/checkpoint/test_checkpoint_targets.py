"""Where is read and written: full and read-only disks, links, special files. Nothing is left, nothing is touched."""

import os
import re
import shutil
import subprocess

import pytest
from faults import contents, convert, mounted, names, picture, refusal, slice_, state, values

NEW = {
    "to ranks": (lambda made: slice_(made, "--dst_strategy", made / "four"), "full"),
    "to full": (lambda made: slice_(made, "--src_strategy", made / "four", source="cut"), "full"),
    "to ckpt": (lambda made: convert(made, "--output_format", "ckpt"), "from_hf"),
    "to shards": (lambda made: convert(made, "--max_shard_size", "5KB"), "from_hf"),
}
OLD = {  # what lies at the target before
    "replaced": (lambda made: convert(made, "--overwrite", "--max_shard_size", "5KB"), "from_hf", "old"),
    "ranks": (lambda made: slice_(made, "--dst_strategy", made / "four", "--rank_id", "1-3"), "full", "rank_0"),
}
NO_SPACE = "No space left on device"


@pytest.fixture(autouse=True)
def source_is_untouched(made):
    before = picture(made)
    yield
    assert picture(made) == before


def place_old(made, target, case):
    shutil.copytree(made / OLD[case][2], target)


@pytest.mark.parametrize("case", [*NEW, *OLD])
def test_a_disk_that_is_too_small(server, made, tmp_path, case):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        if case in OLD:
            place_old(made, disk / "target", case)
        (disk / "ballast").write_bytes(b"\1" * (os.statvfs(disk).f_bavail - 1) * 4096)
        before = picture(disk)
        command = (NEW | OLD)[case][0](made)(disk / "target")
        assert "GB, the disk has 0.00 GB left; make room" in server.refuse(command)
        assert picture(disk) == before


@pytest.mark.parametrize("case", [*NEW, *OLD])
def test_a_disk_that_fills_up(server, made, tmp_path, case):
    """With every number of free pages, so that each write fails once."""
    make, known, *_ = (NEW | OLD)[case]
    refusals = 0
    with mounted(tmp_path / "disk", "size=1m") as disk:
        target = disk / "target"
        if case in OLD:
            place_old(made, target, case)
        before = contents(target) if case in OLD else None
        for free in range(1, 60):
            room = os.statvfs(disk).f_bavail
            (disk / "ballast").write_bytes(b"\1" * (room - free) * 4096)
            result = server.run(make(made)(target), ignore_space=True)
            (disk / "ballast").unlink()
            if result["code"] == 0:
                break
            assert NO_SPACE in refusal(result)
            assert str(made) not in result["text"]
            assert names(disk) == (["target"] if before else [])
            assert before is None or contents(target) == before
            refusals += 1
        assert state(target, {"new": values(made / known)}) == "new"
    assert refusals > 5


def test_a_disk_without_room_for_names(server, made, tmp_path):
    for files in range(2, 12):
        with mounted(tmp_path / "disk", "size=1m", f"nr_inodes={files}") as disk:
            line = server.refuse(NEW["to ranks"][0](made)(disk / "target"))
            assert NO_SPACE in line
            assert names(disk) == []


@pytest.mark.parametrize("case", [*NEW, *OLD])
def test_a_read_only_disk(server, made, tmp_path, case):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        if case in OLD:
            place_old(made, disk / "target", case)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=20, start_new_session=True)
        before = picture(disk)
        line = server.refuse((NEW | OLD)[case][0](made)(disk / "target"))
        assert "cannot be written: Read-only file system" in line
        assert picture(disk) == before


@pytest.mark.parametrize("case", NEW)
def test_places_where_nothing_can_be_made(server, made, tmp_path, case):
    make = NEW[case][0](made)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere/at/all")
    before = contents(tmp_path)
    for place, message in {
        "/proc/new": "the disk has 0.00 GB left",
        tmp_path / "file": "is a file|is there already",
        tmp_path / "file" / "below": "cannot be written: File exists",
        tmp_path / "loop": "is a symbolic link",
        tmp_path / "loop" / "below": "cannot be written: File exists",
        tmp_path / "dangling": "is a symbolic link",
        tmp_path / ("long" * 100): "File name too long",
    }.items():
        result = server.run(make(place), folder=str(tmp_path))
        line = refusal(result)
        assert any(part in line for part in message.split("|")), (place, line)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("case", ["to ranks", "to full"])
def test_the_present_folder_and_the_one_above_are_not_empty(server, made, tmp_path, case):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "notes").write_text("kept")
    before = contents(tmp_path)
    for place in (".", "..", "", "../here"):
        line = server.refuse(NEW[case][0](made)(place), folder=str(tmp_path / "here"))
        assert re.search(
            "is there already and not empty|give the folder by its name|is the folder that you are in", line
        )
        assert contents(tmp_path) == before


@pytest.mark.parametrize("case", NEW)
def test_a_mounted_disk_is_no_new_folder(server, made, tmp_path, case):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        result = server.run(NEW[case][0](made)(disk))
        if result["code"]:
            assert "is where a disk is mounted; give a folder in it" in refusal(result)
            assert names(disk) == []
        else:
            assert state(disk, {"new": values(made / NEW[case][1])}) == "new"
    assert names(tmp_path) == []


@pytest.mark.parametrize("case", [*NEW, *OLD])
def test_links_that_lead_out(server, made, tmp_path, case):
    """The target, or what a run calls its own beside it, leads to a folder or a file of somebody else."""
    make, known, *_ = (NEW | OLD)[case]
    precious = tmp_path / "precious"
    shutil.copytree(made / "old", precious)
    (precious / "file").write_text("precious")
    before = contents(precious)

    (tmp_path / "link").symlink_to(precious)
    assert "is a symbolic link" in server.refuse(make(made)(tmp_path / "link"))
    target = tmp_path / "target"
    own = {"replaced": [target / "model"], "ranks": [target / "rank_1", target / "rank_3"]}.get(case, [target])
    for mine in own:
        shutil.rmtree(target, ignore_errors=True)
        if case in OLD:
            place_old(made, target, case)
        lock = mine.with_name(f"{mine.name}.r1parallel.lock")
        lock.symlink_to(precious / "file")
        assert "Too many levels of symbolic links" in server.refuse(make(made)(target))
        lock.unlink()
        os.link(precious / "file", lock)
        assert "is a file with something in it" in server.refuse(make(made)(target))
        lock.unlink()
        mine.with_name(f"{mine.name}.r1parallel.tmp").symlink_to(precious)
        server.succeed(make(made)(target))
        assert state(target, {"new": values(made / known)}) == "new"
    assert contents(precious) == before


def test_a_rank_that_is_a_link(server, made, tmp_path):
    shutil.copytree(made / "rank_0", tmp_path / "target")
    (tmp_path / "precious").mkdir()
    (tmp_path / "target" / "rank_1").symlink_to(tmp_path / "precious")
    before = contents(tmp_path)
    line = server.refuse(OLD["ranks"][0](made)(tmp_path / "target"))
    assert "rank_1: is a symbolic link" in line
    assert contents(tmp_path) == before


def test_files_that_are_links_are_replaced_and_not_followed(server, made, tmp_path):
    shutil.copytree(made / "old", tmp_path / "blobs")
    (tmp_path / "target").mkdir()
    for name in names(made / "old"):
        (tmp_path / "target" / name).symlink_to(tmp_path / "blobs" / name)
    before = picture(tmp_path / "blobs")
    server.succeed(OLD["replaced"][0](made)(tmp_path / "target"))
    assert state(tmp_path / "target", {"new": values(made / "from_hf")}) == "new"
    assert not any(path.is_symlink() for path in (tmp_path / "target").iterdir())
    assert picture(tmp_path / "blobs") == before


@pytest.mark.parametrize("case", ["into itself", "overwriting itself", "a rank more", "below", "a file in a rank"])
def test_an_output_in_the_input(server, made, tmp_path, case):
    strategy = ("--dst_strategy", made / "four", "--rank_id", 1)
    source, command = {
        "into itself": ("full", lambda path: slice_(tmp_path, *strategy, source="full")(path)),
        "overwriting itself": ("hf", lambda path: convert(tmp_path, "--overwrite", source="hf")(path / ".")),
        "a rank more": ("cut", lambda path: convert(tmp_path, source="cut")(path / "rank_4")),
        "below": ("cut", lambda path: slice_(tmp_path, *strategy, source="cut")(path / "rank_0" / "new")),
        "a file in a rank": ("cut", lambda path: convert(tmp_path, source="cut")(path / "rank_0" / "x.safetensors")),
    }[case]
    shutil.copytree(made / source, tmp_path / source)
    before = picture(tmp_path)
    assert "is the same folder as what is read" in server.refuse(command(tmp_path / source))
    assert picture(tmp_path) == before


def test_a_new_folder_below_a_full_source_leaves_its_files_alone(server, made, tmp_path):
    shutil.copytree(made / "hf", tmp_path / "hf")
    before = contents(tmp_path / "hf")
    server.succeed(convert(tmp_path)(tmp_path / "hf" / "ours"))
    assert state(tmp_path / "hf" / "ours", {"new": values(made / "from_hf")}) == "new"
    shutil.rmtree(tmp_path / "hf" / "ours")
    assert contents(tmp_path / "hf") == before


def test_a_file_in_the_present_folder(server, made, tmp_path):
    (tmp_path / "notes").write_text("kept")
    server.succeed(convert(made)("ours.safetensors"), folder=str(tmp_path))
    expected = ["config.json", "notes", "ours.safetensors", "ours.safetensors.manifest.json", "tokenizer.json"]
    assert names(tmp_path) == expected
    assert values(tmp_path / "ours.safetensors") == values(made / "from_hf")


def test_a_cache_of_links_is_read(server, made, tmp_path):
    """As huggingface_hub keeps it: snapshots/<id>/<name> leads to ../../blobs/<hash>."""
    snapshot = tmp_path / "models--x" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    shutil.copytree(made / "hf", tmp_path / "models--x" / "blobs")
    for name in names(made / "hf"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    before = contents(tmp_path)
    server.succeed(["convert_weight", "--input_path", snapshot, "--output_path", tmp_path / "new"])
    assert state(tmp_path / "new", {"new": values(made / "from_hf")}) == "new"
    shutil.rmtree(tmp_path / "new")
    assert contents(tmp_path) == before


SPECIAL = {
    "fifo": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("special", SPECIAL)
def test_inputs_that_are_no_files(server, made, tmp_path, special):
    for source, name in (
        ("full", "model.safetensors"),
        ("full", "model.safetensors.manifest.json"),
        ("old_shards", "model-00001-of-00003.safetensors"),
        ("old_shards", "model.safetensors.index.json"),
        ("cut", "rank_1/checkpoint_1.safetensors"),
        ("cut", "strategy.ckpt"),
        ("cut", "config.json"),
        ("cut", "rank_1"),
    ):
        shutil.copytree(made / source, tmp_path / source)
        path = tmp_path / source / name
        assert path.exists(), path
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        SPECIAL[special](path)
        strategy = ("--src_strategy" if source == "cut" else "--dst_strategy", made / "four")
        result = server.run(slice_(tmp_path, *strategy, source=source)(tmp_path / "new"))
        if result["code"]:
            refusal(result)
            assert names(tmp_path) == [source]
        else:
            assert name in ("model.safetensors.manifest.json", "strategy.ckpt", "config.json")
            shutil.rmtree(tmp_path / "new")
        shutil.rmtree(tmp_path / source)


def test_inputs_that_this_user_may_not_read(server, made, tmp_path):
    """The folders of tests are root's alone: for another user every path in them is refused."""
    if os.geteuid() != 0:
        pytest.skip("NO OTHER USER: only root can become one")
    for make, _ in NEW.values():
        line = server.refuse(make(made)(tmp_path / "new"), user=65534)
        assert "Permission denied" in line
    assert names(tmp_path) == []
