import numpy as np
import pytest
from kernel_runs import normal, run
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.ops.auto_generate import InplaceZero

from r1parallel.training.multi_tensor import MultiTensorAdamW, MultiTensorAdd, MultiTensorSquareSum

pytestmark = pytest.mark.usefixtures("fused_kernels")
SHAPES = [(1,), (3, 5), (1031,), (1 << 16,), (257, 1024), (3, 65537)]  # shares and lines that come out even, and not


class Clear(nn.Cell):
    """Reads a Parameter, then clears it."""

    def __init__(self, value):
        super().__init__()
        self.x, self.zero = Parameter(Tensor(value), name="x"), InplaceZero()

    def construct(self, factor):
        return ops.depend(self.x * factor, self.zero(self.x))


class AddTo(nn.Cell):
    """Adds to a Parameter."""

    def __init__(self, value):
        super().__init__()
        self.sum, self.add = Parameter(Tensor(value), name="sum"), ops.AssignAdd()

    def construct(self, x):
        return self.add(self.sum, x)


class AddMany(nn.Cell):
    """Adds to several Parameters."""

    def __init__(self, values):
        super().__init__()
        self.sums, self.add = parameters("sum", values), MultiTensorAdd(len(values))

    def construct(self, *xs):
        return self.add(*self.sums, *xs)


def parameters(kind, values):
    return ParameterTuple([Parameter(Tensor(x), name=f"{kind}_{i}") for i, x in enumerate(values)])


class Squares(nn.Cell):
    def __init__(self, values):
        super().__init__()
        self.xs, self.sums = parameters("x", values), MultiTensorSquareSum(len(values))

    def construct(self):
        return self.sums(*self.xs)


class Adam(nn.Cell):
    """One optimizer step of several tensors."""

    def __init__(self, beta1, beta2, decays, *values):
        super().__init__()
        self.p, self.g, self.m, self.v = (parameters(kind, each) for kind, each in zip("pgmv", values, strict=True))
        self.adam = MultiTensorAdamW(beta1, beta2, decays)

    def construct(self, divisor, lr, per_lr, eps):
        return self.adam(divisor, lr, per_lr, eps, *self.p, *self.g, *self.m, *self.v)


def test_sums_of_squares_are_those_of_float64():
    values = normal(0, *SHAPES)
    wanted = [(x.astype(np.float64) ** 2).sum() for x in values]
    np.testing.assert_allclose(Squares(values)().asnumpy(), wanted, rtol=2e-7)


def test_a_number_that_is_not_finite_spoils_the_sum_of_its_own_tensor():
    values = normal(0, *[(3, 65537)] * 4)
    for x, value in zip(values, (np.inf, np.nan, 1e30), strict=False):
        x[1, 7] = value
    assert np.isfinite(Squares(values)().asnumpy()).tolist() == [False, False, False, True]


@pytest.mark.parametrize("shape", SHAPES)
def test_clearing_comes_after_reading(shape):
    (x,) = normal(0, shape)
    cell = Clear(x)
    np.testing.assert_array_equal(run(cell, np.float32(2.0)), 2 * x)
    assert cell.x.asnumpy().shape == shape and not cell.x.asnumpy().any()
    assert not run(cell, np.float32(2.0)).any()


def test_what_is_not_finite_is_cleared_too():
    cell = Clear(np.array([np.nan, np.inf, 1.0], np.float32))
    run(cell, np.float32(1.0))
    assert not cell.x.asnumpy().any()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_added_up_stays_in_its_place(shape):
    start, x, y = normal(0, shape, shape, shape)
    cell = AddTo(start)
    np.testing.assert_array_equal(run(cell, x), start + x)
    np.testing.assert_array_equal(run(cell, y), start + x + y)
    np.testing.assert_array_equal(cell.sum.asnumpy(), start + x + y)


def test_what_is_added_to_many_stays_in_their_places():
    starts, xs, ys = (normal(number, *SHAPES) for number in range(3))
    cell = AddMany(starts)
    assert run(cell, *xs).tolist() == run(cell, *ys).tolist() == [0.0]
    for total, start, x, y in zip(cell.sums, starts, xs, ys, strict=True):
        np.testing.assert_array_equal(total.asnumpy(), start + x + y)


def test_a_sum_that_is_no_number_stays_none():
    cell = AddTo(np.array([1.0, np.nan, np.inf], np.float32))
    np.testing.assert_array_equal(run(cell, np.ones(3, np.float32)), [2.0, np.nan, np.inf])


def test_sums_of_other_types_are_mindspores():
    cell = AddTo(np.arange(70, dtype=np.int32))
    np.testing.assert_array_equal(run(cell, np.full(70, 2, np.int32)), np.arange(70) + 2)


@pytest.mark.parametrize("divisor", [1.0, 4.0])
def test_an_adam_update_is_that_of_float64(divisor):
    decays = tuple(0.1 * number for number in range(len(SHAPES)))
    p, g, m, v = (normal(number, *SHAPES) for number in range(4))
    v = [np.abs(x) for x in v]
    cell = Adam(0.9, 0.99, decays, p, g, m, v)
    lr, per_lr, eps = 0.01, 3.0, 1e-3
    done = run(cell, *(np.float32(x) for x in (divisor, lr, per_lr, eps)))
    assert done == np.float32(lr)
    for i, decay in enumerate(decays):
        old, slope, first, second = (x[i].astype(np.float64) for x in (p, g, m, v))
        first = 0.9 * first + 0.1 * slope / divisor
        second = 0.99 * second + 0.01 * (slope / divisor) ** 2
        new = old - lr * (first / (np.sqrt(second) + eps) + decay * per_lr * old)
        for actual, wanted in ((cell.m[i], first), (cell.v[i], second), (cell.p[i], new), (cell.g[i], 0 * slope)):
            np.testing.assert_allclose(actual.asnumpy(), wanted, rtol=3e-6, atol=3e-7)


def test_a_gradient_that_is_no_number_is_cleared_too():
    cell = Adam(0.9, 0.99, (0.0,), *[[np.array([1.0, np.nan], np.float32)]] * 4)
    run(cell, *(np.float32(x) for x in (1.0, 0.1, 1.0, 1e-3)))
    assert cell.g[0].asnumpy().tolist() == [0.0, 0.0]
