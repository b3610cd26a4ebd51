"""RmsNorm, RotaryPositionEmbedding and SiLU with their gradients on the CPU, against float64."""

import mindspore as ms
import numpy as np
import pytest
from kernel_runs import normal, run, run_both
from mindspore import Tensor, nn, ops
from mindspore.ops.auto_generate import RmsNorm, RotaryPositionEmbedding, SiLU

pytestmark = pytest.mark.usefixtures("fused_kernels")

EPS = 0.25  # large, so that it counts


class Norm(nn.Cell):
    def __init__(self, eps=EPS):
        super().__init__()
        self.norm = RmsNorm(eps)

    def construct(self, x, weight):
        return self.norm(x, weight)[0]


class Inverse(nn.Cell):
    """The operator's other result."""

    def __init__(self):
        super().__init__()
        self.norm = RmsNorm(EPS)

    def construct(self, x, weight):
        return self.norm(x, weight)[1]


def norm(x, weight, slope):
    """Result, gradients of x and of the weight, and 1 / √(mean(x²) + eps), float64."""
    x, weight, slope = (array.astype(np.float64) for array in (x, weight, slope))
    inverse = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)
    along = (slope * weight * x).mean(-1, keepdims=True)
    gradient = inverse * (slope * weight - x * inverse**2 * along)
    return x * inverse * weight, gradient, (slope * x * inverse).reshape(-1, len(weight)).sum(0), inverse


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (1, 8), (3, 7), (5, 24), (33, 65), (300, 577), (2, 3, 13)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_norms_and_their_gradients_are_those_of_float64(shape):
    x, weight, slope = normal(2, shape, shape[-1:], shape)
    result, gradient, weights, inverse = norm(x, weight, slope)
    ours, gradients = run_both(Norm(), (x, weight), slope)
    np.testing.assert_allclose(ours, result, rtol=0, atol=3e-6)
    np.testing.assert_allclose(gradients[0], gradient, rtol=0, atol=3e-6)
    np.testing.assert_allclose(gradients[1], weights, rtol=0, atol=3e-6 * max(1.0, np.abs(weights).max()))
    np.testing.assert_allclose(run(Inverse(), x, weight), inverse, rtol=1e-6)


def test_a_row_of_zeros_stays_finite():
    _, weight, slope = normal(3, (4, 9), (9,), (4, 9))
    result, gradients = run_both(Norm(1e-6), (np.zeros((4, 9), np.float32), weight), slope)
    assert not result.any()
    np.testing.assert_allclose(gradients[0], slope * weight * 1e3, rtol=1e-5)
    assert not gradients[1].any()


def test_a_row_does_not_depend_on_the_others():
    x, weight, slope = normal(4, (70, 45), (45,), (70, 45))
    together, gradients = run_both(Norm(), (x, weight), slope)
    for row in (0, 41, 69):
        alone, gradient = run_both(Norm(), (x[row : row + 1], weight), slope[row : row + 1])
        np.testing.assert_array_equal(alone[0], together[row])
        np.testing.assert_array_equal(gradient[0][0], gradients[0][row])


@pytest.mark.parametrize(
    ("types", "shape", "message"),
    [
        ((np.float16, np.float16), (4,), "computes in float32 only"),
        ((np.float32, np.float16), (4,), "computes in float32 only"),
        ((np.float32, np.float32), (3, 4), "has a weight of one dimension only"),
    ],
    ids=["float16", "weight float16", "two dimensions"],
)
def test_what_the_norm_does_not_do_is_refused(types, shape, message):
    x, weight = (array.astype(kind) for array, kind in zip(normal(0, (5, 3, 4), shape), types, strict=True))
    with pytest.raises(RuntimeError, match=f"^RmsNorm on CPU {message}"):
        run(Norm(), x, weight)


class Rotated(nn.Cell):
    """Its gradient is asked for that of x alone, as in a model."""

    def __init__(self, mode=0):
        super().__init__()
        self.rotate, self.mode = RotaryPositionEmbedding(), mode

    def construct(self, x, cos, sin):
        return self.rotate(x, ops.stop_gradient(cos), ops.stop_gradient(sin), self.mode)


def turned(x):
    """(a, b) → (−b, a), the halves of the last dimension."""
    left, right = np.split(x, 2, axis=-1)
    return np.concatenate([-right, left], axis=-1)


@pytest.mark.parametrize(
    ("shape", "angles"),
    [
        ((3, 7, 5, 16), (3, 7, 1, 16)),  # [B, S, heads, D], a position's angles for all heads
        ((3, 5, 7, 16), (3, 1, 7, 16)),  # [B, heads, S, D]
        ((3, 7, 5, 16), (1, 7, 1, 16)),
        ((3, 7, 5, 16), (1, 1, 1, 16)),
        ((3, 7, 5, 16), (3, 7, 5, 16)),
        ((2, 40, 9, 6), (2, 40, 1, 6)),
        ((1, 1, 1, 2), (1, 1, 1, 2)),
    ],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_rotations_and_their_gradients_are_those_of_float64(shape, angles):
    x, cos, sin, slope = normal(5, shape, angles, angles, shape)  # the two halves of cos and of sin are not equal
    result, gradients = run_both(Rotated(), (x, cos, sin), slope)
    x, cos, sin, slope = (array.astype(np.float64) for array in (x, cos, sin, slope))
    np.testing.assert_allclose(result, x * cos + turned(x) * sin, rtol=0, atol=3e-6)
    np.testing.assert_allclose(gradients[0], slope * cos - turned(slope * sin), rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    ("mode", "size", "types", "message"),
    [
        (1, 6, (np.float32,) * 3, "has mode 0 only"),
        (0, 6, (np.float16,) * 3, "computes in float32 only"),
        (0, 6, (np.float32, np.float16, np.float16), "computes in float32 only"),
        (0, 5, (np.float32,) * 3, "turns pairs: the last dimension has to be even"),
    ],
    ids=["interleaved", "float16", "angles float16", "odd"],
)
def test_what_the_rotation_does_not_do_is_refused(mode, size, types, message):
    arrays = normal(0, (2, 3, 4, size), (2, 3, 1, size), (2, 3, 1, size))
    inputs = [Tensor(x.astype(kind)) for x, kind in zip(arrays, types, strict=True)]
    with pytest.raises(RuntimeError, match=f"^RotaryPositionEmbedding on CPU {message}"):
        Rotated(mode)(*inputs).asnumpy()


class Silu(nn.Cell):
    def __init__(self):
        super().__init__()
        self.silu = SiLU()

    def construct(self, x):
        return self.silu(x)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 40), (33, 65), (300, 577)], ids=str)
def test_silu_and_its_gradient_are_those_of_float64(shape):
    """The last size is shared out to threads, in parts that are no whole vectors."""
    x, slope = normal(4, shape, shape)
    x *= 20
    x.flat[:1] = 0.0
    ours, gradients = run_both(Silu(), (x,), slope)
    wide = x.astype(np.float64)
    share = 1 / (1 + np.exp(-wide))
    np.testing.assert_allclose(ours, wide * share, rtol=2e-6, atol=1e-30)
    np.testing.assert_allclose(gradients[0], slope * share * (1 + wide * (1 - share)), rtol=1e-5, atol=1e-6)


def test_silu_of_what_is_large_or_not_a_number():
    x = np.array([-np.inf, -3e38, -200, -88, 88, 200, 3e38, np.inf, np.nan], np.float32)
    ours = run(Silu(), x)
    np.testing.assert_array_equal(ours[4:8], x[4:8])
    assert np.isnan(ours[8]) and np.all(np.abs(ours[2:4]) < 1e-30)
    _, gradients = run_both(Silu(), (x[2:7],), np.ones(5, np.float32))
    np.testing.assert_allclose(gradients[0], [0, 0, 1, 1, 1], atol=1e-30)


def test_silu_of_other_types_is_refused():
    with pytest.raises(RuntimeError, match="computes in float32 only"):
        Silu()(Tensor(np.zeros(3), ms.float16))
