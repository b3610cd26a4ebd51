import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.simulated_world import SimulatedWorld

from r1parallel.checkpoint import run_state as module
from r1parallel.checkpoint.formats.tensor_entry import TensorEntry
from r1parallel.checkpoint.reading.windows import read_rows
from r1parallel.checkpoint.run_state import latest_run_state, load_run_state, save_run_state
from r1parallel.checkpoint.writing.shards import Shards
from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout

CONFIG = ModelConfig(16, 8, 12, 2, 4, 2, tie_word_embeddings=True)
ONE = ModelLayout(CONFIG, Mesh())
MANY = ModelLayout(CONFIG, Mesh(dp=2, pp=2, tp=2), opt_shard=True, stage_layers=(1, 1))
NORM = "model.norm_out.weight"
EMBEDDING = "model.tok_embeddings.embedding_weight"


def full_values(step, prefixes):
    """Every element differs from every other."""
    values, begin = {}, step * 10**6
    for prefix in prefixes:
        for name, shape in CONFIG.parameter_shapes().items():
            size = int(np.prod(shape))
            values[prefix + name] = np.arange(begin, begin + size, dtype=np.float32).reshape(shape)
            begin += size
    return values


PREFIXES = {"actor": ("",), "optimizer": ("adam_m.", "adam_v."), "reference": ("",)}


def groups(step, layout=ONE, rank=0, reference=None):
    """What a rank holds; the reference has a layout of its own."""
    layouts = {"actor": layout, "optimizer": layout, "reference": reference or layout}
    result = {}
    for number, (group, own) in enumerate(layouts.items()):
        values = {}
        for name, full in full_values(step + number, PREFIXES[group]).items():
            region = own.slices(name.removeprefix("adam_m.").removeprefix("adam_v."), rank % own.world_size)
            if region is not None:
                values[name] = full[region]
        result[group] = Shards(own, values)
    return result


def save(folder, step, keep, state=None):
    return save_run_state(folder, step, groups(step), state or {}, keep, World())


def assert_holds(path, step):
    sources, _ = load_run_state(path)
    assert set(sources) == set(PREFIXES)
    for number, (group, source) in enumerate(sources.items()):
        expected = full_values(step + number, PREFIXES[group])
        assert source.shapes == {name: value.shape for name, value in expected.items()}
        for name, value in expected.items():
            np.testing.assert_array_equal(source.read(name), value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    state = {"epoch": 1, "rng": [2**100, None, "x"], "lr": 0.1}
    path = save(tmp_path / "ckpt", 7, keep=2, state=state)
    assert latest_run_state(tmp_path / "ckpt") == path == tmp_path / "ckpt" / "step_7"
    assert load_run_state(path)[1] == state
    assert_holds(path, 7)
    assert names(path) == [
        "actor_strategy.ckpt",
        "optimizer_strategy.ckpt",
        "rank_0",
        "reference_strategy.ckpt",
        "state.json",
    ]
    assert names(path / "rank_0") == [
        f"{group}.safetensors{end}" for group in ("actor", "optimizer", "reference") for end in ("", ".manifest.json")
    ]


@pytest.mark.parametrize("reference", [MANY, ModelLayout(CONFIG, Mesh(dp=2, tp=2)), ONE], ids=["same", "fewer", "one"])
def test_many_ranks_save_and_any_region_is_read(tmp_path, monkeypatch, reference):
    def job(world):
        return save_run_state(tmp_path, 3, groups(3, MANY, world.rank, reference), {"by": world.rank}, 1, world)

    paths = SimulatedWorld(8, monkeypatch).run(job)
    assert paths == [tmp_path / "step_3"] * 8
    assert_holds(paths[0], 3)
    sources, state = load_run_state(paths[0])
    assert state == {"by": 0}
    np.testing.assert_array_equal(
        sources["actor"].read(EMBEDDING, (slice(3, 11), slice(2, 7))), full_values(3, [""])[EMBEDDING][3:11, 2:7]
    )
    with_reference = [(paths[0] / f"rank_{rank}" / "reference.safetensors").exists() for rank in range(8)]
    assert sum(with_reference) == reference.world_size
    for source in sources.values():
        for name in source.shapes:
            read_rows(source.tensors[name])  # compares copies


def test_only_what_is_needed_is_read(tmp_path, monkeypatch):
    SimulatedWorld(8, monkeypatch).run(lambda w: save_run_state(tmp_path, 3, groups(3, MANY, w.rank), {}, 1, w))
    read = []
    plain = TensorEntry.read_bytes

    def counted(entry, descriptor, begin, out):
        read.append((entry.file.parent.name, entry.name, len(out)))
        plain(entry, descriptor, begin, out)

    monkeypatch.setattr(TensorEntry, "read_bytes", counted)
    sources, _ = load_run_state(tmp_path / "step_3")
    assert read == []
    part = sources["optimizer"].read(f"adam_m.{EMBEDDING}", (slice(0, 4), slice(0, 8)))
    assert part.shape == (4, 8)
    assert read == [("rank_0", f"adam_m.{EMBEDDING}", 4 * 8 * 4)]


def test_a_rank_that_fails_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1, keep=1)

    def job(world):
        own = groups(2, MANY, world.rank)
        if world.rank == 5:
            own["optimizer"].values.popitem()
        save_run_state(tmp_path, 2, own, {}, 1, world)

    with pytest.raises(ValueError, match=r"rank 5: tensors \['adam_v.* are missing or extra"):
        SimulatedWorld(8, monkeypatch).run(job)
    assert latest_run_state(tmp_path) == tmp_path / "step_1"
    assert names(tmp_path) == ["step_1", "step_2.tmp"]
    save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step_2"]


def test_a_slice_of_another_shape_is_not_saved(tmp_path):
    own = groups(1)
    own["actor"].values[NORM] = np.ones(4, np.float32)
    with pytest.raises(ValueError, match=rf"rank 0: {NORM} has shape \(4,\), its layout says \(8,\)"):
        save_run_state(tmp_path, 1, own, {}, 1, World())
    own["actor"].values["adam_m.other"] = np.ones(4, np.float32)
    with pytest.raises(ValueError, match=r"adam_m.other: belongs to no parameter"):
        save_run_state(tmp_path, 1, own, {}, 1, World())


def test_ranks_on_another_file_system_are_noticed(tmp_path, monkeypatch):
    write = module._write_rank
    monkeypatch.setattr(module, "_write_rank", lambda folder, *rest: write(folder, *rest) if rest[1] != 3 else None)
    with pytest.raises(UserError, match=r"rank_3/actor.safetensors: was written on another host.*all hosts share"):
        SimulatedWorld(8, monkeypatch).run(lambda w: save_run_state(tmp_path, 1, groups(1, MANY, w.rank), {}, 1, w))
    assert latest_run_state(tmp_path) is None


def test_only_the_newest_are_kept_and_order_is_by_number(tmp_path):
    for step in (8, 9, 10, 11):
        save(tmp_path, step, keep=3)
    assert names(tmp_path) == ["step_10", "step_11", "step_9"]
    assert latest_run_state(tmp_path).name == "step_11"


def test_the_one_just_written_always_stays(tmp_path):
    save(tmp_path, 10, keep=1)
    save(tmp_path, 4, keep=1)
    assert names(tmp_path) == ["step_4"]


def test_leftovers_go_at_the_next_save(tmp_path):
    (tmp_path / "step_3.tmp" / "rank_1").mkdir(parents=True)
    (tmp_path / "step_3.tmp" / "rank_1" / "actor.safetensors").write_bytes(b"half")
    assert latest_run_state(tmp_path) is None
    save(tmp_path, 4, keep=1)
    assert names(tmp_path) == ["step_4"]


def test_refusals(tmp_path):
    assert latest_run_state(tmp_path / "missing") is None
    save(tmp_path, 1, keep=1)
    with pytest.raises(UserError, match="saved already"):
        save(tmp_path, 1, keep=1)
    with pytest.raises(ValueError, match="keep is 0"):
        save(tmp_path, 2, keep=0)
    with pytest.raises(UserError, match=r"no readable state.json"):
        load_run_state(tmp_path / "step_9")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "rank_0" / "actor.safetensors").unlink(), "rank_0/actor.safetensors is missing"),
        (
            lambda path: (path / "rank_0" / "optimizer.safetensors").write_bytes(b"x"),
            "optimizer.safetensors is missing or",
        ),
        (lambda path: (path / "actor_strategy.ckpt").write_bytes(b""), "actor_strategy.ckpt is missing or"),
        (lambda path: (path / "state.json").write_text("{"), "no readable state.json"),
        (lambda path: (path / "state.json").write_text("{}"), "no readable state.json"),
        (lambda path: (path / "state.json").unlink(), "no readable state.json"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage, message):
    save(tmp_path, 1, keep=2)
    damage(save(tmp_path, 2, keep=2))
    assert latest_run_state(tmp_path).name == "step_1"
    with pytest.raises(UserError, match=message):
        load_run_state(tmp_path / "step_2")


def test_a_damaged_checkpoint_is_made_anew(tmp_path):
    save(tmp_path, 1, keep=5)
    damaged = save(tmp_path, 2, keep=5)
    (damaged / "rank_0" / "actor.safetensors").write_bytes(b"half")
    assert latest_run_state(tmp_path) == tmp_path / "step_1"
    assert save(tmp_path, 2, keep=5) == damaged
    assert_holds(latest_run_state(tmp_path), 2)
    assert names(tmp_path) == ["step_1", "step_2"]


WRITER = """
import sys
import numpy as np
from r1parallel.checkpoint.run_state import latest_run_state, save_run_state
from r1parallel.checkpoint.writing.shards import Shards
from r1parallel.config.model import ModelConfig
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.launch.world import World

config = ModelConfig(16, 8, 12, 2, 4, 2)
latest = latest_run_state(sys.argv[1])
step = int(latest.name[5:]) if latest else 0
while True:
    step += 1
    values = {name: np.full(shape, step, np.float32) for name, shape in config.parameter_shapes().items()}
    groups = {group: Shards(ModelLayout(config, Mesh()), values) for group in ("actor", "reference")}
    save_run_state(sys.argv[1], step, groups, {"step": step}, 2, World())
    print(step, flush=True)
"""


def test_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    chance = random.Random(0)
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            reported = int(writer.stdout.readline())
            time.sleep(chance.uniform(0, 0.05))
        finally:
            writer.send_signal(signal.SIGKILL)
            rest, _ = writer.communicate(timeout=30)
        reported = max([reported, *(int(line) for line in rest.split("\n")[:-1] if line)])
        path = latest_run_state(tmp_path)
        sources, state = load_run_state(path)
        assert state["step"] == json.loads((path / "state.json").read_text())["step"] >= reported
        assert set(sources) == {"actor", "reference"}
        for source in sources.values():
            assert len(source.shapes) == 27
            assert all((source.read(name) == state["step"]).all() for name in source.shapes)
