import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1parallel.data.batches import RowOrder
from r1parallel.errors import UserError


@given(data=st.data(), num_rows=st.integers(1, 40), seed=st.integers(0, 5))
def test_every_row_once_an_epoch_and_batches_constant(data, num_rows, seed):
    batch_size = data.draw(st.integers(1, num_rows))
    order = RowOrder(num_rows, batch_size, seed)
    batches = [order.indices(step) for step in range(4 * num_rows // batch_size + 1)]
    assert all(batch.shape == (batch_size,) for batch in batches)
    visits = np.concatenate(batches)
    for epoch in range(len(visits) // num_rows):
        assert sorted(visits[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


def test_a_batch_depends_on_the_step_alone():
    order = RowOrder(11, 4, seed=3)
    forward = [order.indices(step) for step in range(20)]
    for step in reversed(range(20)):
        np.testing.assert_array_equal(RowOrder(11, 4, seed=3).indices(step), forward[step])


def test_seeds_and_epochs_differ():
    def order(seed, step):
        return RowOrder(50, 50, seed).indices(step).tolist()

    assert len({tuple(order(seed, step)) for seed in range(3) for step in range(3)}) == 9


def test_changing_a_batch_does_not_change_the_order():
    order = RowOrder(6, 3, seed=0)
    before = order.indices(0).copy()
    order.indices(0)[:] = 0
    np.testing.assert_array_equal(order.indices(0), before)


def test_steps_per_epoch_counts_whole_batches():
    assert RowOrder(11, 4, seed=0).steps_per_epoch == 2
    assert RowOrder(12, 4, seed=0).steps_per_epoch == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 0), "has no rows"),
        ((3, 4, 0), "a batch of 4 rows cannot be cut from a data set of 3"),
        ((3, 0, 0), "a batch of 0 rows"),
        ((3, 1, -1), "seed is -1"),
    ],
)
def test_impossible_orders_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        RowOrder(*arguments)
