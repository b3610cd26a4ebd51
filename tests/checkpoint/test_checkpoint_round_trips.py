"""From any layout to any other and back: every bit, whatever shapes, dtypes and formats there are."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import safetensors
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from r1parallel.checkpoint import windows
from r1parallel.checkpoint.dtypes import DTYPES, dtype_name
from r1parallel.checkpoint.manifest import SUFFIX
from r1parallel.checkpoint.slice import reshard_checkpoint
from r1parallel.checkpoint.tensor_file import read_file
from r1parallel.checkpoint.tensor_writer import write_checkpoint
from r1parallel.config.model import ModelConfig
from r1parallel.parallel.layout import ModelLayout
from r1parallel.parallel.mesh import Mesh
from r1parallel.parallel.strategy import write_merged_strategy, write_strategy_files
from r1parallel.parallel.tensor_layout import Layout, TensorLayout

# mesh, optimizer parallel, all layers but one each on the last stage; None: not cut
LAYOUTS = {
    "full": None,
    "dp2": (Mesh(dp=2), False, False),
    "tp2": (Mesh(tp=2), False, False),
    "tp4": (Mesh(tp=4), False, False),
    "pp2": (Mesh(pp=2), False, False),
    "pp3-uneven": (Mesh(pp=3), False, True),
    "dp2-opt": (Mesh(dp=2), True, False),
    "dp2-tp2": (Mesh(dp=2, tp=2), False, False),
    "tp2-pp2": (Mesh(tp=2, pp=2), False, False),
    "dp2-tp2-opt": (Mesh(dp=2, tp=2), True, False),
    "dp2-pp2-opt": (Mesh(dp=2, pp=2), True, False),
    "dp2-tp2-pp2-opt-uneven": (Mesh(dp=2, tp=2, pp=2), True, True),
}
FORMATS = ("safetensors", "ckpt")
STATES = ("adam_m.", "adam_v.")
EVERYWHERE = {"global_step": np.array(7, np.int64), "learning_rate": np.array([0.1], np.float32)}


@pytest.fixture(autouse=True)
def many_windows_and_no_waiting(monkeypatch):
    monkeypatch.setattr(windows, "WINDOW", 500)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a second for every few folders, and nothing crashes


@dataclass(frozen=True)
class Model:
    """Sizes, and random bits for every parameter, its optimizer state, and two numbers that no strategy names."""

    config: ModelConfig
    tensors: Mapping[str, np.ndarray]

    def layout(self, name: str) -> ModelLayout | None:
        if LAYOUTS[name] is None:
            return None
        mesh, opt_shard, uneven = LAYOUTS[name]
        stages = (*[1] * (mesh.pp - 1), self.config.num_layers - mesh.pp + 1) if uneven else None
        return ModelLayout(self.config, mesh, opt_shard, stages)

    def write(self, folder: Path) -> None:
        write_checkpoint(folder, [(name, a.shape, dtype_name(a.dtype), a) for name, a in self.tensors.items()])

    def on_rank(self, layout: Layout, rank: int) -> dict[str, np.ndarray]:
        """What numpy cuts for a rank."""
        parameters = layout.stages[rank // layout.stage_size]
        held = {
            prefix + name: self.tensors[prefix + name][layout.cut(name, self.tensors[name].shape, rank)]
            for name in parameters
            for prefix in ("", *STATES)
            if prefix + name in self.tensors
        }
        return held | {name: self.tensors[name] for name in EVERYWHERE if name in self.tensors}


def random_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Not-a-numbers of all kinds are among them."""
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * DTYPES[dtype].itemsize), DTYPES[dtype]).reshape(shape)


def random_model(seed: int, tied: bool, with_state: bool = True) -> Model:
    """Sizes that every layout can cut: four key heads at least, all but the layers multiples of 4."""
    rng = np.random.default_rng(seed)
    heads = 4 * int(rng.integers(1, 3))
    sizes = rng.integers(1, 6, 2) * 4
    config = ModelConfig(
        vocab_size=int(sizes[0]),
        hidden_size=heads * 2 * int(rng.integers(1, 3)),
        intermediate_size=int(sizes[1]),
        num_layers=4,
        num_heads=heads,
        num_kv_heads=4,
        tie_word_embeddings=tied,
    )
    shapes = config.parameter_shapes()
    tensors = {name: random_bits(rng, shape, str(rng.choice(["F32", "F16", "BF16"]))) for name, shape in shapes.items()}
    if with_state:
        tensors |= {prefix + name: random_bits(rng, shapes[name], "F32") for prefix in STATES for name in shapes}
        tensors |= EVERYWHERE
    return Model(config, tensors)


def contents(file: Path) -> dict[str, tuple[str, tuple[int, ...], bytes, str | None]]:
    """Name → dtype, shape, bytes and the manifest's hash; of safetensors as their own library reads them."""
    entries, content = read_file(file)[0], file.read_bytes()
    if file.suffix == ".safetensors":
        found = safetensors.deserialize(content)
        tensors = {name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"])) for name, tensor in found}
    else:
        data = {n: b"".join(content[begin : begin + size] for begin, size in e.extents) for n, e in entries.items()}
        tensors = {name: (entry.dtype, entry.shape, data[name]) for name, entry in entries.items()}
    return {name: (*tensor, entries[name].digest) for name, tensor in tensors.items()}


def check_file(file: Path, expected: Mapping[str, np.ndarray]) -> None:
    """A weights file and its manifest hold these arrays and nothing else."""
    data = {name: array.tobytes() for name, array in expected.items()}
    assert contents(file) == {
        name: (dtype_name(array.dtype), array.shape, data[name], xxhash.xxh3_128_hexdigest(data[name]))
        for name, array in expected.items()
    }


def check_cut(folder: Path, model: Model, layout: Layout, kind: str, prefix: str = "checkpoint_") -> None:
    """Every rank's folder holds the slices of its layout, their manifest, and nothing else."""
    ranks = [f"rank_{rank}" for rank in range(layout.world_size)]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(ranks)
    for rank in range(layout.world_size):
        file = folder / f"rank_{rank}" / f"{prefix}{rank}.{kind}"
        assert {path.name for path in file.parent.iterdir()} == {file.name, file.name + SUFFIX}
        check_file(file, model.on_rank(layout, rank))


def check(folder: Path, model: Model, layout: Layout | None, kind: str) -> None:
    if layout is None:
        check_file(folder / f"model.{kind}", model.tensors)
    else:
        check_cut(folder, model, layout, kind)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """stored(start, kind, tied, with_state): a model of its own sizes in a layout, made once, and the folder."""
    made: dict[tuple[str, str, bool, bool], tuple[Model, Path]] = {}

    def make(start, kind, tied, with_state):
        key = (start, kind, tied, with_state)
        if key not in made:
            model = random_model(len(made), tied, with_state)
            folder = tmp_path_factory.mktemp("stored")
            model.write(folder / "full")
            reshard_checkpoint(folder / "full", folder / "cut", None, model.layout(start), kind=kind)
            check(folder / "cut", model, model.layout(start), kind)
            made[key] = model, folder / "cut"
        return made[key]

    return make


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("start", "end"), product(LAYOUTS, LAYOUTS))
def test_every_layout_to_every_other_and_back(tmp_path, stored, start, end, kind):
    """Each pair in both formats: once of a tied, once of an untied model, one of them with optimizer state."""
    i, j = (list(LAYOUTS).index(name) for name in (start, end))
    second = FORMATS.index(kind)
    model, source = stored(start, kind, tied=(i + j + second) % 2 == 0, with_state=(i + second) % 2 == 0)
    layout = model.layout(end)
    reshard_checkpoint(source, tmp_path / "other", model.layout(start), layout, kind=kind, workers=1)
    check(tmp_path / "other", model, layout, kind)
    reshard_checkpoint(
        tmp_path / "other", tmp_path / "back", None, None, kind=kind, workers=1
    )  # as its strategy.ckpt says
    check(tmp_path / "back", model, None, kind)


@settings(deadline=None, max_examples=60)
@given(
    path=st.lists(st.tuples(st.sampled_from(list(LAYOUTS)), st.sampled_from(FORMATS)), min_size=1, max_size=2),
    seed=st.integers(0, 2**32 - 1),
    tied=st.booleans(),
    with_state=st.booleans(),
    window=st.integers(1, 3000),
    workers=st.sampled_from([1, 3]),
)
def test_any_shapes_along_any_path(path, seed, tied, with_state, window, workers):
    model = random_model(seed, tied, with_state)
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WINDOW", window)
        folder, before = Path(name), None
        model.write(folder / "0")
        for step, (to, kind) in enumerate([*path, ("full", "safetensors")], start=1):
            layout = model.layout(to)
            reshard_checkpoint(folder / f"{step - 1}", folder / f"{step}", before, layout, kind=kind, workers=workers)
            check(folder / f"{step}", model, layout, kind)
            before = layout


@st.composite
def tensor_layouts(draw, dims: int, devices: tuple[int, ...]):
    """Any layout of a tensor that a strategy file can describe, optimizer parallel in groups included."""
    axes = draw(st.permutations([*range(len(devices)), *[-1] * dims]))[:dims]
    copies = int(np.prod([size for axis, size in enumerate(reversed(devices)) if axis not in axes]))
    size = draw(st.sampled_from([0, -1, *(n for n in range(1, copies + 1) if copies % n == 0)]))
    return TensorLayout(devices, tuple(axes), 1 if size else 0, size)


@st.composite
def worlds(draw, dims: dict[str, int]):
    """Any layout of some tensors, over one or two stages; a tensor may lie on both."""
    devices = draw(st.sampled_from([(1,), (2,), (3,), (2, 2), (2, 3), (4, 2), (2, 2, 2)]))
    stages: list[dict[str, TensorLayout]] = [{} for _ in range(draw(st.integers(1, 2)))]
    for index, (name, count) in enumerate(dims.items()):
        layout = draw(tensor_layouts(count, devices))
        owners = draw(st.sampled_from([[0], [len(stages) - 1], [0, len(stages) - 1]]))
        for stage in {*owners, *([index] if index < len(stages) else [])}:  # no stage without a tensor
            stages[stage][name] = layout
    return Layout(int(np.prod(devices)), tuple(stages))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_tensors_under_any_strategies(data):
    """Not ours alone: whatever MindSpore can write for tensors of one to three dims."""
    dims = {f"w{index}": data.draw(st.integers(1, 3)) for index in range(3)}
    layouts = [data.draw(worlds(dims)) for _ in range(2)]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    tensors = {}
    for name, count in dims.items():
        parts = [table[name].parts for layout in layouts for table in layout.stages if name in table]
        shape = np.lcm.reduce(np.array(parts), axis=0) * rng.integers(1, 4, count)
        tensors[name] = random_bits(rng, tuple(map(int, shape)), str(rng.choice(list(DTYPES))))
    model = Model(ModelConfig(1, 2, 1, 1, 1, 1), tensors)
    with TemporaryDirectory() as name:
        folder = Path(name)
        model.write(folder / "full")
        path = [None, *layouts, None]
        for step, (before, after) in enumerate(pairwise(path)):
            source = folder / ("full" if step == 0 else f"{step}")
            reshard_checkpoint(source, folder / f"{step + 1}", before, after, kind=FORMATS[step % 2])
            check(folder / f"{step + 1}", model, after, FORMATS[step % 2])


@pytest.mark.parametrize("kind", FORMATS)
def test_command_line_with_every_kind_of_strategy_and_any_workers(tmp_path, tool, kind):
    model = random_model(3, tied=True)
    layout = model.layout("dp2-tp2-pp2-opt-uneven")
    model.write(tmp_path / "full")
    write_merged_strategy(layout, tmp_path / "merged.ckpt")
    write_strategy_files(layout, tmp_path / "ranks")
    main = tool("slice_ckpt")
    cuts = [tmp_path / f"{strategy}-{workers}" for strategy in ("merged.ckpt", "ranks") for workers in (1, 3)]
    for cut in cuts:
        strategy, workers = cut.name.split("-")
        source = ["--src_checkpoint", str(tmp_path / "full"), "--dst_strategy", str(tmp_path / strategy)]
        flags = ["--prefix", "p_", "--output_format", kind, "--transform_process_num", workers, "--world_size", "8"]
        main([*source, "--dst_checkpoint_dir", str(cut), *flags])
    check_cut(cuts[0], model, layout, kind, "p_")
    assert all(tree(cut) == tree(cuts[0]) for cut in cuts)
    source = ["--src_checkpoint", str(cuts[0]), "--src_strategy", str(tmp_path / "ranks")]
    flags = ["--output_format", kind, "--transform_process_num", "3"]
    main([*source, "--dst_checkpoint_dir", str(tmp_path / "back"), *flags])
    check(tmp_path / "back", model, None, kind)


def test_ranks_written_by_several_calls_are_the_whole(tmp_path, tool):
    model = random_model(4, tied=False)
    layout = model.layout("dp2-tp2-opt")
    model.write(tmp_path / "full")
    (tmp_path / "full" / "tokenizer.json").write_text("{}")
    write_merged_strategy(layout, tmp_path / "s.ckpt")
    main = tool("slice_ckpt")
    cut = ["--src_checkpoint", str(tmp_path / "full"), "--dst_strategy", str(tmp_path / "s.ckpt")]
    main([*cut, "--dst_checkpoint_dir", str(tmp_path / "whole")])
    check_cut(tmp_path / "whole", model, layout, "safetensors")
    for ranks in ("3,0", "1-2"):
        main([*cut, "--dst_checkpoint_dir", str(tmp_path / "parts"), "--rank_id", ranks])
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")


def test_the_same_layout_in_python_may_be_written_by_several_calls(tmp_path):
    model = random_model(5, tied=False)
    layout = model.layout("tp2")
    model.write(tmp_path / "full")
    for rank in range(2):
        reshard_checkpoint(tmp_path / "full", tmp_path / "cut", None, layout, ranks=[rank])
    check_cut(tmp_path / "cut", model, layout, "safetensors")


def test_many_ranks_in_one_call(tmp_path):
    layout = Layout(200, ({"w": TensorLayout((200,), (0,))},))
    model = Model(ModelConfig(1, 2, 1, 1, 1, 1), {"w": np.arange(200, dtype=np.float32)})
    model.write(tmp_path / "full")
    reshard_checkpoint(tmp_path / "full", tmp_path / "cut", None, layout, ranks=range(150))
    reshard_checkpoint(tmp_path / "full", tmp_path / "cut", None, layout, ranks=range(150, 200))
    check_cut(tmp_path / "cut", model, layout, "safetensors")
