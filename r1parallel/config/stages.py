"""How many layers each pipeline stage has."""

from collections.abc import Sequence

from r1parallel.errors import UserError


def even_stages(num_layers: int, pp: int) -> tuple[int, ...]:
    """Number of layers of each stage: equal, what remains to the first stages."""
    each, rest = divmod(num_layers, pp)
    return tuple(each + (stage < rest) for stage in range(pp))


def offset_stages(num_layers: int, pp: int, offset: Sequence[int]) -> tuple[int, ...]:
    """Number of layers of each stage: an even share, rounded down, plus the stage's `offset`, as in mindformers.

    So the offsets sum to what an even share leaves over: 0 where pp divides the layers. No offsets, or the single
    number 0, mean `even_stages`.

    Raises:
        UserError: more stages than layers, not one offset for each stage, a wrong sum, or a stage without a layer.
    """
    if pp > num_layers:
        raise UserError(
            f"actor_config.parallel_config.pipeline_stage is {pp}, more than the model's {num_layers} layers; "
            f"1 to {num_layers} would do"
        )
    if list(offset) in ([], [0]):
        return even_stages(num_layers, pp)
    each, rest = divmod(num_layers, pp)
    given = f"actor_config.offset is {list(offset)}"
    if len(offset) != pp:
        raise UserError(f"{given}; give {pp} numbers, one for each stage of pipeline_stage {pp}")
    if sum(offset) != rest:
        raise UserError(
            f"{given}, which sums to {sum(offset)}; {num_layers} layers are {each} for each of {pp} stages and {rest} "
            f"more, so it must sum to {rest}"
        )
    layers = tuple(each + more for more in offset)
    if min(layers) < 1:
        raise UserError(f"{given}, which makes stages of {list(layers)} layers; each needs at least 1")
    return layers
