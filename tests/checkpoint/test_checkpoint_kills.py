"""Tools that are killed, interrupted, or run twice at once: what they leave is whole, or does not look so."""

import random
import shutil
import signal

import pytest
from faults import CONFIG, FOUR, contents, convert, names, picture, refusal, slice_, state, values

from r1parallel.checkpoint.command_line import read_ranks
from r1parallel.checkpoint.formats.tensor_file import rank_folders
from r1parallel.config.model import load_model_config
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.strategy_files import write_strategy_files
from r1parallel.parallel.layout.table import ModelLayout

SLOW = 0.0003  # seconds that every change of a file or a folder takes longer


def moments(server, command, prepare):
    """Twenty orders to kill a command: before some change at random, more often near the end, and by the clock."""
    prepare()
    whole = server.succeed(command, slow=SLOW)
    changes, seconds = whole["changes"], whole["seconds"]
    assert changes > 40, "too few moments to choose from"
    chance = random.Random(changes)
    spread = [1 + int((i + chance.random()) / 7 * changes) for i in range(7)]
    at_the_end = chance.sample(range(changes - 12, changes + 1), 6)  # where files and folders take their places
    times = [(i + chance.random()) / 7 * seconds for i in range(7)]
    return [{"signal_at": number} for number in spread + at_the_end] + [{"signal_after": time} for time in times]


def check_kills(server, command, parent, prepare, recover):
    """Kill a command at many moments; what came of it in the end must be what an undisturbed run leaves.

    Args:
        parent: folder in which everything is written.
        prepare: makes it anew.
        recover: looks at what a killed command left, and runs it again.
    """
    orders = moments(server, command, prepare)
    expected = contents(parent)
    killed = 0
    for order in orders:
        prepare()
        result = server.run(command, slow=SLOW, **order)
        assert result["code"] in (0, -signal.SIGKILL), result
        killed += result["code"] != 0
        recover()
        assert contents(parent) == expected, order
    assert killed > len(orders) * 0.6


def anew(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


NEW = {
    "to ranks": (lambda made: slice_(made, "--dst_strategy", made / "four"), "full"),
    "to full": (lambda made: slice_(made, "--src_strategy", made / "four", source="cut"), "full"),
    "to shards": (lambda made: convert(made, "--max_shard_size", "5KB"), "from_hf"),
    "to other ranks": (lambda made: convert(made, "--dst_strategy", made / "four", "--dtype", "fp32"), "from_hf"),
}


@pytest.mark.parametrize("case", NEW)
def test_killed_while_it_writes_a_new_folder(server, made, tmp_path, case):
    make, known = NEW[case]
    before, target = picture(made), tmp_path / "room" / "new"
    known = {"new": values(made / known)}

    command = make(made)(target)

    def recover():
        if state(target, known) == "new":
            server.refuse(command)
            shutil.rmtree(target)
        assert not target.exists()
        server.succeed(command)

    check_kills(server, command, target.parent, lambda: anew(target.parent), recover)
    assert picture(made) == before


@pytest.mark.parametrize("old", ["old", "old_shards"])
@pytest.mark.parametrize("flags", [(), ("--max_shard_size", "5KB")], ids=["file", "shards"])
def test_killed_while_it_replaces_a_checkpoint(server, made, tmp_path, old, flags):
    before, target = picture(made), tmp_path / "room" / "target"
    known = {"old": values(made / old), "new": values(made / "from_hf")}

    def prepare():
        anew(target.parent)
        shutil.copytree(made / old, target)

    def recover():
        found = state(target, known)
        if found != "refused":  # weights and configuration are of one model
            assert load_model_config(target) == load_model_config(made / (old if found == "old" else "hf"))
        server.succeed(command)

    command = convert(made, "--overwrite", *flags)(target)
    check_kills(server, command, target.parent, prepare, recover)
    server.succeed(convert(made, *flags)(tmp_path / "fresh"))
    assert contents(target) == contents(tmp_path / "fresh")
    assert picture(made) == before


@pytest.mark.parametrize("ranks", ["1", "1-3"])
def test_killed_while_it_adds_ranks_to_a_folder(server, made, tmp_path, ranks):
    target = tmp_path / "room" / "cut"

    def command(ranks):
        return slice_(made, "--dst_strategy", made / "four", "--rank_id", ranks)(target)

    def prepare():
        anew(target.parent)
        shutil.copytree(made / "rank_0", target)

    def recover():
        there = rank_folders(target)
        for rank, folder in there.items():
            assert contents(folder) == contents(made / "cut" / f"rank_{rank}")
        assert state(target, {"new": values(made / "full")}) == ("new" if len(there) == 4 else "refused")
        missing = [rank for rank in read_ranks(ranks, FOUR) if rank not in there]
        if len(missing) < len(read_ranks(ranks, FOUR)):
            assert "is there already and not empty" in server.refuse(command(ranks))
        if missing:
            server.succeed(command(",".join(map(str, missing))))

    check_kills(server, command(ranks), target.parent, prepare, recover)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
@pytest.mark.parametrize("case", NEW)
def test_stopped_by_the_user(server, made, tmp_path, case, number, code):
    command, target = NEW[case][0](made)(tmp_path / "new"), tmp_path / "new"
    changes = server.succeed(command)["changes"]
    for part in (0.2, 0.5, 0.8):
        shutil.rmtree(target, ignore_errors=True)
        result = server.run(command, slow=SLOW, signal=number, signal_at=int(part * changes))
        assert result["code"] == code
        assert result["text"] == ("error: interrupted\n" if code == 130 else "")
        assert names(tmp_path) == ([] if code == 130 else ["new.r1parallel.lock", "new.r1parallel.tmp"])
    server.succeed(command)
    assert names(tmp_path) == ["new"]


@pytest.mark.parametrize("case", NEW)
def test_two_runs_into_one_folder(server, made, tmp_path, case):
    make, known = NEW[case]
    for number in range(4):
        target = tmp_path / f"new{number}"
        results = server.run_all(make(made)(target), make(made)(target), slow=SLOW)
        assert sorted(result["code"] for result in results) == [0, 2]
        (refused,) = (refusal(result) for result in results if result["code"])
        assert "another process is writing it" in refused or "is there already" in refused
        assert state(target, {"new": values(made / known)}) == "new"
    assert names(tmp_path) == [f"new{number}" for number in range(4)]


def test_two_runs_replace_one_checkpoint(server, made, tmp_path):
    target = tmp_path / "target"
    known = {"hf": values(made / "from_hf"), "old": values(made / "old")}
    for _ in range(4):
        anew(target)
        shutil.copytree(made / "old", target, dirs_exist_ok=True)
        one, other = convert(made, "--overwrite"), convert(made, "--overwrite", source="old_shards")
        results = server.run_all(one(target), other(target), slow=SLOW)
        codes = [result["code"] for result in results]
        assert 0 in codes
        assert all("another process is writing it" in refusal(result) for result in results if result["code"])
        found = state(target, known)
        assert found != "refused"
        assert load_model_config(target) == load_model_config(made / found)
        assert names(tmp_path) == ["target"]
        assert not {name for name in names(target) if name.endswith((".lock", ".tmp"))}


def test_two_runs_write_other_ranks_of_one_folder(server, made, tmp_path):
    def command(ranks):
        return slice_(made, "--dst_strategy", made / "four", "--rank_id", ranks)(tmp_path / "cut")

    for _ in range(4):
        results = server.run_all(*(command(rank) for rank in range(4)), slow=SLOW)
        assert [result["code"] for result in results] == [0] * 4, results
        assert names(tmp_path) == ["cut"] and contents(tmp_path / "cut") == contents(made / "cut")
        shutil.rmtree(tmp_path / "cut")
    results = server.run_all(command("0,1"), command("1,2"), slow=SLOW)
    assert sorted(result["code"] for result in results) == [0, 2]
    assert len(rank_folders(tmp_path / "cut")) == 2


def test_two_runs_of_different_strategies_do_not_mix(server, made, tmp_path):
    """The slices of rank 0 under both have the same shapes."""
    write_strategy_files(ModelLayout(CONFIG, Mesh(dp=2, tp=2)), made / "not_optimizer")
    for _ in range(6):
        commands = [
            slice_(made, "--dst_strategy", made / strategy, "--rank_id", rank)(tmp_path / "cut")
            for strategy, rank in (("four", 0), ("not_optimizer", 1))
        ]
        results = server.run_all(*commands, slow=SLOW)
        assert sorted(result["code"] for result in results) == [0, 2], results
        (refused,) = (refusal(result) for result in results if result["code"])
        assert "holds ranks of another strategy" in refused
        assert len(rank_folders(tmp_path / "cut")) == 1
        shutil.rmtree(tmp_path / "cut")
