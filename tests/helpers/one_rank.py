"""What tests need on one rank: a layout that splits nothing, gradients without a step, a folder of a whole model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn

from r1parallel.checkpoint.export import save_model_merged
from r1parallel.checkpoint.writing.shards import Shards
from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import ActorConfig, OptimizerConfig, ParallelConfig
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout


class WholeLayout:
    """Stands in for a `ModelLayout` where the parameters are no model's: one rank holds all of them whole."""

    mesh, opt_shard, stage_layers, world_size = Mesh(), False, (), 1

    def __init__(self, parameters: Sequence[Parameter]):
        self.parameters = {p.name: p for p in parameters}  # of a parameter's row in the table only its shape is read

    def slices(self, name: str, rank: int) -> tuple[slice, ...]:
        assert rank == 0
        return tuple(slice(0, size) for size in self.parameters[name].shape)

    def local_shape(self, name: str, rank: int) -> tuple[int, ...]:
        assert rank == 0
        return tuple(self.parameters[name].shape)

    def copies(self, name: str) -> int:
        assert name in self.parameters
        return 1


class LossGradient(nn.Cell):
    """What a loss says of every row, and the gradients of the sum of it, in one graph."""

    def __init__(self, loss: nn.Cell, parameters: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.gradient = ms.value_and_grad(loss, None, parameters)

    def construct(self, *inputs: Tensor):
        return self.gradient(*inputs)


def actor_config(optimizer: OptimizerConfig, micro_batch_num: int = 1) -> ActorConfig:
    """Settings of a `TrainStep` with this optimizer and so many micro-batches."""
    return ActorConfig(optimizer=optimizer, parallel_config=ParallelConfig(micro_batch_num=micro_batch_num))


def save_model(
    folder: Path, values: Mapping[str, np.ndarray], config: ModelConfig, tokenizer: Path, stop_ids: list[int]
) -> None:
    """A folder as a run leaves it: full weights, sizes, tokenizer."""
    save_model_merged(folder, Shards(ModelLayout(config, Mesh()), values), tokenizer, stop_ids, World())
