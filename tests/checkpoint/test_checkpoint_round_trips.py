"""From any layout to any other and back: every bit, whatever shapes, dtypes and formats there are."""

import os
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from helpers.stored import read_all
from hypothesis import given, settings
from hypothesis import strategies as st
from outcomes import tree
from random_models import FORMATS, LAYOUTS, Model, check, check_cut, random_bits, random_model

from r1parallel.checkpoint.formats.dtypes import DTYPES
from r1parallel.checkpoint.reading import windows
from r1parallel.checkpoint.slice import reshard_checkpoint
from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError
from r1parallel.parallel.layout.strategy_files import write_merged_strategy, write_strategy_files
from r1parallel.parallel.layout.tensor_layout import StageLayouts, TensorLayout


@pytest.fixture(autouse=True)
def many_windows_and_no_waiting(monkeypatch):
    monkeypatch.setattr(windows, "WINDOW", 500)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a thousand folders: half the time would go into it


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


@settings(deadline=None, max_examples=50)
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
    return StageLayouts(int(np.prod(devices)), tuple(stages))


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
    main([*source, "--dst_checkpoint_dir", str(tmp_path / "shards"), "--max_shard_size", "1KB"])
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 5
    assert {name: a.tobytes() for name, a in read_all(tmp_path / "shards").items()} == {
        name: a.tobytes() for name, a in model.tensors.items()
    }


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
    layout = StageLayouts(200, ({"w": TensorLayout((200,), (0,))},))
    model = Model(ModelConfig(1, 2, 1, 1, 1, 1), {"w": np.arange(200, dtype=np.float32)})
    model.write(tmp_path / "full")
    reshard_checkpoint(tmp_path / "full", tmp_path / "cut", None, layout, ranks=range(150))
    reshard_checkpoint(tmp_path / "full", tmp_path / "cut", None, layout, ranks=range(150, 200))
    check_cut(tmp_path / "cut", model, layout, "safetensors")


def test_the_source_is_not_where_ranks_go(tmp_path):
    model = random_model(6, tied=False)
    model.write(tmp_path / "full")
    before = tree(tmp_path / "full")
    with pytest.raises(UserError, match="full"):
        reshard_checkpoint(tmp_path / "full", tmp_path / "full", None, model.layout("tp2"), ranks=[0])
    assert tree(tmp_path / "full") == before


def test_ranks_of_another_strategy_do_not_mix(tmp_path):
    model = random_model(7, tied=False)
    model.write(tmp_path / "full")
    reshard_checkpoint(tmp_path / "full", tmp_path / "cut", None, model.layout("tp2"), ranks=[0])
    before = tree(tmp_path / "cut")
    with pytest.raises(UserError, match="cut: holds ranks of another strategy; choose another folder"):
        reshard_checkpoint(tmp_path / "full", tmp_path / "cut", None, model.layout("dp2"), ranks=[1])
    with pytest.raises(UserError, match="rank_0: is there already and not empty"):
        reshard_checkpoint(tmp_path / "full", tmp_path / "cut", None, model.layout("tp2"), ranks=[1, 0])
    with pytest.raises(UserError, match="--rank_id 2: --dst_strategy is for ranks 0 to 1"):
        reshard_checkpoint(tmp_path / "full", tmp_path / "cut", None, model.layout("tp2"), ranks=[1, 2])
    assert tree(tmp_path / "cut") == before
