from dataclasses import replace

import numpy as np
import pytest
from helpers.tiny_runs import MODEL, SIZES, tiny_inputs

from r1parallel.config.model import ModelConfig
from r1parallel.data.mindrecord import read_mindrecord
from r1parallel.errors import UserError
from r1parallel.training.inputs import fingerprint, load_inputs, load_rows


@pytest.fixture(scope="module")
def inputs():
    return tiny_inputs()


@pytest.fixture
def small_model(tmp_path):
    """model.yaml of a model whose embedding has fewer rows than the tokenizer ids."""

    def make(rows):
        path = tmp_path / "model.yaml"
        sizes = {**SIZES, "vocab_size": rows, "tie_word_embeddings": "true"}
        path.write_text("".join(f"{key}: {value}\n" for key, value in sizes.items()))
        return str(path)

    return make


def test_the_three_inputs_are_read(inputs):
    loaded = load_inputs(str(inputs.model_config), str(inputs.tokenizer), str(inputs.train))
    assert loaded.model == MODEL
    assert loaded.tokenizer.vocab_size <= MODEL.vocab_size
    assert len(loaded.rows.solutions) == 32
    assert loaded.rows.prompt_lengths.min() < loaded.rows.prompt_lengths.max()


def test_a_tokenizer_with_more_ids_than_the_embedding_is_refused(inputs, small_model):
    with pytest.raises(
        UserError, match=r"the tokenizer has 30 ids, the model's embedding 16 rows; is it the tokenizer"
    ):
        load_inputs(small_model(16), str(inputs.tokenizer), str(inputs.train))


def test_a_data_set_with_ids_beyond_the_embedding_is_refused(inputs):
    with pytest.raises(UserError, match=r"train.mindrecord: holds token id \d+, the model's embedding has 9 rows"):
        load_rows(str(inputs.train), ModelConfig(**{**SIZES, "vocab_size": 9}))


def test_fingerprint_tells_data_sets_of_one_size_apart(inputs):
    rows = read_mindrecord(inputs.train)
    assert fingerprint(rows) == fingerprint(read_mindrecord(inputs.train))
    assert fingerprint(rows).startswith("32 rows, sha256 ")
    changed = [
        read_mindrecord(inputs.other),
        replace(rows, solutions=[*rows.solutions[:-1], "no"]),
        replace(rows, prompt_ids=rows.prompt_ids + np.int32(1)),
        replace(rows, answer_ids=rows.answer_ids[:, :-1]),
        replace(rows, answer_lengths=rows.answer_lengths[::-1]),
    ]
    assert len({fingerprint(other) for other in [rows, *changed]}) == 6
