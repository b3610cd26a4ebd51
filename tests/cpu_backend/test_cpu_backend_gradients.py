import numpy as np
import pytest
from kernel_runs import normal, run
from mindspore import Parameter, Tensor, float16, nn, ops
from mindspore.ops.auto_generate import InplaceZero
from mindspore.ops.operations.inner_ops import FusedCastAdamWeightDecay

pytestmark = pytest.mark.usefixtures("fused_kernels")
SHAPES = [(1,), (3, 5), (1031,), (1 << 16,), (257, 1024), (3, 65537)]  # shares and lines that come out even, and not


class HalfSquares(nn.Cell):
    def __init__(self):
        super().__init__()
        self.loss = ops.L2Loss()

    def construct(self, x):
        return self.loss(x)


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


class Adam(nn.Cell):
    def __init__(self, parameter, first, second):
        super().__init__()
        values = {"p": parameter, "m": first, "v": second}
        self.p, self.m, self.v = (Parameter(Tensor(x), name=name) for name, x in values.items())
        self.adam = FusedCastAdamWeightDecay()

    def construct(self, lr, beta1, beta2, eps, decay, gradient, divisor):
        return self.adam(self.p, self.m, self.v, lr, beta1, beta2, eps, decay, gradient, divisor)


@pytest.mark.parametrize("shape", SHAPES)
def test_half_the_squares_are_those_of_float64(shape):
    (x,) = normal(0, shape)
    np.testing.assert_allclose(run(HalfSquares(), x), (x.astype(np.float64) ** 2).sum() / 2, rtol=2e-7)


def test_half_the_squares_of_numbers_that_are_not_finite():
    for value in (np.inf, np.nan, 1e30):
        (x,) = normal(0, (3, 65537))
        x[1, 7] = value
        assert not np.isfinite(run(HalfSquares(), x))


def test_half_the_squares_of_other_types_are_mindspores():
    x = np.array([1.0, 2.0, 3.0])
    assert run(HalfSquares(), x) == 7.0
    assert HalfSquares()(Tensor(x, float16)).asnumpy() == 7.0


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


def test_a_sum_that_is_no_number_stays_none():
    cell = AddTo(np.array([1.0, np.nan, np.inf], np.float32))
    np.testing.assert_array_equal(run(cell, np.ones(3, np.float32)), [2.0, np.nan, np.inf])


def test_sums_of_other_types_are_mindspores():
    cell = AddTo(np.arange(70, dtype=np.int32))
    np.testing.assert_array_equal(run(cell, np.full(70, 2, np.int32)), np.arange(70) + 2)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_adam_update_is_that_of_float64(shape, decay):
    p, m, v, gradient = normal(0, shape, shape, shape, shape)
    v = np.abs(v)
    cell, by = Adam(p, m, v), np.array([0.01, 0.9, 0.99, 1e-3, decay], np.float32)
    lr, beta1, beta2, eps, _ = by.astype(np.float64)
    cell(*(Tensor(x) for x in by), Tensor(gradient), Tensor(np.float32(4.0)))
    p, m, v, g = (x.astype(np.float64) for x in (p, m, v, gradient / 4))
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    p = p - lr * (m / (np.sqrt(v) + eps) + by[4].astype(np.float64) * p)
    for actual, wanted in ((cell.m, m), (cell.v, v), (cell.p, p)):
        np.testing.assert_allclose(actual.asnumpy(), wanted, rtol=2e-6, atol=2e-7)


def test_a_gradient_of_another_type_is_mindspores():
    p, m, v, gradient = (np.ones(3, np.float32) for _ in range(4))
    cell = Adam(p, m, v)
    numbers = (Tensor(np.float32(x)) for x in (0.5, 0.5, 0.5, 0.0, 0.0))
    cell(*numbers, Tensor(gradient, float16), Tensor(np.float32(1.0)))
    np.testing.assert_allclose(cell.p.asnumpy(), 0.5, rtol=1e-6)
