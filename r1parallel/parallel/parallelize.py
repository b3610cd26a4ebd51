"""The one place where a program learns of ranks: splits of its operators, stages of its layers, what is recomputed.

Where nothing is split or recomputed, there may be less to compile: a Cell becomes one operator.
"""

from mindspore import nn
from mindspore.ops import Primitive
from mindspore.parallel.nn import MicroBatchInterleaved, Pipeline

from r1parallel.config.schema import RecomputeConfig
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.operators import DP, REPLICATED, ROWS, TP, Strategy, outputs, strategies

# Cell → operators whose results selective recomputation throws away: large, and cheap to make again. The fused
# attention keeps no such results.
_SELECTED = {"SoftmaxCore": ("scale", "scores", "add_mask", "softmax"), "FeedForward": ("silu", "gate")}

# Cells that have one operator for all they do, where it has a kernel; it can be neither split nor recomputed.
_FUSED = ("Block", "Gradients")


def parallelize(
    program: nn.Cell,
    mesh: Mesh,
    stage_layers: tuple[int, ...],
    sequence_parallel: bool = False,
    recompute: RecomputeConfig | None = None,
) -> None:
    """Spread a program over a mesh; its Cells are changed in place, before they are compiled.

    Args:
        program: one Qwen2ForCausalLM and what is around it.
        mesh: how many parts dp and tp stand for, and pipeline stages.
        stage_layers: number of layers of each stage.
        sequence_parallel: split the activations between the blocks over tp too (Korthikanti et al. 2022).
        recompute: what the backward pass computes again.
    """
    _split_operators(program, mesh, sequence_parallel)
    if mesh.pp > 1:
        _set_stages(program, stage_layers)
    if recompute is not None and (recompute.recompute or recompute.select_recompute):
        _set_recompute(program, recompute)
    elif mesh.world_size == 1:
        _fuse_operators(program)


def _split_operators(program: nn.Cell, mesh: Mesh, sequence_parallel: bool) -> None:
    """The only place where `.shard()` is called."""
    parts = {DP: mesh.dp, TP: mesh.tp, ROWS: mesh.dp * mesh.tp if sequence_parallel else mesh.dp, None: 1}

    def numbers(strategy: Strategy) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(parts[axis] for axis in operand) for operand in strategy)

    for _, cell in program.cells_and_names():
        if isinstance(cell, Pipeline):
            for add in cell.add_list:  # its sum of what the micro-batches give
                add.shard(numbers(REPLICATED * 2))
        elif isinstance(cell, MicroBatchInterleaved):
            cell.add.shard(numbers(REPLICATED * 2))
        results = outputs(cell)
        for name, strategy in strategies(cell).items():
            operator = getattr(cell, name, None)
            if not isinstance(operator, Primitive):  # a row-parallel projection has no bias
                continue
            if sequence_parallel and name in results:
                operator.shard(numbers(strategy), numbers(results[name]))
            else:
                operator.shard(numbers(strategy))


def _set_stages(program: nn.Cell, stage_layers: tuple[int, ...]) -> None:
    """Give every layer its pipeline stage; the embedding is in the first, the head in the last."""
    last = len(stage_layers) - 1
    for _, cell in program.cells_and_names():
        if type(cell).__name__ == "Qwen2Model":
            cell.cut(stage_layers)
            cell.tok_embeddings.pipeline_stage, cell.norm_out.pipeline_stage = 0, last
            stages = [stage for stage, count in enumerate(stage_layers) for _ in range(count)]
            for layer, stage in zip(cell.layers, stages, strict=True):
                layer.pipeline_stage = stage
            for stage, geometry in enumerate(cell.geometries):
                geometry.pipeline_stage = stage
        elif type(cell).__name__ == "Qwen2ForCausalLM":
            cell.lm_head.pipeline_stage = last
            if cell.tied:  # the first stage sends it to the last, which only works while it is whole
                cell.model.tok_embeddings.embedding_weight.parallel_optimizer = False


def _fuse_operators(program: nn.Cell) -> None:
    for _, cell in program.cells_and_names():
        if type(cell).__name__ in _FUSED and cell.can_fuse:
            cell.is_fused = True


def _set_recompute(program: nn.Cell, recompute: RecomputeConfig) -> None:
    for _, cell in program.cells_and_names():
        if type(cell).__name__ == "Qwen2Model":
            for number in recompute.recompute_layers or range(len(cell.layers)):
                _recompute_block(cell.layers[number], recompute.recompute)


def _recompute_block(block: nn.Cell, whole: bool) -> None:
    if whole:
        block.recompute()
        return
    for _, cell in block.cells_and_names():
        for name in _SELECTED.get(type(cell).__name__, ()):
            getattr(cell, name).recompute()
