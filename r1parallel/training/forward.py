"""Log-probs without training, under a layout."""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn

from r1parallel.models.logps import CompletionLogps
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.compiling import compiling
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.program import on_mesh


def compiled_forward(
    logps: nn.Cell,
    examples: Sequence[np.ndarray],
    layout: ModelLayout,
    world: World,
    sequence_parallel: bool = False,
) -> nn.Cell:
    """A program of the log-probs, compiled; its result is whole on every rank.

    Args:
        logps: `CompletionLogps` or `PackedLogps`, for the rows of all dp ranks together, of a model without a cache.
            Its Parameters may be another model's, under the same layout.
        examples: inputs of it; only their shapes and types matter.
        layout: of the model.
        world: which rank this is.
        sequence_parallel: as in `on_mesh`.
    """
    logps.set_train(False)
    spread = on_mesh(logps, layout, world, sequence_parallel)
    with compiling("the graph of log-probs", world):
        spread.compile(*(Tensor(x) for x in examples))
    return spread


def compiled_logps(
    model: Qwen2ForCausalLM,
    rows: int,
    prompt_length: int,
    completion_length: int,
    layout: ModelLayout,
    world: World,
    sequence_parallel: bool = False,
) -> nn.Cell:
    """A program (tokens_BS, starts_B) → logps_BC of padded rows at temperature 1; see `compiled_forward`.

    Args:
        model: without a cache.
        rows: B, of all dp ranks together.
        prompt_length: P, slots of the prompt.
        completion_length: C, slots of the completion.
        layout: of the model.
        world: which rank this is.
        sequence_parallel: as in `on_mesh`.
    """
    logps = CompletionLogps(model, rows, prompt_length, completion_length, split_vocab=layout.mesh.tp > 1)
    examples = np.zeros((rows, prompt_length + completion_length), np.int32), np.zeros(rows, np.int32)
    return compiled_forward(logps, examples, layout, world, sequence_parallel)
