"""The one place where a model learns of ranks: splits of its operators and stages of its layers."""

from mindspore import nn
from mindspore.ops import Primitive
from mindspore.parallel.nn import Pipeline

from r1parallel.parallel.mesh import Mesh
from r1parallel.parallel.operators import DP, ROWS, TP, Strategy, outputs, strategies


def parallelize(
    program: nn.Cell, mesh: Mesh, sequence_parallel: bool = False, stage_layers: tuple[int, ...] | None = None
) -> None:
    """Split operators and layers of a program over `mesh`; its Cells are changed in place, before they are compiled."""
    split_operators(program, mesh, sequence_parallel)
    if mesh.pp > 1:
        assert stage_layers is not None
        set_stages(program, stage_layers)


def set_stages(program: nn.Cell, stage_layers: tuple[int, ...]) -> None:
    """Give every layer its pipeline stage; the embedding is in the first, the head in the last.

    Args:
        program: a Cell with one Qwen2Model inside; changed in place before it is compiled.
        stage_layers: number of layers of each stage.
    """
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


def split_operators(program: nn.Cell, mesh: Mesh, sequence_parallel: bool = False) -> None:
    """Split every operator inside `program`, the only place where `.shard()` is called.

    Args:
        program: its Cells are changed in place, before they are compiled.
        mesh: how many parts DP and TP stand for.
        sequence_parallel: split the activations between the blocks over tp too (Korthikanti et al. 2022).
    """
    parts = {DP: mesh.dp, TP: mesh.tp, ROWS: mesh.dp * mesh.tp if sequence_parallel else mesh.dp, None: 1}

    def numbers(strategy: Strategy) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(parts[axis] for axis in operand) for operand in strategy)

    for _, cell in program.cells_and_names():
        if isinstance(cell, Pipeline):
            for add in cell.add_list:  # its sum of what the micro-batches return, [B, K]
                add.shard(((1, 1), (1, 1)))
        results = outputs(cell)
        for name, strategy in strategies(cell).items():
            operator = getattr(cell, name, None)
            if not isinstance(operator, Primitive):  # a tied model has no lm_head, a row-parallel projection no bias
                continue
            if sequence_parallel and name in results:
                operator.shard(numbers(strategy), numbers(results[name]))
            else:
                operator.shard(numbers(strategy))
