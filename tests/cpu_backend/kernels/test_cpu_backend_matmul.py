"""MatMul on the CPU, where our kernel takes the place of MindSpore's, which it calls for other types than float32."""

import mindspore as ms
import numpy as np
import pytest
from kernel_runs import normal, run, run_both
from mindspore import Tensor, nn, ops

pytestmark = pytest.mark.usefixtures("fused_kernels")

ROWS = (1, 3, 4, 16, 31, 32, 33)  # 32 are the most that our own kernel takes
SIZES = {
    "one": (1, 1),
    "less than a vector": (5, 7),
    "whole vectors": (64, 48),
    "a bit more": (131, 203),
}  # depth, outs


class Product(nn.Cell):
    """x·w, each of which may be stored the other way round."""

    def __init__(self, transpose_a=False, transpose_b=True, few_rows=True):
        super().__init__()
        self.matmul = ops.MatMul(transpose_a, transpose_b)
        if few_rows:
            self.matmul.add_prim_attr("few_rows", True)

    def construct(self, x, w):
        return self.matmul(x, w)


def check(result, x, w):
    """Of x [rows, depth] and w [outs, depth]."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, x @ w.T, rtol=0, atol=1e-6 * max(1.0, (np.abs(x) @ np.abs(w).T).max()))


@pytest.mark.parametrize("few_rows", [True, False])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("rows", ROWS)
def test_products_with_weights_of_outs_by_depth_are_those_of_float64(rows, sizes, few_rows):
    depth, outs = sizes
    x, w = normal(rows, (rows, depth), (outs, depth))
    check(run(Product(few_rows=few_rows), x, w), x, w)


@pytest.mark.parametrize(("transpose_a", "transpose_b"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("sizes", [(1, 50, 23), (33, 50, 33), (97, 7, 211), (211, 130, 96), (500, 1, 1)], ids=str)
def test_products_are_those_of_float64_however_they_are_stored(sizes, transpose_a, transpose_b):
    """Threads share out the outs, or the rows where they are more, in parts of 48."""
    rows, depth, outs = sizes
    x, w = normal(rows, (rows, depth), (outs, depth))
    inputs = np.ascontiguousarray(x.T) if transpose_a else x, w if transpose_b else np.ascontiguousarray(w.T)
    few, many = (run(Product(transpose_a, transpose_b, few_rows), *inputs) for few_rows in (True, False))
    check(few, x, w)
    check(many, x, w)
    if rows > 32 or (transpose_a, transpose_b) != (False, True):
        np.testing.assert_array_equal(few, many)


def test_a_row_does_not_depend_on_the_others():
    """Not even as rounding: a sample's tokens depend neither on the row that it is given nor on who sits beside it."""
    x, w = normal(0, (32, 131), (203, 131))
    together = run(Product(), x, w)
    for rows in (1, 2, 5, 16, 17, 31):
        np.testing.assert_array_equal(run(Product(), x[:rows], w), together[:rows])
        np.testing.assert_array_equal(run(Product(), x[-rows:], w), together[-rows:])
    order = np.random.default_rng(1).permutation(32)
    np.testing.assert_array_equal(run(Product(), x[order], w), together[order])


def test_one_graph_may_hold_products_of_both_kinds():
    class Two(nn.Cell):
        def __init__(self):
            super().__init__()
            self.few, self.other = Product(), Product(few_rows=False)

        def construct(self, x, w):
            return self.few(x, w) - self.other(x, w), self.other(w, w)

    x, w = normal(1, (9, 40), (60, 40))
    difference, square = Two()(Tensor(x), Tensor(w))
    assert np.abs(difference.asnumpy()).max() < 1e-5
    check(square.asnumpy(), w, w)


def test_gradients_are_those_of_float64():
    x, w, slope = normal(2, (9, 40), (60, 40), (9, 60))
    result, gradients = run_both(Product(), (x, w), slope)
    check(result, x, w)
    np.testing.assert_allclose(gradients[0], slope.astype(np.float64) @ w, rtol=0, atol=1e-4)
    np.testing.assert_allclose(gradients[1], slope.astype(np.float64).T @ x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [ms.float64, ms.float16, ms.int32])
def test_other_types_are_mindspores(kind):
    x, w = (np.round(8 * array) for array in normal(3, (5, 12), (7, 12)))
    result = Product()(Tensor(x, kind), Tensor(w, kind))
    assert result.dtype == kind
    np.testing.assert_allclose(result.asnumpy().astype(np.float64), x.astype(np.float64) @ w.T, rtol=2e-3)


def test_shapes_that_do_not_fit_are_refused_as_ever(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MindSpore leaves a file about it
    with pytest.raises(ValueError, match="MatMul"):
        run(Product(), *normal(0, (3, 5), (4, 6)))
