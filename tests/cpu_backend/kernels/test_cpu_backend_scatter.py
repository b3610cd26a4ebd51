"""ScatterNdUpdate on the CPU, where our kernel writes into the Parameter itself."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

pytestmark = pytest.mark.usefixtures("fused_kernels")

ROWS, SLOTS = 4, 5


class Write(nn.Cell):
    def __init__(self, values, kind=ms.float32):
        super().__init__()
        self.kept = Parameter(Tensor(values, kind), requires_grad=False)
        self.write = ops.ScatterNdUpdate()

    def construct(self, places, updates):
        return self.write(self.kept, places, updates)


def write(values, places, updates, kind=ms.float32):
    """What the Parameter holds after it, which is also what the operator gives."""
    cell = Write(values, kind)
    given = cell(Tensor(places), Tensor(updates, kind)).asnumpy()
    kept = cell.kept.asnumpy()
    np.testing.assert_array_equal(given, kept)
    return kept


def numbers(*shape, first=1):
    return np.arange(first, first + np.prod(shape), dtype=np.float64).reshape(shape)


@pytest.mark.parametrize("kind", [ms.float32, ms.float16, ms.int32, ms.float64])
@pytest.mark.parametrize("line", [(2, 3), (7,), ()], ids=str)
def test_lines_are_written_where_pairs_say(line, kind):
    values, pairs = numbers(ROWS, SLOTS, *line), [[0, 0], [3, 4], [1, 2], [3, 3]]
    updates = -numbers(len(pairs), *line)
    expected = values.copy()
    for (row, slot), update in zip(pairs, updates, strict=True):
        expected[row, slot] = update
    np.testing.assert_array_equal(write(values, np.array(pairs, np.int32), updates, kind), expected)


def test_of_updates_for_one_place_one_is_kept_whole():
    """As for what nobody wants to keep."""
    values, updates = numbers(ROWS, SLOTS, 3), -numbers(2, 3)
    kept = write(values, np.array([[2, 4], [2, 4]], np.int32), updates)
    assert kept[2, 4].tolist() in updates.tolist()
    kept[2, 4] = values[2, 4]
    np.testing.assert_array_equal(kept, values)


@pytest.mark.parametrize(
    ("places", "shape"),
    [
        (np.array([[2], [0]], np.int32), (2, SLOTS, 3)),
        (np.array([[0, 0, 2], [3, 4, 1]], np.int32), (2,)),
        (np.array([[0, 1], [3, 4]], np.int64), (2, 3)),
    ],
    ids=["rows", "numbers", "int64"],
)
def test_other_indices_are_mindspores(places, shape):
    values, updates = numbers(ROWS, SLOTS, 3), -numbers(*shape)
    expected = values.copy()
    for place, update in zip(places, updates, strict=True):
        expected[tuple(place)] = update
    np.testing.assert_array_equal(write(values, places, updates), expected)


def test_what_was_written_stays_for_the_next_call():
    cell = Write(numbers(ROWS, SLOTS, 3))
    expected = numbers(ROWS, SLOTS, 3)
    for call in range(3):
        update = -numbers(1, 3, first=100 * call)
        cell(Tensor(np.array([[call, call + 1]], np.int32)), Tensor(update, ms.float32)).asnumpy()
        expected[call, call + 1] = update[0]
    np.testing.assert_array_equal(cell.kept.asnumpy(), expected)


@pytest.mark.parametrize("pair", [[ROWS, 0], [0, SLOTS], [-1, 0], [0, -1]], ids=str)
def test_places_outside_are_refused(pair):
    cell = Write(numbers(ROWS, SLOTS, 3))
    with pytest.raises(RuntimeError, match="ScatterNdUpdate on CPU was given an index outside of the tensor"):
        cell(Tensor(np.array([pair], np.int32)), Tensor(np.zeros((1, 3), np.float32))).asnumpy()
