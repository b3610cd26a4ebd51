"""One update without the optimizer: its loss and the gradients of the whole model."""

import numpy as np
from mindspore import Tensor

from helpers.one_rank import actor_config
from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import OptimizerConfig, RLConfig
from r1parallel.models.fused.operators import PLAIN
from r1parallel.models.fused.packing import packed
from r1parallel.models.logps import CompletionLogps, PackedLogps
from r1parallel.models.parameters import load_parameters, random_values
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.rl.experience.experience import Experience
from r1parallel.rl.experience.rows import RowShape
from r1parallel.rl.models import example_batch
from r1parallel.rl.objective.correction import gap_limit
from r1parallel.rl.objective.losses import PolicyLoss, wants_entropy
from r1parallel.rl.update import Batch, TokenStatistics, Update, run_update
from r1parallel.training.step import TrainStep


class Recorder(TrainStep):
    """Keeps what `apply` was given instead of updating the parameters."""

    def apply(self, lr, loss, where):
        self.loss = loss
        self.gradients = {p.name: p.asnumpy().astype(np.float64) for p in self.optimizer.sums}
        return length(self.gradients.values())

    def forget(self):
        for p in self.optimizer.sums:
            p.set_data(Tensor(np.zeros_like(p.asnumpy())))


def length(gradients):
    return float(np.sqrt(sum((gradient**2).sum() for gradient in gradients)))


def make_model(config: ModelConfig, shape: RowShape, scale: float = 0.3) -> Qwen2ForCausalLM:
    """Always with the same weights."""
    model = Qwen2ForCausalLM(config, shape.length, operators=packed(PLAIN) if shape.pack_length else PLAIN)
    load_parameters(model, random_values(config, 0, scale), "random")
    return model


def make_logps(model: Qwen2ForCausalLM, rows: int, shape: RowShape, entropy: bool = False):
    if shape.pack_length:
        return PackedLogps(model, rows, shape.pack_length, shape.targets, entropy=entropy)
    return CompletionLogps(model, rows, shape.prompt, shape.completion, entropy=entropy)


def make_recorder(
    model: Qwen2ForCausalLM, shape: RowShape, settings: RLConfig, micro_rows: int, on_policy: bool = False
) -> Recorder:
    """The step of this loss; an update takes any multiple of `micro_rows`."""
    loss = PolicyLoss(make_logps(model, micro_rows, shape, wants_entropy(settings)), settings, on_policy)
    config, examples = actor_config(OptimizerConfig(), 1), example_batch(micro_rows, shape)
    return Recorder(loss, model.trainable_params(), ModelLayout(model.config, Mesh()), World(), config, examples)


def update(
    step: Recorder,
    shape: RowShape,
    experience: Experience,
    samples,
    settings: RLConfig,
    statistics: TokenStatistics | None = None,
    on_policy: bool = False,
    has_old_logps: bool = True,
) -> TokenStatistics:
    """One update of these completions; what came of it stands in `step`."""
    step.forget()
    statistics, samples = statistics or TokenStatistics(), np.asarray(samples)
    batch = Batch(0, samples, shape.rows(experience, samples, step.rows))
    limit = gap_limit(settings, "float32")
    run_update(
        step,
        experience,
        Update(batch, settings.beta, 1e-3, "step 1", on_policy, has_old_logps, limit),
        settings,
        statistics,
    )
    return statistics


def assert_same_gradients(actual, expected):
    """Up to fp32 rounding through the whole model; a wrong denominator would be off by a tenth and more."""
    differences = {name: actual[name] - gradient for name, gradient in expected.items()}
    assert length(differences.values()) <= 3e-6 * length(expected.values())
    for name, difference in differences.items():
        assert length([difference]) <= 1e-5 * length([expected[name]]), name
