"""The loss of the package over given log-probs: its numbers, and its gradient by the log-probs."""

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn

from r1parallel.config.schema import RLConfig
from r1parallel.rl.objective.losses import PolicyLoss, TokenInputs, TokenValues, token_values
from r1parallel.training.gradients import Gradients


class _Given(nn.Cell):
    """Stands in for the model: what it says is the parameter that the loss is differentiated by."""

    def __init__(self, shape: tuple[int, int]):
        super().__init__()
        self.values = Parameter(Tensor(np.zeros(shape, np.float32)), name="logps")

    def construct(self, tokens, row_data):
        return self.values


class GivenLogps:
    """PolicyLoss of R rows with K target slots. Where the settings ask for it, entropies stand beside the log-probs."""

    def __init__(self, settings: RLConfig, rows: int, slots: int, on_policy: bool = False):
        entropy = settings.calculate_entropy or settings.entropy_coef > 0
        self.shape = rows, slots * (2 if entropy else 1)
        self.stub = _Given(self.shape)
        self.sums = Parameter(Tensor(np.zeros(self.shape, np.float32)), name="gradient_sum.logps")
        loss = PolicyLoss(self.stub, settings, on_policy)
        self.cell = Gradients(loss, ParameterTuple([self.stub.values]), ParameterTuple([self.sums]))

    def __call__(self, logps: np.ndarray, given: TokenInputs) -> tuple[TokenValues, np.ndarray]:
        """What the loss says of each slot, and the gradient of their sum by `logps` and the entropies beside them."""
        self.stub.values.set_data(Tensor(logps.astype(np.float32)))
        self.sums.set_data(Tensor(np.zeros(self.shape, np.float32)))
        rows = len(logps)
        said = self.cell(
            Tensor(np.zeros((rows, 1), np.int32)), Tensor(np.zeros(rows, np.int32)), Tensor(given.concatenated())
        )
        return token_values(said.asnumpy()), self.sums.asnumpy().copy()
