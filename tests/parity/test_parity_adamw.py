"""The optimizer against torch.optim.AdamW with torch's clipping, on a least-squares problem."""

import numpy as np
import pytest
from helpers.one_rank import WholeLayout, actor_config
from mindspore import Parameter, Tensor, nn, ops

from r1parallel.config.schema import OptimizerConfig
from r1parallel.parallel.launch.world import World
from r1parallel.training.step import TrainStep

UPDATES, ROWS, INPUTS, OUTPUTS = 5, 6, 4, 3
RATES = (0.3, 0.2, 0.1, 0.2, 0.05)


class LeastSquares(nn.Cell):
    """Half the squares of (x · weightᵀ + bias) · norm − y, whose sum is the loss."""

    def __init__(self, start: dict[str, np.ndarray]):
        super().__init__()
        self.weight = Parameter(Tensor(start["weight"]), name="weight")
        self.bias = Parameter(Tensor(start["bias"]), name="bias")
        self.norm = Parameter(Tensor(start["norm"]), name="norm.weight")
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x, y):
        errors = (self.matmul(x, self.weight) + self.bias) * self.norm - y
        return 0.5 * errors * errors


def problem() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    start = {
        "weight": rng.normal(size=(OUTPUTS, INPUTS)),
        "bias": rng.normal(size=OUTPUTS),
        "norm": 1.0 + 0.1 * rng.normal(size=OUTPUTS),
    }
    start = {name: value.astype(np.float32) for name, value in start.items()}
    x = rng.normal(size=(UPDATES, ROWS, INPUTS)).astype(np.float32)
    y = (5.0 + rng.normal(size=(UPDATES, ROWS, OUTPUTS))).astype(np.float32)  # far away: no gradient is near zero
    return start, x, y


def torch_updates(torch, config: OptimizerConfig) -> tuple[list[dict[str, np.ndarray]], list[float]]:
    """Parameters after every update, and gradient norms."""
    start, x, y = problem()
    p = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    groups = [
        {"params": [p["weight"]], "weight_decay": config.weight_decay},
        {"params": [p["bias"], p["norm"]], "weight_decay": 0.0},
    ]
    betas = (config.adam_beta1, config.adam_beta2)
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=config.eps)
    states, norms = [], []
    for i in range(UPDATES):
        optimizer.zero_grad()
        errors = (torch.tensor(x[i]) @ p["weight"].T + p["bias"]) * p["norm"] - torch.tensor(y[i])
        (0.5 * errors.square().sum()).backward()
        limit = config.max_grad_norm or float("inf")
        norms.append(torch.nn.utils.clip_grad_norm_(p.values(), limit).item())
        for group in optimizer.param_groups:
            group["lr"] = RATES[i]
        optimizer.step()
        states.append({name: value.detach().numpy().copy() for name, value in p.items()})
    return states, norms


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(weight_decay=0.1, max_grad_norm=90.0),
        OptimizerConfig(weight_decay=0.0, max_grad_norm=0.0, eps=0.1, adam_beta1=0.5, adam_beta2=0.99),
    ],
    ids=["decay and clipping", "neither, large eps"],
)
def test_five_updates_in_two_micro_batches_each(mindspore_cpu, reference, config):
    states, norms = torch_updates(reference.torch, config)
    if config.max_grad_norm:
        assert min(norms) < config.max_grad_norm < max(norms)  # clipping happens, but not always
    start, x, y = problem()
    model = LeastSquares(start)
    parameters = model.trainable_params()
    step = TrainStep(model, parameters, WholeLayout(parameters), World(), actor_config(config, 2), (x[0], y[0]))
    for i in range(UPDATES):
        loss = float(step.accumulate(x[i], y[i]).sum())
        assert step.apply(RATES[i], loss, "test") == pytest.approx(norms[i], rel=1e-5)
        for name, parameter in (("weight", model.weight), ("bias", model.bias), ("norm", model.norm)):
            np.testing.assert_allclose(parameter.asnumpy(), states[i][name], rtol=0, atol=1e-6, err_msg=name)
