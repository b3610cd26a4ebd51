import json

import numpy as np
import pytest
from tiny_runs import MODEL

from r1parallel.checkpoint.export import save_model_folder, save_model_ranks
from r1parallel.checkpoint.load import config_beside, read_model
from r1parallel.data.arithmetic import write_character_tokenizer
from r1parallel.data.tokenizer import load_tokenizer
from r1parallel.models.parameters import random_values


@pytest.mark.parametrize("save", [save_model_folder, save_model_ranks])
def test_every_tool_can_open_what_was_saved(tmp_path, save):
    write_character_tokenizer(tmp_path / "tokenizer")
    for seed in (0, 1):  # the second replaces the first
        values = random_values(MODEL, seed)
        folder = save(tmp_path / "model", values, MODEL, tmp_path / "tokenizer", [1, 0])
        assert folder == tmp_path / "model"
        read = read_model(folder, MODEL)
        assert read.keys() == values.keys()
        for name, value in values.items():
            np.testing.assert_array_equal(read[name], value)
    assert config_beside(folder) == MODEL
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == [1, 0]
    assert load_tokenizer(folder).stop_ids == [1, 0]
    assert not list(folder.rglob("*.tmp*"))


def test_a_sliced_checkpoint_has_a_folder_for_its_rank(tmp_path):
    write_character_tokenizer(tmp_path / "tokenizer")
    save_model_ranks(tmp_path / "model", random_values(MODEL, 0), MODEL, tmp_path / "tokenizer", [1])
    assert [path.name for path in (tmp_path / "model" / "rank_0").iterdir()] == ["checkpoint_0.safetensors"]
