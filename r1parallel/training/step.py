"""One optimizer step: gradients are accumulated over micro-batches, checked and applied, on one rank or on many."""

import math
from collections.abc import Iterator, Sequence

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn

from r1parallel.checkpoint.writing.shards import Shards
from r1parallel.config.schema import ActorConfig, OptimizerConfig
from r1parallel.errors import UserError
from r1parallel.models.parameters import TensorSource, load_state, state_values, unallocated
from r1parallel.parallel.compiling import compiling
from r1parallel.parallel.launch.waiting import waiting
from r1parallel.parallel.launch.world import CompileOnlyWorld, World
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.moving.collectives import all_gather, all_reduce
from r1parallel.parallel.program import on_mesh
from r1parallel.training.gradients import Gradients, Interleaved, PipelineGradients, Placed
from r1parallel.training.optimizer import SquaredNorms, make_optimizer, scalar


class TrainStep:
    """Owns the gradient sums and the optimizer of one model. Every rank makes one and calls the same methods.

    Args:
        loss: see `Gradients`; for the rows of one micro-batch, of all dp ranks together.
        parameters: what is trained; cut to this rank's slices by the compilation, so values are loaded afterwards.
        layout: of the model.
        world: which rank this is.
        config: optimizer, recomputation, micro-batches.
        examples: inputs of `loss` for `micro_batch_num` micro-batches, [N, …] each; only shapes and types matter.

    Attributes:
        rows: of one launch: a micro-batch, or with pipeline stages N. An optimizer step takes any multiple of them.
    """

    def __init__(
        self,
        loss: nn.Cell,
        parameters: Sequence[ms.Parameter],
        layout: ModelLayout,
        world: World,
        config: ActorConfig,
        examples: Sequence[np.ndarray],
    ):
        parallel = config.parallel_config
        trained = ParameterTuple(list(parameters))
        with unallocated():
            sums = trained.clone("gradient_sum", "zeros")
        self._layout, self._world = layout, world
        self.rows = len(examples[0]) if layout.mesh.pp > 1 else len(examples[0]) // parallel.micro_batch_num
        parts = parallel.micro_batch_interleave_num
        self._placed = layout.mesh.pp > 1 or parts > 1
        if self._placed:
            loss = Placed(loss) if parts == 1 else Interleaved(Placed(loss), parts)
        if layout.mesh.pp > 1:
            cell: nn.Cell = PipelineGradients(loss, trained, sums, parallel.micro_batch_num, layout.opt_shard)
        else:
            cell = Gradients(loss, trained, sums)
        cell.set_train()
        self._gradients = on_mesh(cell, layout, world, parallel.use_seq_parallel, config.recompute_config)
        with compiling("the training graph", world):
            self._gradients.compile(*next(self._launches(examples)))
        held = [(p, g) for p, g in zip(trained, sums, strict=True) if layout.slices(p.name, world.rank) is not None]
        if not isinstance(world, CompileOnlyWorld):  # its compilation may end early and then slices nothing
            for parameter, _ in held:
                assert tuple(parameter.shape) == layout.local_shape(parameter.name, world.rank), parameter.name
        self._trained, self._sums = [p for p, _ in held], [g for _, g in held]
        self._copies = np.array([layout.copies(parameter.name) for parameter in self._trained])
        self._squares = SquaredNorms(ParameterTuple(self._sums))
        with compiling("the gradient norm", world):
            self._squares.compile()
        self.start_optimizer(config.optimizer)

    def start_optimizer(self, config: OptimizerConfig) -> None:
        """An optimizer with fresh state."""
        self.config, self.updates = config, 0  # updates applied so far
        self.optimizer = make_optimizer(self._trained, self._sums, config)
        with compiling("the optimizer", self._world):
            self.optimizer.compile(*(scalar(1.0),) * 5)

    def accumulate(self, *inputs: np.ndarray) -> np.ndarray:
        """Accumulate the gradients of one optimizer step.

        Args:
            inputs: of the loss, the same on every rank: [N, …] each, N a multiple of `rows`.

        Returns:
            What the loss returns for each row, [N, K]; the same on every rank.
        """
        assert all(len(x) % self.rows == 0 for x in inputs), [len(x) for x in inputs]
        with waiting("gradients"):
            rows_NK = np.concatenate([self._gradients(*part).asnumpy() for part in self._launches(inputs)])
        if self._layout.mesh.pp == 1:
            return rows_NK
        return all_gather(self._world, rows_NK, "what the last stage says of each row")[-1]

    def apply(self, lr: float, loss: float, where: str) -> float:
        """Update the parameters with the accumulated gradients; returns the gradient norm before clipping.

        Args:
            lr: learning rate.
            loss: of the whole batch, only looked at.
            where: names step and rows in the message.

        Raises:
            UserError: loss or gradient norm is not finite; the parameters are left as they were.
        """
        norm = self._norm()
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise UserError(
                    f"{name} is {value} at {where}; stopped before the update; lower lr or look at these rows"
                )
        limit = self.config.max_grad_norm
        scale = min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
        self.updates += 1
        beta1_power, beta2_power = self.config.adam_beta1**self.updates, self.config.adam_beta2**self.updates
        eps = self.config.eps * math.sqrt(1.0 - beta2_power)
        self.optimizer(scalar(scale), scalar(lr), scalar(beta1_power), scalar(beta2_power), scalar(eps))
        return norm

    def snapshot(self) -> Shards:
        """This rank's slices of the optimizer's state, as they are until the next step."""
        return Shards(self._layout, state_values(self.optimizer.state(), self._layout, self._world.rank))

    def restore(self, state: TensorSource, updates: int) -> None:
        """Set the optimizer's state and the number of optimizer steps that led to it."""
        load_state(self.optimizer.state(), state, self._layout, self._world.rank)
        self.updates = updates

    @property
    def graphs(self) -> int:
        """Graphs that were compiled so far."""
        return sum(len(cell.compile_cache) for cell in (self._gradients, self._squares, self.optimizer))

    def _launches(self, inputs: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, ...]]:
        """Inputs of each call of the graph."""
        place = (Tensor(np.eye(self.rows, dtype=np.float32)),) if self._placed else ()
        for first in range(0, len(inputs[0]), self.rows):
            yield (*place, *(Tensor(np.ascontiguousarray(x[first : first + self.rows])) for x in inputs))

    def _norm(self) -> float:
        """L2 norm of the whole gradient; what several ranks hold a copy of counts once."""
        squares = self._squares().asnumpy().astype(np.float64) / self._copies
        return math.sqrt(float(all_reduce(self._world, squares.sum(), "gradient norm")))
