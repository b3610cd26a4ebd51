from dataclasses import replace

import numpy as np
import pytest
from helpers.tiny_runs import MODEL, sft_config, tiny_inputs
from mindspore import Tensor

from r1parallel.config.model import ModelConfig
from r1parallel.data.mindrecord import read_mindrecord
from r1parallel.errors import UserError
from r1parallel.models.logps import CompletionLogps
from r1parallel.models.parameters import load_parameters, parameter_values, random_values
from r1parallel.parallel.launch.world import World
from r1parallel.training.sft import SFTTrainer

pytestmark = pytest.mark.usefixtures("mindspore_cpu")


@pytest.fixture(scope="module")
def inputs():
    return tiny_inputs()


def make_trainer(inputs, **changes):
    config = sft_config(inputs, inputs.folder / "unused", **changes)
    trainer = SFTTrainer(config, MODEL, read_mindrecord(inputs.train), read_mindrecord(inputs.held_out), World())
    load_parameters(trainer.model, random_values(MODEL, 0, 0.3), "random")
    return trainer


@pytest.fixture(scope="module")
def trainer(inputs, mindspore_cpu):
    return make_trainer(inputs)


def token_logps(trainer, rows, indices):
    """Log-prob of every answer token of these rows, each row alone."""
    alone = CompletionLogps(trainer.model, 1, trainer.prompt_length, trainer.answer_length)
    result = []
    for i in indices:
        tokens, starts, mask = trainer.batch(rows, np.array([i]))
        result.append(alone(Tensor(tokens), Tensor(starts)).asnumpy()[0][mask[0] > 0].astype(np.float64))
    return result


def test_batch_holds_prompt_answer_and_a_mask_of_the_answer(trainer):
    rows = trainer.rows
    indices = np.array([5, 0, 31])
    tokens, starts, mask = trainer.batch(rows, indices)
    for row, i in enumerate(indices):
        prompt = tokens[row, starts[row] : trainer.prompt_length]
        assert prompt.tolist() == rows.prompt_ids[i, : rows.prompt_lengths[i]].tolist()
        answer = tokens[row, trainer.prompt_length :][mask[row] > 0]
        assert answer.tolist() == rows.answer_ids[i, : rows.answer_lengths[i]].tolist()
        assert mask[row].sum() == rows.answer_lengths[i]
    assert (tokens.dtype, starts.dtype, mask.dtype) == (np.int32, np.int32, np.float32)


def test_evaluation_is_the_mean_over_all_answer_tokens(trainer):
    logps = np.concatenate(token_logps(trainer, trainer.held_out, range(10)))  # 10 rows: two and a half batches
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(-logps.mean(), rel=1e-5)
    assert metrics["eval_token_probability"] == pytest.approx(np.exp(logps).mean(), rel=1e-5)


def test_the_first_loss_is_the_mean_over_the_answer_tokens_of_the_update(trainer):
    before = parameter_values(trainer.model)
    logps = np.concatenate(token_logps(trainer, trainer.rows, trainer.order.indices(0)))
    metrics = trainer.update(0)
    assert metrics["loss"] == pytest.approx(-logps.mean(), rel=1e-5)
    assert metrics["tokens"] == len(logps)
    assert metrics["lr"] == pytest.approx(0.005)  # the first of two updates of warm-up
    assert metrics["grad_norm"] > 0
    assert any((before[name] != value).any() for name, value in parameter_values(trainer.model).items())


def test_bad_weights_stop_the_run_and_name_the_rows(trainer):
    good = parameter_values(trainer.model)
    broken = {name: np.full_like(value, np.nan) if "norm_out" in name else value for name, value in good.items()}
    load_parameters(trainer.model, broken, "broken")
    rows = ", ".join(str(i) for i in trainer.order.indices(6))
    with pytest.raises(UserError, match=f"loss is nan at update 7, data set rows {rows}; stopped before the update"):
        trainer.update(6)
    for name, value in parameter_values(trainer.model).items():
        np.testing.assert_array_equal(value, broken[name])
    load_parameters(trainer.model, good, "good")


def test_rows_longer_than_the_models_positions_are_refused(inputs):
    config = sft_config(inputs, inputs.folder / "unused")
    short = ModelConfig(**{**vars(MODEL), "max_position_embeddings": 20})
    with pytest.raises(UserError, match=r"rows need \d\d positions, the model has 20; prepare the data with a smaller"):
        SFTTrainer(config, short, read_mindrecord(inputs.train), None, World())


def test_steps_come_from_max_steps_or_from_the_epochs(inputs):
    rows = read_mindrecord(inputs.train)
    config = sft_config(inputs, inputs.folder / "unused", max_steps=0, epochs=3)
    assert SFTTrainer(config, MODEL, rows, None, World()).total == 3 * 32 // 8
    config.sft_config.max_steps = 5
    assert SFTTrainer(config, MODEL, rows, None, World()).total == 5


def test_an_update_larger_than_the_data_set_is_refused(inputs):
    rows = read_mindrecord(inputs.train)
    few = replace(rows, prompt_ids=rows.prompt_ids[:7])
    with pytest.raises(UserError, match="a batch of 8 rows cannot be cut from a data set of 7"):
        SFTTrainer(sft_config(inputs, inputs.folder / "unused"), MODEL, few, None, World())
