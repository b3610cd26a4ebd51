"""Log-probs without training, under a layout."""

import numpy as np
from mindspore import Tensor, nn

from r1parallel.models.logps import CompletionLogps
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.layout import ModelLayout
from r1parallel.parallel.program import on_mesh
from r1parallel.parallel.waiting import waiting
from r1parallel.parallel.world import World


def compiled_logps(
    model: Qwen2ForCausalLM,
    rows: int,
    prompt_length: int,
    completion_length: int,
    layout: ModelLayout,
    world: World,
    sequence_parallel: bool = False,
) -> nn.Cell:
    """A program (tokens_BS, starts_B) → logps_BC, compiled; its result is whole on every rank.

    Args:
        model: without a cache. Its Parameters may be another model's, under the same layout.
        rows: B, of all dp ranks together.
        prompt_length: P, slots of the prompt.
        completion_length: C, slots of the completion.
        layout: of the model.
        world: which rank this is.
        sequence_parallel: as in `on_mesh`.
    """
    cell = CompletionLogps(model, rows, prompt_length, completion_length, split_vocab=layout.mesh.tp > 1)
    cell.set_train(False)
    spread = on_mesh(cell, layout, world, sequence_parallel)
    tokens = Tensor(np.zeros((rows, prompt_length + completion_length), np.int32))
    with waiting("compilation of a forward graph"):
        spread.compile(tokens, Tensor(np.zeros(rows, np.int32)))
    return spread
