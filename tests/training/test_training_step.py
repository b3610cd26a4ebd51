import numpy as np
import pytest
from helpers.one_rank import WholeLayout, actor_config
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from r1parallel.checkpoint.load import ArraySource
from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import OptimizerConfig
from r1parallel.errors import UserError
from r1parallel.models.parameters import load_state, state_values
from r1parallel.parallel.launch.world import World
from r1parallel.training import optimizer
from r1parallel.training.optimizer import AdamW, Momentum, SquaredNorms, decays
from r1parallel.training.step import TrainStep

START = {
    "feed_forward.w1.weight": np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], np.float32),
    "attention.wq.bias": np.array([0.1, -0.2, 0.3], np.float32),
    "attention_norm.weight": np.array([1.0, 1.1, 0.9], np.float32),
}
pytestmark = pytest.mark.usefixtures("mindspore_cpu")


class Quadratic(nn.Cell):
    """½ · Σ scale · (norm · row of w + bias)² for every row's scale; its gradients are written down in `gradients`.

    With `steep` 1 the slope by the bias overflows, while the loss stays finite at a bias of 0. Behind its share of the
    loss every row says what (norm · row of w + bias) is.
    """

    def __init__(self):
        super().__init__()
        w, b, n = (Parameter(Tensor(value), name=name) for name, value in START.items())
        self.w, self.b, self.n = w, b, n
        self.sum, self.join, self.tile = ops.ReduceSum(), ops.Concat(1), ops.Tile()

    def construct(self, scale_B1, steep_B1):
        y = self.w * self.n + self.b
        loss_B1 = 0.5 * self.sum(y * y) * scale_B1 + self.sum(self.b * 1e30) * (steep_B1 * 1e30)
        return self.join((loss_B1, self.tile(ops.stop_gradient(y.reshape(1, -1)), (scale_B1.shape[0], 1))))


def gradients(values, scale):
    w, b, n = values
    y = w * n + b
    return [scale * y * n, (scale * y).sum(axis=0), (scale * y * w).sum(axis=0)]


def make_step(rows=1, micro_batch_num=1, parts=1, **changes):
    cell = Quadratic()
    settings = OptimizerConfig(**{"weight_decay": 0.1, "max_grad_norm": 0.0, **changes})
    layout = WholeLayout([cell.w, cell.b, cell.n])
    config = actor_config(settings, micro_batch_num)
    config.parallel_config.micro_batch_interleave_num = parts
    return TrainStep(cell, cell.trainable_params(), layout, World(), config, scales(*[1.0] * rows)), cell


def values_of(cell):
    return [p.asnumpy().astype(np.float64) for p in (cell.w, cell.b, cell.n)]


def scales(*scale, steep=0.0):
    """Inputs of an update, one row for each scale."""
    return np.array(scale, np.float32)[:, None], np.full((len(scale), 1), steep, np.float32)


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


class ReferenceMomentum:
    """Polyak 1964 with 0.9, without decay."""

    def __init__(self, values, config):
        self.values, self.velocities = values, [np.zeros_like(x) for x in values]

    def update(self, gradients, lr):
        for i, g in enumerate(gradients):
            self.velocities[i] = 0.9 * self.velocities[i] + g
            self.values[i] = self.values[i] - lr * self.velocities[i]


REFERENCES = {"adamw": (AdamW, ReferenceAdamW), "momentum": (Momentum, ReferenceMomentum)}


@pytest.fixture(params=[True, False], ids=["kernels", "plain"])
def operators(request, monkeypatch):
    """With this machine's kernels, if it has some, and without, as on Ascend."""
    if not request.param:
        monkeypatch.setattr(optimizer, "has_fused_kernels", lambda: False)


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("kind", REFERENCES)
def test_updates_are_those_of_the_paper(kind, max_grad_norm, operators):
    ours, theirs = REFERENCES[kind]
    micro_batches = (1.0, 0.25)
    step, cell = make_step(len(micro_batches), len(micro_batches), type=kind, max_grad_norm=max_grad_norm, eps=1e-3)
    assert type(step.optimizer) is ours
    reference = theirs(values_of(cell), step.config)
    for number in range(5):
        total = [np.zeros_like(x) for x in reference.values]
        for scale in micro_batches:
            total = [t + g for t, g in zip(total, gradients(reference.values, scale), strict=True)]
        loss = float(step.accumulate(*scales(*micro_batches))[:, 0].sum())
        lr = 0.05 / (number + 1)
        norm = step.apply(lr, loss, "here")
        expected = np.sqrt(sum((t**2).sum() for t in total))
        assert norm == pytest.approx(expected, rel=1e-5)
        factor = min(1.0, max_grad_norm / expected) if max_grad_norm else 1.0
        reference.update([t * factor for t in total], lr)
        for actual, wanted in zip(values_of(cell), reference.values, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=2e-5, atol=1e-6)
    assert step.updates == 5


def test_a_started_optimizer_remembers_nothing():
    step, cell = make_step()
    for kind in ("adamw", "momentum", "adamw"):
        step.start_optimizer(OptimizerConfig(type=kind, weight_decay=0.1, max_grad_norm=0.0))
        assert type(step.optimizer) is REFERENCES[kind][0]
        assert step.updates == 0
        assert not any(p.asnumpy().any() for p in step.optimizer.state().values())
        reference = REFERENCES[kind][1](values_of(cell), step.config)
        reference.update(gradients(reference.values, 1.0), 0.05)
        step.accumulate(*scales(1.0))
        step.apply(0.05, 0.0, "here")
        for actual, wanted in zip(values_of(cell), reference.values, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=2e-5, atol=1e-6)


def test_first_update_has_the_size_of_lr_whatever_eps_does(operators):
    """With the bias corrections the first step is lr · sign(gradient); an eps in the wrong place would shrink it."""
    step, cell = make_step(weight_decay=0.0, eps=1e-8)
    before = values_of(cell)
    step.accumulate(*scales(1e-4))
    step.apply(0.01, 0.0, "here")
    for old, new, gradient in zip(before, values_of(cell), gradients(before, 1e-4), strict=True):
        np.testing.assert_allclose(new - old, -0.01 * np.sign(gradient), rtol=2e-3)


def test_accumulate_gives_what_the_loss_says_of_each_row():
    numbers = (2.0, 0.5, 3.0, 1.0)
    step, cell = make_step(4, 2)
    rows = step.accumulate(*scales(*numbers))
    w, b, n = values_of(cell)
    y = w * n + b
    np.testing.assert_allclose(rows[:, 0], 0.5 * (y**2).sum() * np.array(numbers), rtol=1e-6)
    np.testing.assert_allclose(rows[:, 1:], np.tile(y.reshape(-1), (4, 1)), rtol=1e-6)


@pytest.mark.parametrize(("micro_batch_num", "parts"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4)])
def test_micro_batches_and_their_parts_add_up_to_the_update(micro_batch_num, parts):
    step, cell = make_step(4, micro_batch_num, parts)
    before = values_of(cell)
    rows = step.accumulate(*scales(2.0, 0.5, 3.0, 1.0))
    np.testing.assert_allclose(rows[:, 0] / rows[3, 0], [2.0, 0.5, 3.0, 1.0], rtol=1e-6)  # each at its place
    for total, wanted in zip(step.optimizer.sums, gradients(before, 6.5), strict=True):
        np.testing.assert_allclose(total.asnumpy(), wanted, rtol=1e-5)
    for old, new in zip(before, values_of(cell), strict=True):
        np.testing.assert_array_equal(new, old)  # nothing moves before `apply`


@pytest.mark.parametrize(("micro_batch_num", "parts"), [(1, 1), (2, 1), (1, 2)])
def test_an_update_takes_any_number_of_micro_batches(micro_batch_num, parts):
    """Not only so many as the graph was made for: a pass may have a shorter update, a packed one has fewer rows."""
    step, cell = make_step(2 * micro_batch_num, micro_batch_num, parts)
    assert step.rows == 2
    before = values_of(cell)
    for count in (1, 3):
        numbers = np.arange(1.0, 2 * count + 1)
        rows = step.accumulate(*scales(*numbers))
        np.testing.assert_allclose(rows[:, 0] / rows[0, 0], numbers, rtol=1e-6)
        for total, wanted in zip(step.optimizer.sums, gradients(before, numbers.sum()), strict=True):
            np.testing.assert_allclose(total.asnumpy(), wanted, rtol=1e-5)
            total.set_data(Tensor(np.zeros_like(total.asnumpy())))


def test_rows_that_fill_no_micro_batch_are_not_dropped():
    step, _ = make_step(4, 2)
    with pytest.raises(AssertionError):
        step.accumulate(*scales(1.0, 2.0, 3.0))


def test_sums_start_at_zero_after_an_update(operators):
    for kind in REFERENCES:
        step, cell = make_step(type=kind, max_grad_norm=1.0)
        for number in range(2):
            before = values_of(cell)
            step.accumulate(*scales(3.0))
            norm = step.apply(0.01, 0.0, f"update {number}")
            assert norm == pytest.approx(np.sqrt(sum((g**2).sum() for g in gradients(before, 3.0))), rel=1e-5)


def test_squared_norms_are_those_of_float64(operators):
    """Of a matrix so large that adding its squares up one by one in float32 would lose the later ones."""
    values = [
        np.random.default_rng(n).normal(size=shape).astype(np.float32) for n, shape in enumerate(((7000, 701), (3,)))
    ]
    given = [Parameter(Tensor(x), name=f"sum_{n}") for n, x in enumerate(values)]
    wanted = [(x.astype(np.float64) ** 2).sum() for x in values]
    np.testing.assert_allclose(SquaredNorms(ParameterTuple(given))().asnumpy(), wanted, rtol=2e-7)


def state_of(step, cell):
    live = state_values(step.optimizer.state(), WholeLayout([cell.w, cell.b, cell.n]), 0)
    return {name: value.copy() for name, value in live.items()}


@pytest.mark.parametrize(
    ("scale", "steep", "what"),
    [(np.nan, 0.0, "loss is nan"), (np.inf, 0.0, "loss is inf"), (1.0, np.nan, "loss is nan")],
)
def test_a_loss_that_is_not_finite_changes_nothing(scale, steep, what):
    step, cell = make_step()
    before, moments = values_of(cell), state_of(step, cell)
    loss = float(step.accumulate(*scales(scale, steep=steep))[0, 0])
    message = f"^{what} at update 3, data set rows 4, 9; stopped before the update; lower lr or look at these rows$"
    with pytest.raises(UserError, match=message):
        step.apply(0.1, loss, "update 3, data set rows 4, 9")
    assert step.updates == 0
    for old, new in zip(before, values_of(cell), strict=True):
        np.testing.assert_array_equal(new, old)
    assert all((moments[name] == value).all() for name, value in state_of(step, cell).items())


def test_a_gradient_that_is_not_finite_changes_nothing():
    step, cell = make_step()
    cell.b.set_data(Tensor(np.zeros(3, np.float32)))
    before = values_of(cell)
    loss = float(step.accumulate(*scales(1.0, steep=1.0))[0, 0])
    assert np.isfinite(loss)
    with pytest.raises(UserError, match=r"^gradient norm is (inf|nan) at update 1; stopped before the update"):
        step.apply(0.1, loss, "update 1")
    for old, new in zip(before, values_of(cell), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize(("kind", "prefixes"), [("adamw", ("adam_m", "adam_v")), ("momentum", ("momentum",))])
def test_state_is_a_copy_and_loading_it_goes_on_bit_for_bit(kind, prefixes):
    straight, straight_cell = make_step(type=kind)
    for _ in range(2):
        straight.accumulate(*scales(1.0))
        straight.apply(0.05, 0.0, "here")
    state, values = state_of(straight, straight_cell), values_of(straight_cell)
    resumed, resumed_cell = make_step(type=kind)
    parameters = [resumed_cell.w, resumed_cell.b, resumed_cell.n]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.set_data(Tensor(value.astype(np.float32)))
    load_state(resumed.optimizer.state(), ArraySource(state, "test"), WholeLayout(parameters), 0)
    resumed.updates = straight.updates
    kept = {name: value.copy() for name, value in state.items()}
    for step in (straight, resumed):
        step.accumulate(*scales(1.0))
        step.apply(0.05, 0.0, "here")
    for left, right in zip(values_of(straight_cell), values_of(resumed_cell), strict=True):
        np.testing.assert_array_equal(left, right)
    assert straight.updates == resumed.updates == 3
    assert all((state[name] == value).all() for name, value in kept.items())
    assert set(state) == {f"{prefix}.{name}" for prefix in prefixes for name in START}


def test_matrices_decay_and_nothing_else():
    shapes = ModelConfig(16, 8, 12, 2, 4, 2).parameter_shapes()
    assert {name: decays(name) for name in shapes} == {name: len(shape) == 2 for name, shape in shapes.items()}
