import numpy as np
import pytest
from kernel_runs import normal, run, run_both
from mindspore import nn, ops

pytestmark = pytest.mark.usefixtures("fused_kernels")


class LogSoftmax(nn.Cell):
    def __init__(self, axis=-1):
        super().__init__()
        self.log_softmax = ops.LogSoftmax(axis)

    def construct(self, x):
        return self.log_softmax(x)


def log_softmax(x, slope, axis=-1):
    """Result and gradient, float64."""
    x, slope = x.astype(np.float64), slope.astype(np.float64)
    shifted = x - x.max(axis, keepdims=True)
    logps = shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))
    return logps, slope - np.exp(logps) * slope.sum(axis, keepdims=True)


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (2, 15), (3, 16), (5, 100), (7, 1024), (2, 1040), (33, 2049), (2, 3, 47), (4, 49152), (3, 151_643)],
    ids=lambda shape: "x".join(map(str, shape)),
)
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_log_softmax_and_its_gradient_are_those_of_float64(shape, spread):
    x, slope = normal(0, shape, shape)
    x *= spread
    result, gradient = log_softmax(x, slope)
    ours, (ours_gradient,) = run_both(LogSoftmax(), (x,), slope)
    np.testing.assert_allclose(ours, result, rtol=2e-7, atol=1e-6 if spread == 1.0 else 1e-5)
    np.testing.assert_allclose(ours_gradient, gradient, rtol=2e-5, atol=1e-6)


def test_a_large_vocabulary_costs_no_digits():
    """Numbers of one size, whose sum taken one after another in float32 is off by much more."""
    (x,) = normal(1, (2, 151_643))
    wanted, _ = log_softmax(x, np.zeros_like(x))
    np.testing.assert_allclose(run(LogSoftmax(), x), wanted, rtol=2e-7)


def test_a_row_does_not_depend_on_the_others():
    x, slope = normal(2, (9, 1000), (9, 1000))
    together, (gradients,) = run_both(LogSoftmax(), (x,), slope)
    alone, (gradient,) = run_both(LogSoftmax(), (x[5:6],), slope[5:6])
    np.testing.assert_array_equal(alone[0], together[5])
    np.testing.assert_array_equal(gradient[0], gradients[5])


def test_tokens_that_cannot_be_drawn_stay_impossible():
    (x,) = normal(3, (2, 70))
    x[0, 5], x[1, 64:] = -np.inf, -np.inf
    result = run(LogSoftmax(), x)
    wanted, _ = log_softmax(x, np.zeros_like(x))
    np.testing.assert_allclose(result, wanted, rtol=1e-6)
    assert np.isneginf(result).sum() == 7


@pytest.mark.parametrize("at", [0, 3, 69])
def test_a_row_with_a_number_that_is_none_is_none(at):
    (x,) = normal(4, (2, 70))
    x[1, at] = np.nan
    result = run(LogSoftmax(), x)
    assert np.isfinite(result[0]).all() and np.isnan(result[1]).all()


def test_another_axis_is_mindspores():
    x, slope = normal(5, (6, 20), (6, 20))
    result, gradient = log_softmax(x, slope, 0)
    ours, (ours_gradient,) = run_both(LogSoftmax(0), (x,), slope)
    np.testing.assert_allclose(ours, result, atol=1e-5)
    np.testing.assert_allclose(ours_gradient, gradient, atol=1e-5)


def test_another_type_is_mindspores():
    (x,) = normal(6, (3, 40))
    wanted, _ = log_softmax(x.astype(np.float16), np.zeros_like(x))
    np.testing.assert_allclose(run(LogSoftmax(), x.astype(np.float16)), wanted, atol=2e-2)
