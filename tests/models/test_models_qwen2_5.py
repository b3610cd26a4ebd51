"""What padding, masks and positions may and may not change. Numbers are checked in tests/parity."""

from dataclasses import replace

import numpy as np
import pytest
from mindspore import Tensor

from r1parallel.data.batches import right_aligned
from r1parallel.models.parameters import load_parameters
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM

SLOTS = 8
ROWS = [[5, 9, 2, 30], [7, 7, 1, 0, 36, 4, 12, 8], [11]]


@pytest.fixture(scope="module")
def run(mindspore_cpu, tiny_config, noisy_values):
    """run(tokens [3, 8], starts [3]) → logits [3, 8, V]."""
    return make_run(tiny_config, noisy_values(tiny_config, seed=6))


def make_run(config, values, counts=None):
    model = Qwen2ForCausalLM(config, SLOTS)
    if counts is not None:
        model.model.cut(counts)
    load_parameters(model, values, "random values")
    model.set_train(False)
    slots = Tensor(np.arange(SLOTS, dtype=np.int32))

    def call(tokens, starts) -> np.ndarray:
        logits = model(Tensor(np.asarray(tokens, np.int32)), slots, Tensor(np.asarray(starts, np.int32)))
        return logits.asnumpy().reshape(len(ROWS), SLOTS, -1)

    return call


def test_what_stands_in_the_padding_changes_nothing(run):
    tokens, starts = right_aligned(ROWS, SLOTS, 0)
    other, _ = right_aligned(ROWS, SLOTS, 36)
    logits, others = run(tokens, starts), run(other, starts)
    assert np.isfinite(logits).all()  # padding positions too: a nan there would poison gradients
    for row, start in enumerate(starts):
        np.testing.assert_array_equal(logits[row, start:], others[row, start:])
    assert (logits[0, 0] != others[0, 0]).any()


def test_a_row_may_stand_anywhere(run):
    """Positions count from the row's first token, wherever its slots are."""
    tokens, starts = right_aligned(ROWS, SLOTS, 0)
    moved, new_starts = tokens.copy(), starts.copy()
    moved[0, :4], new_starts[0] = ROWS[0], 0
    logits, others = run(tokens, starts), run(moved, new_starts)
    np.testing.assert_allclose(logits[0, 4:], others[0, :4], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(logits[1], others[1])  # rows do not see each other


def test_a_token_changes_itself_and_what_follows_only(run):
    tokens, starts = right_aligned(ROWS, SLOTS, 0)
    changed = tokens.copy()
    changed[1, 4] = 20
    logits, others = run(tokens, starts), run(changed, starts)
    np.testing.assert_array_equal(logits[1, :4], others[1, :4])
    assert (np.abs(logits[1, 4:] - others[1, 4:]).max(axis=-1) > 1e-3).all()


def test_order_matters(run):
    """Without positions, attention could not tell these two rows apart at their last token."""
    tokens, starts = right_aligned(ROWS, SLOTS, 0)
    swapped = tokens.copy()
    swapped[0, [4, 5]] = swapped[0, [5, 4]]
    assert np.abs(run(tokens, starts)[0, -1] - run(swapped, starts)[0, -1]).max() > 1e-3


@pytest.mark.parametrize("counts", [(1, 1, 1, 1), (3, 1), (1, 3), (2, 2)])
def test_a_model_in_runs_of_layers_is_the_same_model(mindspore_cpu, tiny_config, noisy_values, counts):
    """Runs are what pipeline stages hold; each makes its own geometry from the same slots and starts."""
    config = replace(tiny_config, num_layers=4)
    values = noisy_values(config, seed=6)
    tokens, starts = right_aligned(ROWS, SLOTS, 0)
    expected = make_run(config, values)(tokens, starts)
    np.testing.assert_array_equal(make_run(config, values, counts)(tokens, starts), expected)


def test_cutting_keeps_every_layer_and_every_name(mindspore_cpu, tiny_config):
    model = Qwen2ForCausalLM(tiny_config, SLOTS)
    names = [p.name for p in model.get_parameters()]
    model.model.cut((1, 1))
    assert [p.name for p in model.get_parameters()] == names
    assert len(model.model.geometries) == 2
    with pytest.raises(AssertionError):
        model.model.cut((1, 2))
