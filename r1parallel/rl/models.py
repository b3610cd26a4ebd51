"""The models of a GRPO run, each under its own layout, compiled before any weights are loaded.

Shape letters: B rows of a micro-batch over all dp ranks, P prompt slots, C completion slots.
"""

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn

from r1parallel.config import RunConfig
from r1parallel.config.layouts import check_sequence_parallel
from r1parallel.config.model import ModelConfig
from r1parallel.models.fused import choose_operators
from r1parallel.models.logps import CompletionLogps
from r1parallel.models.parameters import parameter_values, set_slices, share_parameters, unallocated
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.layout import ModelLayout
from r1parallel.parallel.model_layout import model_layout
from r1parallel.parallel.reshard import reshard, reshard_plan
from r1parallel.parallel.transport import choose_transport
from r1parallel.parallel.verify import verify_reshard
from r1parallel.parallel.world import World
from r1parallel.rl.losses import GRPOLoss
from r1parallel.training.forward import compiled_logps
from r1parallel.training.step import TrainStep


@dataclass(frozen=True)
class Slots:
    """P and C."""

    prompt: int
    completion: int


class Actor:
    """The model that is trained: its training step and, where there is a second update, its log-probs before the first.

    Args:
        config: of the run.
        model_config: sizes.
        slots: P and C.
        updates: optimizer updates on one rollout.
        world: which rank this is.
    """

    def __init__(self, config: RunConfig, model_config: ModelConfig, slots: Slots, updates: int, world: World):
        settings, actor = config.rl_config, config.actor_config
        parallel = actor.parallel_config
        self.layout, self._world = model_layout(config, model_config, "actor", world.size), world
        check_sequence_parallel(parallel, settings.batch_size, slots.prompt + slots.completion)
        self.micro_rows = settings.batch_size * parallel.data_parallel
        self.update_rows = self.micro_rows * parallel.micro_batch_num
        operators = choose_operators(config.context.compute_dtype, trained=True)
        with unallocated():
            self.model = Qwen2ForCausalLM(model_config, slots.prompt + slots.completion, operators=operators)
        rows, split = self.micro_rows // parallel.micro_batch_interleave_num, parallel.model_parallel > 1
        loss = GRPOLoss(
            CompletionLogps(self.model, rows, slots.prompt, slots.completion, split),
            settings.epsilon_low,
            settings.epsilon_high,
            settings.beta,
            on_policy=updates == 1,
        )
        examples = example_batch(self.update_rows, slots)
        self.train = TrainStep(loss, self.model.trainable_params(), self.layout, world, actor, examples)
        self.old_logps: nn.Cell | None = None
        self._tied: TiedCopy | None = None
        if updates > 1:
            # The same operators on as many rows as in training: the log-probs come out equal to the last bit.
            with unallocated():
                twin = Qwen2ForCausalLM(model_config, slots.prompt + slots.completion, operators=operators)
            share_parameters(self.model, twin)
            self.old_logps = compiled_logps(
                twin, self.micro_rows, slots.prompt, slots.completion, self.layout, world, parallel.use_seq_parallel
            )

        if updates > 1 and self.model.tied and self.layout.mesh.pp > 1:
            self._tied = TiedCopy(self.model, self.layout, world)

    def before_old_logps(self) -> None:
        """Every rank calls this before it uses `old_logps`."""
        if self._tied is not None:
            self._tied.refresh()

    def values(self) -> dict[str, np.ndarray]:
        """Copies of this rank's slices."""
        return parameter_values(self.model, self.layout, self._world.rank)


class TiedCopy:
    """The last stage's copy of a tied embedding. Training sends it from the first stage; a forward pass alone does not.

    Args:
        model: of the actor, compiled.
        layout: of it, with more than one stage.
        world: which rank this is.
    """

    def __init__(self, model: Qwen2ForCausalLM, layout: ModelLayout, world: World):
        self._embedding, self._world = model.model.tok_embeddings.embedding_weight, world
        copied = ModelLayout(layout.config, layout.mesh, layout.opt_shard, layout.stage_layers, tied_copy=True)
        self._plan = reshard_plan(layout, copied, world.size, [self._embedding.name])
        self._transport = choose_transport(self._plan, world)

    def refresh(self) -> None:
        """Take the first stage's values over; every rank calls this."""
        name, rank = self._embedding.name, self._world.rank
        values = {} if self._plan.source.slices(name, rank) is None else {name: self._embedding.asnumpy()}
        arrived = reshard(self._plan, rank, values, self._transport)
        if name in arrived and name not in values:
            assert tuple(self._embedding.shape) == arrived[name].shape, name
            self._embedding.set_data(Tensor(arrived[name]))


class Reference:
    """The frozen model under its own layout; `rows` of the batch, of all dp ranks together, go through it at a time."""

    def __init__(self, config: RunConfig, model_config: ModelConfig, slots: Slots, world: World):
        self.layout = model_layout(config, model_config, "ref", world.size)
        self.rows = config.ref_config.ref_model_batch_size * self.layout.mesh.dp
        operators = choose_operators(config.context.compute_dtype, trained=False)
        with unallocated():
            self.model = Qwen2ForCausalLM(model_config, slots.prompt + slots.completion, operators=operators)
        self.logps = compiled_logps(self.model, self.rows, slots.prompt, slots.completion, self.layout, world)


def example_batch(rows: int, slots: Slots) -> tuple[np.ndarray, ...]:
    """Inputs of `GRPOLoss` of the right shapes and types: tokens, starts, old, ref, advantages, weights."""
    per_token = np.zeros((rows, slots.completion), np.float32)
    tokens = np.zeros((rows, slots.prompt + slots.completion), np.int32)
    return tokens, np.zeros(rows, np.int32), per_token, per_token, np.zeros((rows, 1), np.float32), per_token


class WeightSync:
    """New weights for another model from the actor, in memory, by a plan that is made once.

    Args:
        actor: gives its weights.
        model: takes them, compiled.
        layout: of that model.
        world: which rank this is.
    """

    def __init__(self, actor: Actor, model: nn.Cell, layout: ModelLayout, world: World):
        self._actor, self._model, self._layout, self._world = actor, model, layout, world
        self._plan = reshard_plan(actor.layout, layout, world.size)
        self._transport = choose_transport(self._plan, world)

    def __call__(self) -> None:
        """Every rank calls this.

        Raises:
            RuntimeError: what arrived differs from what the actor holds.
        """
        values = self._actor.values()
        arrived = reshard(self._plan, self._world.rank, values, self._transport)
        verify_reshard(self._actor.layout, self._layout, self._world, values, arrived)
        set_slices(self._model, arrived)
