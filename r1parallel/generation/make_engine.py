"""The rollout engine that a configuration asks for: of a run, of the commands that generate, and of a compile check."""

from collections.abc import Sequence

from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import RunConfig, SamplingConfig
from r1parallel.data.text.tokenizer import Tokenizer
from r1parallel.generation.engine import RolloutEngine
from r1parallel.models.fused.operators import choose_operators
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.mesh import Mesh

_ONE_RANK, _ALONE = Mesh(), World()


def make_engine(
    config: RunConfig,
    model_config: ModelConfig,
    prompt_length: int,
    tokenizer: Tokenizer | None,
    rows: int = 0,
    mesh: Mesh = _ONE_RANK,
    world: World = _ALONE,
) -> RolloutEngine:
    """Make the engine of `generate_config`, without weights.

    Args:
        config: `generate_config` and `context.compute_dtype` are used.
        model_config: sizes of the model.
        prompt_length: P, the longest prompt.
        tokenizer: gives the stop and padding ids that the configuration leaves open; None: nothing is generated.
        rows: completions generated together on one dp rank; 0: `infer_model_batch_size`.
        mesh: of the generator.
        world: which rank this is.

    Raises:
        UserError: see `RolloutEngine`.
    """
    generate = config.generate_config
    stop_ids, pad_id = _special_ids(generate.sampling_config, tokenizer) if tokenizer is not None else ([], 0)
    return RolloutEngine(
        model_config,
        generate.sampling_config,
        rows or generate.infer_model_batch_size,
        prompt_length,
        stop_ids,
        pad_id,
        mesh,
        world,
        choose_operators(config.context.compute_dtype, trained=False),
    )


def _special_ids(sampling: SamplingConfig, tokenizer: Tokenizer) -> tuple[Sequence[int], int]:
    """Stop ids and padding id: those of the configuration, else the tokenizer's."""
    pad_id = tokenizer.pad_token_id if sampling.pad_token_id < 0 else sampling.pad_token_id
    return sampling.eos_token_id or tokenizer.stop_ids, pad_id
