import json
import threading
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.simulated_world import SimulatedWorld
from hypothesis import given, settings
from hypothesis import strategies as st

from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError
from r1parallel.parallel.launch.msrun import run_workers
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout, even_stages
from r1parallel.parallel.moving import reshard as reshard_module
from r1parallel.parallel.moving import transport as transport_module
from r1parallel.parallel.moving.reshard import exchanged, reshard, reshard_plan
from r1parallel.parallel.moving.slice_checksums import check_resharded_slices, checksum
from r1parallel.parallel.moving.transport import SendReceive, SharedMemory, choose_transport

SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_layers": 3,
    "num_heads": 8,
    "num_kv_heads": 4,
}
EMBEDDING = "model.tok_embeddings.embedding_weight"
NORM = "model.norm_out.weight"


def full_values(config, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in config.parameter_shapes().items()}


def cut(layout, rank, full):
    """What a rank of the job holds."""
    regions = {name: layout.slices(name, rank % layout.world_size) for name in full}
    return {name: full[name][region].copy() for name, region in regions.items() if region is not None}


def same(one, other):
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


class Mail:
    """A transport for ranks that take turns: a first pass of all ranks posts, a second one collects."""

    def __init__(self):
        self.posted = {}

    def of(self, rank, collect):
        rounds = iter(range(10**6))

        def exchange(counts, outgoing):
            number = next(rounds)
            if not collect:
                for receiver, array in outgoing.items():
                    assert array.dtype == np.float32
                    assert array.shape == (counts[rank, receiver],)
                    self.posted[number, rank, receiver] = array
                return {sender: np.zeros(n, np.float32) for (sender, to), n in counts.items() if to == rank}
            return {sender: self.posted.pop((number, sender, rank)) for sender, to in counts if to == rank}

        return SimpleNamespace(exchange=exchange)


def carry_out(plan, held):
    mail = Mail()
    for collect in (False, True):
        results = [reshard(plan, rank, held[rank], mail.of(rank, collect)) for rank in range(plan.world_size)]
    assert not mail.posted
    return results


@st.composite
def layouts(draw, config, ranks):
    meshes = [
        Mesh(dp, pp, tp)
        for dp in (1, 2, 3, 4)
        for pp in (1, 2, 3)
        for tp in (1, 2, 4)
        if dp * pp * tp <= ranks and ranks % (dp * pp * tp) == 0
    ]
    mesh = draw(st.sampled_from(meshes))
    stages = even_stages(config.num_layers, mesh.pp)
    return ModelLayout(config, mesh, draw(st.booleans()), draw(st.sampled_from([stages, stages[::-1]])))


@st.composite
def problems(draw):
    config = ModelConfig(**SIZES, tie_word_embeddings=draw(st.booleans()))
    ranks = draw(st.sampled_from([1, 2, 4, 6, 8]))
    return draw(layouts(config, ranks)), draw(layouts(config, ranks)), ranks


@settings(deadline=None, max_examples=60)
@given(problems())
def test_every_rank_gets_its_slices_and_every_element_once(problem):
    source, target, ranks = problem
    full = full_values(source.config)
    plan = reshard_plan(source, target, ranks)
    assert plan == reshard_plan(source, target, ranks)
    counts = defaultdict(lambda: np.zeros((), int))
    for piece in (piece for pieces in plan.rounds for piece in pieces):
        key = (piece.name, piece.receiver)
        if key not in counts:
            counts[key] = np.zeros(full[piece.name].shape, int)
        counts[key][piece.region] += 1
    for rank in range(ranks):
        for name in full:
            need = target.slices(name, rank % target.world_size)
            if need is None:
                assert (name, rank) not in counts
            else:
                assert (counts[name, rank][need] == 1).all()
                assert counts[name, rank].sum() == counts[name, rank][need].size
    results = carry_out(plan, [cut(source, rank, full) for rank in range(ranks)])
    for rank, result in enumerate(results):
        assert same(result, cut(target, rank, full))


@settings(deadline=None, max_examples=20)
@given(problems(), st.integers(200, 3000))
def test_small_rounds_bring_the_same(problem, limit):
    source, target, ranks = problem
    full = full_values(source.config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reshard_module, "ROUND_ELEMENTS", limit)
        plan = reshard_plan(source, target, ranks)
    for pieces in plan.rounds:
        sent = defaultdict(int)
        for (sender, _), count in exchanged(pieces).items():
            sent[sender] += count
        assert max(sent.values(), default=0) <= limit or len({piece.name for piece in pieces}) == 1
    results = carry_out(plan, [cut(source, rank, full) for rank in range(ranks)])
    assert all(same(result, cut(target, rank, full)) for rank, result in enumerate(results))


def test_what_a_rank_holds_it_takes_from_itself():
    config = ModelConfig(**SIZES)
    layout = ModelLayout(config, Mesh(dp=2, tp=2))
    plan = reshard_plan(layout, layout, 4)
    assert [exchanged(pieces) for pieces in plan.rounds] == [{}]
    half = reshard_plan(ModelLayout(config, Mesh(dp=4)), ModelLayout(config, Mesh(tp=2)), 4)  # all hold everything
    assert [exchanged(pieces) for pieces in half.rounds] == [{}]


def test_replicas_share_the_sending_evenly():
    config = ModelConfig(**SIZES)
    plan = reshard_plan(ModelLayout(config, Mesh(dp=4, pp=2)), ModelLayout(config, Mesh(dp=8)), 8)
    sent = defaultdict(int)
    for (sender, _), count in exchanged(plan.rounds[0]).items():
        sent[sender] += count
    for stage in (range(4), range(4, 8)):
        assert max(sent[r] for r in stage) - min(sent[r] for r in stage) <= 48 * 32  # the largest tensor


def test_layouts_that_do_not_belong_together_are_refused():
    one, other = ModelConfig(**SIZES), ModelConfig(**SIZES, tie_word_embeddings=True)
    with pytest.raises(ValueError, match="different models"):
        reshard_plan(ModelLayout(one, Mesh()), ModelLayout(other, Mesh()), 1)
    with pytest.raises(ValueError, match="the job has 2"):
        reshard_plan(ModelLayout(one, Mesh(tp=4)), ModelLayout(one, Mesh()), 2)


@pytest.fixture
def actor_to_generator():
    """Two stages with a tied embedding, optimizer parallel, to a generator on half of the ranks."""
    config = ModelConfig(**SIZES, tie_word_embeddings=True)
    source = ModelLayout(config, Mesh(dp=2, pp=2, tp=2), True, (1, 2))
    target = ModelLayout(config, Mesh(dp=2, tp=2))
    return source, target, full_values(config)


def test_shared_memory(actor_to_generator, monkeypatch):
    source, target, _ = actor_to_generator
    monkeypatch.setattr(reshard_module, "ROUND_ELEMENTS", 3000)
    plan = reshard_plan(source, target, 8)
    assert len(plan.rounds) > 2
    memories = set()

    def job(world):
        transport = choose_transport(plan, world)
        assert isinstance(transport, SharedMemory)
        memories.add(Path("/proc/self/maps").read_text().count("r1parallel weights"))
        for seed in (1, 2):  # the memory is used again
            full = full_values(source.config, seed)
            values = cut(source, world.rank, full)
            result = reshard(plan, world.rank, values, transport)
            check_resharded_slices(source, target, world, values, result)
            assert same(result, cut(target, world.rank, full))
        return True

    assert SimulatedWorld(8, monkeypatch).run(job) == [True] * 8
    assert max(memories) > 0  # it has no other name: no file is left whatever happens
    assert not list(Path("/dev/shm").glob("*r1parallel*"))


def test_without_memory_the_user_is_told(actor_to_generator, monkeypatch):
    source, target, _ = actor_to_generator
    plan = reshard_plan(source, target, 8)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transport_module.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"no 0 MiB of memory to pass weights on in: No space left on device"):
        SimulatedWorld(8, monkeypatch).run(lambda world: choose_transport(plan, world))


def test_several_hosts_send_and_receive(actor_to_generator, monkeypatch):
    source, target, _ = actor_to_generator
    plan = reshard_plan(source, target, 8)
    simulated = SimulatedWorld(8, monkeypatch)
    gather = simulated.all_gather

    def other_hosts(world, array, what):
        return gather(world, array + world.rank // 4 if what.startswith("which host") else array, what)

    monkeypatch.setattr(transport_module, "all_gather", other_hosts)
    chosen = simulated.run(lambda world: type(choose_transport(plan, world)))
    assert chosen == [SendReceive] * 8


def test_send_and_receive_never_wait_in_a_circle(actor_to_generator, monkeypatch):
    """Here, as on Ascend, a send waits for its receiver."""
    source, target, full = actor_to_generator
    plan = reshard_plan(source, target, 8)
    slots = defaultdict(lambda: SimpleNamespace(full=threading.Event(), taken=threading.Event(), value=None))
    lock = threading.Lock()

    def cell(self, sender, receiver, count):
        with lock:
            slot = slots[sender, receiver]

        def send(tensor):
            slot.value = tensor.asnumpy()
            slot.full.set()
            assert slot.taken.wait(20)
            return tensor

        def receive(start):
            assert slot.full.wait(20)
            slot.taken.set()
            assert slot.value.shape == (count,)
            return SimpleNamespace(asnumpy=lambda: slot.value)

        return send if self._world.rank == sender else receive

    monkeypatch.setattr(SendReceive, "_cell", cell)

    def job(world):
        result = reshard(plan, world.rank, cut(source, world.rank, full), SendReceive(world))
        return same(result, cut(target, world.rank, full))

    assert SimulatedWorld(8, monkeypatch).run(job) == [True] * 8


def test_one_process_needs_no_transport():
    config = ModelConfig(**SIZES)
    plan = reshard_plan(ModelLayout(config, Mesh()), ModelLayout(config, Mesh()), 1)
    full = full_values(config)
    result = reshard(plan, 0, full, choose_transport(plan, World()))
    assert same(result, full)
    result[NORM][:] = 0.0
    assert full[NORM].any()  # its own arrays


@pytest.mark.parametrize(("rank", "name", "index"), [(0, EMBEDDING, (0, 0)), (5, NORM, 3), (7, EMBEDDING, (23, 31))])
def test_one_changed_element_is_found(actor_to_generator, monkeypatch, rank, name, index):
    source, target, full = actor_to_generator
    caught = []

    def job(world):
        values, result = cut(source, world.rank, full), cut(target, world.rank, full)
        check_resharded_slices(source, target, world, values, result)
        if world.rank == rank:
            result[name].view(np.uint32)[index] ^= 1
        with pytest.raises(RuntimeError, match=f"resharding changed 1 slices: {name} on rank {rank}") as error:
            check_resharded_slices(source, target, world, values, result)
        caught.append(str(error.value))

    SimulatedWorld(8, monkeypatch).run(job)
    assert len(caught) == 8


def test_swapped_slices_are_found(actor_to_generator, monkeypatch):
    source, target, full = actor_to_generator

    def job(world):
        values, result = cut(source, world.rank, full), cut(target, world.rank ^ 1, full)
        with pytest.raises(RuntimeError, match="resharding changed"):
            check_resharded_slices(source, target, world, values, result)

    SimulatedWorld(8, monkeypatch).run(job)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 8), st.integers(0, 8), st.integers(1, 40))
def test_checksums_of_parts_add_up(rows, columns, row, column, chunk):
    values = np.random.default_rng(rows * columns).standard_normal((rows, columns)).astype(np.float32)
    row, column = row % rows, column % columns
    cuts = [(slice(0, row), slice(row, rows)), (slice(0, column), slice(column, columns))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("r1parallel.parallel.moving.slice_checksums._CHUNK", chunk)
        parts = sum(checksum(values[r, c], values.shape, (r, c)) for r in cuts[0] for c in cuts[1])
    assert parts % 2**64 == checksum(values, values.shape, (slice(0, rows), slice(0, columns)))


WORKER = """\
import json
from pathlib import Path

import numpy as np

from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import ContextConfig
from r1parallel.parallel.moving.collectives import all_reduce, barrier
from r1parallel.parallel.device import setup_device
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.moving.reshard import distinct_regions, reshard, reshard_plan
from r1parallel.parallel.moving.transport import SendReceive, SharedMemory, choose_transport
from r1parallel.parallel.moving.slice_checksums import check_resharded_slices
from r1parallel.parallel.worker import run_worker

def main(argv):
    out, sizes = Path(argv[0]), json.loads(argv[1])
    world = setup_device(ContextConfig(wait_limit=60.0))
    report = {}
    for tied in (False, True):
        config = ModelConfig(**sizes, tie_word_embeddings=tied)
        source = ModelLayout(config, Mesh(dp=2, pp=2), True, (1, 2))
        target = ModelLayout(config, Mesh(tp=2))  # on two of the four ranks
        rng = np.random.default_rng(world.rank)
        plan = reshard_plan(source, target, world.size)
        first = np.random.default_rng(0)
        full = {n: first.standard_normal(s).astype(np.float32) for n, s in config.parameter_shapes().items()}
        held = {n: source.slices(n, world.rank) for n in full}
        values = {n: full[n][region].copy() for n, region in held.items() if region is not None}
        merged = {}
        for name, shape in config.parameter_shapes().items():  # the oracle: a sum of tensors that are zero elsewhere
            part = np.zeros(shape, np.float64)
            for holder, region in distinct_regions(source, name):
                if holder == world.rank:
                    part[region] = values[name]
            merged[name] = all_reduce(world, part, name).astype(np.float32)
        expected = {n: merged[n][target.slices(n, world.rank % 2)] for n in merged}
        chosen = choose_transport(plan, world)
        for transport in (chosen, SendReceive(world)):
            for again in range(2):
                result = reshard(plan, world.rank, values, transport)
                check_resharded_slices(source, target, world, values, result)
                equal = all(result[n].tobytes() == np.ascontiguousarray(expected[n]).tobytes() for n in expected)
                report[f"{type(transport).__name__} {tied} {again}"] = equal and result.keys() == expected.keys()
        if world.rank == 2:
            result["model.norm_out.weight"][1] += 1e-7
        try:
            check_resharded_slices(source, target, world, values, result)
        except RuntimeError as error:
            report[f"corrupted {tied}"] = str(error)
    (out / f"report_{world.rank}.json").write_text(json.dumps(report))
    barrier(world, "the end")

run_worker(main)
"""


def test_four_workers(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    job = run_workers(script, [str(tmp_path), json.dumps(SIZES)], 4, tmp_path / "job", limit_s=240)
    assert job.returncode == 0, job.output[-3000:]
    names = ("SharedMemory", "SendReceive")
    keys = [f"{name} {tied} {again}" for tied in (False, True) for name in names for again in (0, 1)]
    for rank in range(4):
        report = json.loads((tmp_path / f"report_{rank}.json").read_text())
        for tied in (False, True):
            assert report.pop(f"corrupted {tied}") == f"resharding changed 1 slices: {NORM} on rank 2"
        assert report == dict.fromkeys(keys, True)
