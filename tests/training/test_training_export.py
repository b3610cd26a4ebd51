import json

import numpy as np
import pytest
from helpers.one_rank import save_model
from helpers.simulated_world import SimulatedWorld
from helpers.tiny_runs import MODEL, folder_bytes

from r1parallel.checkpoint.convert import Target, convert_weight
from r1parallel.checkpoint.export import save_model_merged, save_model_ranks
from r1parallel.checkpoint.load import config_beside, read_model
from r1parallel.checkpoint.reading.source import STRATEGY_FILE
from r1parallel.checkpoint.slice import merge_checkpoint, slice_checkpoint
from r1parallel.checkpoint.writing.shards import Shards
from r1parallel.data.problems.arithmetic import write_character_tokenizer
from r1parallel.data.text.tokenizer import load_tokenizer
from r1parallel.errors import UserError
from r1parallel.models.parameters import random_values
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.strategy_files import read_strategy
from r1parallel.parallel.layout.table import ModelLayout

ONE = ModelLayout(MODEL, Mesh())
MANY = ModelLayout(MODEL, Mesh(dp=2, tp=2), opt_shard=True)
SAVES = [(save_model_merged, ONE), (save_model_merged, MANY), (save_model_ranks, ONE), (save_model_ranks, MANY)]


def cut(values, layout, rank):
    regions = {name: layout.slices(name, rank) for name in values}
    return Shards(layout, {name: values[name][r] for name, r in regions.items() if r is not None})


@pytest.fixture
def tokenizer(tmp_path):
    write_character_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize(("save", "layout"), SAVES)
def test_every_tool_can_open_what_was_saved(tmp_path, tokenizer, monkeypatch, save, layout):
    folder = tmp_path / "model"
    for seed in (0, 1):  # the second replaces the first
        values = random_values(MODEL, seed)

        def job(world, values=values):
            return save(folder, cut(values, layout, world.rank), tokenizer, [1, 0], world)

        assert set(SimulatedWorld(layout.world_size, monkeypatch).run(job)) == {folder}
        read = read_model(folder, MODEL)
        assert read.keys() == values.keys()
        for name, value in values.items():
            np.testing.assert_array_equal(read[name], value)
    assert config_beside(folder) == MODEL
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == [1, 0]
    assert load_tokenizer(folder).stop_ids == [1, 0]
    assert not list(tmp_path.rglob("*.tmp*"))


def test_a_merged_model_is_what_one_process_writes(tmp_path, tokenizer, monkeypatch):
    values = random_values(MODEL, 0)
    save_model(tmp_path / "one", values, MODEL, tokenizer, [1])
    many = tmp_path / "many"
    SimulatedWorld(4, monkeypatch).run(
        lambda world: save_model_merged(many, cut(values, MANY, world.rank), tokenizer, [1], world)
    )
    assert folder_bytes(many) == folder_bytes(tmp_path / "one")


@pytest.mark.parametrize("layout", [ONE, MANY])
def test_a_sliced_model_goes_through_the_tools(tmp_path, tokenizer, monkeypatch, layout):
    values = random_values(MODEL, 0)
    folder = tmp_path / "model"
    SimulatedWorld(layout.world_size, monkeypatch).run(
        lambda world: save_model_ranks(folder, cut(values, layout, world.rank), tokenizer, [1], world)
    )
    for rank in range(layout.world_size):
        found = sorted(path.name for path in (folder / f"rank_{rank}").iterdir())
        assert found == [f"checkpoint_{rank}.safetensors{end}" for end in ("", ".manifest.json")]
    assert read_strategy(folder / STRATEGY_FILE).world_size == layout.world_size
    merge_checkpoint(folder, tmp_path / "merged", layout)
    slice_checkpoint(folder, tmp_path / "other", ModelLayout(MODEL, Mesh(tp=2)))
    merge_checkpoint(tmp_path / "other", tmp_path / "again", ModelLayout(MODEL, Mesh(tp=2)))
    convert_weight(folder, tmp_path / "hf", Target(names="hf"))
    for result in ("merged", "again", "hf"):
        for name, value in read_model(tmp_path / result, MODEL).items():
            np.testing.assert_array_equal(value, values[name])


def test_a_smaller_job_leaves_no_ranks_of_a_larger_one(tmp_path, tokenizer, monkeypatch):
    folder = tmp_path / "model"
    for layout in (MANY, ONE):
        values = random_values(MODEL, layout.world_size)
        SimulatedWorld(layout.world_size, monkeypatch).run(
            lambda world, layout=layout, values=values: save_model_ranks(
                folder, cut(values, layout, world.rank), tokenizer, [1], world
            )
        )
    assert [path.name for path in folder.glob("rank_*")] == ["rank_0"]
    np.testing.assert_array_equal(read_model(folder, MODEL)["model.norm_out.weight"], values["model.norm_out.weight"])


def test_copies_that_differ_are_not_converted(tmp_path, tokenizer, monkeypatch):
    layout = ModelLayout(MODEL, Mesh(dp=2))
    folder = tmp_path / "model"
    SimulatedWorld(2, monkeypatch).run(
        lambda world: save_model_ranks(
            folder, cut(random_values(MODEL, world.rank), layout, world.rank), tokenizer, [1], world
        )
    )
    with pytest.raises(UserError, match="differs from its copy in"):
        convert_weight(folder, tmp_path / "hf", Target(names="hf"))
    assert not (tmp_path / "hf").exists()
