import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import OptimizerConfig
from r1parallel.errors import UserError
from r1parallel.training.optimizer import decays
from r1parallel.training.step import TrainStep

START = {
    "feed_forward.w1.weight": np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], np.float32),
    "attention.wq.bias": np.array([0.1, -0.2, 0.3], np.float32),
    "attention_norm.weight": np.array([1.0, 1.1, 0.9], np.float32),
}
pytestmark = pytest.mark.usefixtures("mindspore_cpu")


class Quadratic(nn.Cell):
    """½ · Σ scale · (norm · row of w + bias)²; its gradients are written down in `gradients`.

    With `steep` 1 the slope by the bias overflows, while the loss stays finite at a bias of 0.
    """

    def __init__(self):
        super().__init__()
        w, b, n = (Parameter(Tensor(value), name=name) for name, value in START.items())
        self.w, self.b, self.n = w, b, n
        self.sum = ops.ReduceSum()

    def construct(self, scale, steep):
        y = self.w * self.n + self.b
        return 0.5 * self.sum(y * y * scale) + self.sum(self.b * 1e30 * (steep * 1e30)), y


def gradients(values, scale):
    w, b, n = values
    y = w * n + b
    return [scale * y * n, (scale * y).sum(axis=0), (scale * y * w).sum(axis=0)]


def make_step(**changes):
    cell = Quadratic()
    settings = {"weight_decay": 0.1, "max_grad_norm": 0.0, **changes}
    return TrainStep(cell, ParameterTuple([cell.w, cell.b, cell.n]), OptimizerConfig(**settings)), cell


def values_of(cell):
    return [p.asnumpy().astype(np.float64) for p in (cell.w, cell.b, cell.n)]


def scalars(scale, steep=0.0):
    return np.array(scale, np.float32), np.array(steep, np.float32)


class ReferenceAdamW:
    """Loshchilov and Hutter 2019, algorithm 2, with torch's convention that the decay is multiplied by lr."""

    def __init__(self, values, config):
        self.values, self.config, self.t = values, config, 0
        self.m, self.v = [np.zeros_like(x) for x in values], [np.zeros_like(x) for x in values]

    def update(self, gradients, lr):
        c, self.t = self.config, self.t + 1
        for i, g in enumerate(gradients):
            decay = c.weight_decay if self.values[i].ndim == 2 else 0.0
            self.m[i] = c.adam_beta1 * self.m[i] + (1 - c.adam_beta1) * g
            self.v[i] = c.adam_beta2 * self.v[i] + (1 - c.adam_beta2) * g * g
            m, v = self.m[i] / (1 - c.adam_beta1**self.t), self.v[i] / (1 - c.adam_beta2**self.t)
            self.values[i] = self.values[i] * (1 - lr * decay) - lr * m / (np.sqrt(v) + c.eps)


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5, 100.0])
def test_updates_are_those_of_adamw(max_grad_norm):
    step, cell = make_step(max_grad_norm=max_grad_norm, eps=1e-3)
    reference = ReferenceAdamW(values_of(cell), step.config)
    for number in range(5):
        total = [np.zeros_like(x) for x in reference.values]
        loss = 0.0
        for scale in (1.0, 0.25):  # two micro-batches
            loss += float(step.accumulate(*scalars(scale))[0])
            total = [t + g for t, g in zip(total, gradients(reference.values, scale), strict=True)]
        lr = 0.05 / (number + 1)
        norm = step.apply(lr, loss, "here")
        expected = np.sqrt(sum((t**2).sum() for t in total))
        assert norm == pytest.approx(expected, rel=1e-5)
        factor = min(1.0, max_grad_norm / expected) if max_grad_norm else 1.0
        reference.update([t * factor for t in total], lr)
        for actual, wanted in zip(values_of(cell), reference.values, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=2e-5, atol=1e-6)
    assert step.updates == 5


def test_first_update_has_the_size_of_lr_whatever_eps_does():
    """With the bias corrections the first step is lr · sign(gradient); an eps in the wrong place would shrink it."""
    step, cell = make_step(weight_decay=0.0, eps=1e-8)
    before = values_of(cell)
    step.accumulate(*scalars(1e-4))
    step.apply(0.01, 0.0, "here")
    for old, new, gradient in zip(before, values_of(cell), gradients(before, 1e-4), strict=True):
        np.testing.assert_allclose(new - old, -0.01 * np.sign(gradient), rtol=2e-3)


def test_accumulate_gives_the_loss_and_what_comes_with_it():
    step, cell = make_step()
    loss, y = step.accumulate(*scalars(2.0))
    w, b, n = values_of(cell)
    np.testing.assert_allclose(y, w * n + b, rtol=1e-6)
    assert loss == pytest.approx(((w * n + b) ** 2).sum(), rel=1e-6)


def test_sums_start_at_zero_after_an_update():
    step, cell = make_step(max_grad_norm=1.0)
    for number in range(2):
        before = values_of(cell)
        step.accumulate(*scalars(3.0))
        norm = step.apply(0.01, 0.0, f"update {number}")
        assert norm == pytest.approx(np.sqrt(sum((g**2).sum() for g in gradients(before, 3.0))), rel=1e-5)


@pytest.mark.parametrize(
    ("scale", "steep", "what"),
    [(np.nan, 0.0, "loss is nan"), (np.inf, 0.0, "loss is inf"), (1.0, np.nan, "loss is nan")],
)
def test_a_loss_that_is_not_finite_changes_nothing(scale, steep, what):
    step, cell = make_step()
    before, moments = values_of(cell), step.state()
    loss = float(step.accumulate(*scalars(scale, steep))[0])
    message = f"^{what} at update 3, data set rows 4, 9; stopped before the update; lower lr or look at these rows$"
    with pytest.raises(UserError, match=message):
        step.apply(0.1, loss, "update 3, data set rows 4, 9")
    assert step.updates == 0
    for old, new in zip(before, values_of(cell), strict=True):
        np.testing.assert_array_equal(new, old)
    assert all((moments[name] == value).all() for name, value in step.state().items())


def test_a_gradient_that_is_not_finite_changes_nothing():
    step, cell = make_step()
    cell.b.set_data(Tensor(np.zeros(3, np.float32)))
    before = values_of(cell)
    loss = float(step.accumulate(*scalars(1.0, 1.0))[0])
    assert np.isfinite(loss)
    with pytest.raises(UserError, match=r"^gradient norm is (inf|nan) at update 1; stopped before the update"):
        step.apply(0.1, loss, "update 1")
    for old, new in zip(before, values_of(cell), strict=True):
        np.testing.assert_array_equal(new, old)


def test_state_is_a_copy_and_loading_it_goes_on_bit_for_bit():
    straight, straight_cell = make_step()
    for _ in range(2):
        straight.accumulate(*scalars(1.0))
        straight.apply(0.05, 0.0, "here")
    state, values = straight.state(), values_of(straight_cell)
    resumed, resumed_cell = make_step()
    for parameter, value in zip((resumed_cell.w, resumed_cell.b, resumed_cell.n), values, strict=True):
        parameter.set_data(Tensor(value.astype(np.float32)))
    resumed.load_state(state, straight.updates)
    kept = {name: value.copy() for name, value in state.items()}
    for step in (straight, resumed):
        step.accumulate(*scalars(1.0))
        step.apply(0.05, 0.0, "here")
    for left, right in zip(values_of(straight_cell), values_of(resumed_cell), strict=True):
        np.testing.assert_array_equal(left, right)
    assert straight.updates == resumed.updates == 3
    assert all((state[name] == value).all() for name, value in kept.items())
    names = {f"adam_{moment}.{name}" for moment in "mv" for name in START}
    assert set(state) == names


def test_matrices_decay_and_nothing_else():
    shapes = ModelConfig(16, 8, 12, 2, 4, 2).parameter_shapes()
    assert {name: decays(name) for name in shapes} == {name: len(shape) == 2 for name, shape in shapes.items()}
