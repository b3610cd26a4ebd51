"""The models of a run, each under its own layout, compiled before any weights are loaded.

Shape letters: R graph rows of a micro-batch over all dp ranks, S tokens and K target slots of a row.
"""

import numpy as np
from mindspore import Tensor, nn

from r1parallel.config.layout_checks import check_sequence_parallel
from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import RunConfig
from r1parallel.generation.engine import RolloutEngine
from r1parallel.models.fused.operators import choose_operators
from r1parallel.models.fused.packing import packed
from r1parallel.models.logps import CompletionLogps, PackedLogps
from r1parallel.models.parameters import (
    parameter_values,
    rounded_as,
    same_parameters,
    set_slices,
    share_parameters,
    unallocated,
)
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.from_config import layout_from_config
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.moving.reshard import reshard, reshard_plan
from r1parallel.parallel.moving.slice_checksums import check_resharded_slices
from r1parallel.parallel.moving.transport import choose_transport
from r1parallel.rl.experience.experience import needs_old_logps
from r1parallel.rl.experience.rows import RowShape
from r1parallel.rl.objective.losses import NUM_INPUTS, PolicyLoss, wants_entropy
from r1parallel.training.forward import compiled_forward
from r1parallel.training.step import TrainStep


class Actor:
    """The model that is trained: its training step and, where they are asked for, its log-probs before the first one.

    Args:
        config: of the run.
        model_config: sizes.
        shape: of a row of the training graph.
        updates: optimizer updates on one rollout.
        world: which rank this is.
    """

    def __init__(self, config: RunConfig, model_config: ModelConfig, shape: RowShape, updates: int, world: World):
        settings, actor = config.rl_config, config.actor_config
        parallel = actor.parallel_config
        self.layout, self._world = layout_from_config(config, model_config, "actor", world.size), world
        check_sequence_parallel(parallel, settings.batch_size, shape.length)
        self.micro_rows = settings.batch_size * parallel.data_parallel
        self.model = _model(config, model_config, shape, trained=True)
        rows = self.micro_rows // parallel.micro_batch_interleave_num
        logps = _logps(self.model, config, rows, shape, self.layout, wants_entropy(settings))
        loss = PolicyLoss(logps, settings, on_policy=updates == 1)
        examples = example_batch(self.micro_rows * parallel.micro_batch_num, shape)
        self.train = TrainStep(loss, self.model.trainable_params(), self.layout, world, actor, examples)
        self.old_logps: nn.Cell | None = None
        self._tied: TiedCopy | None = None
        if needs_old_logps(settings, updates):
            # The same operators on as many rows as in training: the log-probs come out equal to the last bit.
            twin = _model(config, model_config, shape, trained=True)
            share_parameters(self.model, twin)
            cell, inputs = _logps(twin, config, self.micro_rows, shape, self.layout), examples[:2]
            self.old_logps = compiled_forward(
                cell, [x[: self.micro_rows] for x in inputs], self.layout, world, parallel.use_seq_parallel
            )
            if self.model.tied and self.layout.mesh.pp > 1:
                self._tied = TiedCopy(self.model, self.layout, world)

    def before_old_logps(self) -> None:
        """Every rank calls this before it uses `old_logps`."""
        if self._tied is not None:
            self._tied.refresh()

    def values(self) -> dict[str, np.ndarray]:
        """This rank's slices; they may show the live buffers, which the next step overwrites."""
        return parameter_values(self.model, self.layout, self._world.rank, copy=False)


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
    """The frozen model under its own layout; `rows` graph rows, of all dp ranks together, go through it at a time."""

    def __init__(self, config: RunConfig, model_config: ModelConfig, shape: RowShape, world: World):
        self.layout = layout_from_config(config, model_config, "ref", world.size)
        self.rows = config.ref_config.ref_model_batch_size * self.layout.mesh.dp
        self.model = _model(config, model_config, shape, trained=False)
        cell = _logps(self.model, config, self.rows, shape, self.layout)
        self.logps = compiled_forward(cell, example_batch(self.rows, shape)[:2], self.layout, world)


def example_batch(rows: int, shape: RowShape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs of `PolicyLoss` of the right shapes and types: tokens, row data, what it is told of every target slot."""
    return (
        np.zeros((rows, shape.length), np.int32),
        np.zeros((rows, *shape.row_data_shape), np.int32),
        np.zeros((rows, NUM_INPUTS * shape.targets), np.float32),
    )


def _model(config: RunConfig, model_config: ModelConfig, shape: RowShape, trained: bool) -> Qwen2ForCausalLM:
    operators = choose_operators(config.context.compute_dtype, trained)
    with unallocated():
        return Qwen2ForCausalLM(
            model_config, shape.length, operators=packed(operators) if shape.pack_length else operators
        )


def _logps(
    model: Qwen2ForCausalLM,
    config: RunConfig,
    rows: int,
    shape: RowShape,
    layout: ModelLayout,
    entropy: bool = False,
) -> nn.Cell:
    """Log-probs at the sampling temperature: of the policy that draws the completions."""
    split, temperature = layout.mesh.tp > 1, config.generate_config.sampling_config.temperature
    learn = config.rl_config.entropy_coef > 0.0
    if shape.pack_length:
        return PackedLogps(model, rows, shape.pack_length, shape.targets, split, temperature, entropy, learn)
    return CompletionLogps(model, rows, shape.prompt, shape.completion, split, temperature, entropy, learn)


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
            RuntimeError: what the model holds afterwards differs from what the actor holds.
        """
        values, rank = self._actor.values(), self._world.rank
        set_slices(self._model, reshard(self._plan, rank, values, self._transport))
        held = parameter_values(self._model, self._layout, rank, copy=False)
        check_resharded_slices(self._actor.layout, self._layout, self._world, rounded_as(self._model, values), held)


def to_generator(actor: Actor, engine: RolloutEngine, layout: ModelLayout, world: World) -> WeightSync | None:
    """How the generator gets new weights; None: it shares the actor's Parameters, nothing is copied or compared.

    They are shared on one rank where both models keep their Parameters alike.
    """
    if world.size == 1 and same_parameters(actor.model, engine.model):
        engine.share(actor.model)
        return None
    return WeightSync(actor, engine.model, layout, world)
