"""The layouts of a run's models, as the configuration states them: refuse what cannot work before anything starts."""

from collections.abc import Sequence
from operator import attrgetter

from r1parallel.config.schema import ParallelConfig, RunConfig
from r1parallel.errors import UserError

# Which model of a run → the section that describes it.
MODEL_SECTIONS = {"actor": "actor_config", "ref": "ref_config", "generate": "generate_config"}
# What only training can make use of, and the only value that the other models may have.
_FOR_THE_ACTOR = {
    "pipeline_stage": 1,
    "use_seq_parallel": False,
    "micro_batch_num": 1,
    "micro_batch_interleave_num": 1,
}


def parallel_config(config: RunConfig, model: str) -> tuple[str, ParallelConfig]:
    """The dotted key and the value of one model's parallel_config; `model` is a key of `MODEL_SECTIONS`."""
    key = f"{MODEL_SECTIONS[model]}.parallel_config"
    layout: ParallelConfig = attrgetter(key)(config)
    return key, layout


def num_processes(layout: ParallelConfig) -> int:
    """How many processes a layout is for."""
    return layout.data_parallel * layout.model_parallel * layout.pipeline_stage


def check_parallel_configs(config: RunConfig, sections: Sequence[str], world_size: int) -> None:
    """Check the layout of every model that a command with `sections` uses.

    Raises:
        UserError: the first one that cannot work on `world_size` processes.

    """
    for model, section in MODEL_SECTIONS.items():
        unused = model == "ref" and config.rl_config.beta == 0  # no reference model is kept
        if section in sections and not unused:
            check_parallel_config(config, model, world_size)


def check_parallel_config(config: RunConfig, model: str, world_size: int) -> None:
    """Check the layout of one model: every process holds a part of every model.

    Raises:
        UserError: it is for another number of processes, asks for what only the actor can do, or has fewer
            micro-batches than pipeline stages; or Ascend devices do not come in that number.

    """
    key, layout = parallel_config(config, model)
    if model != "actor":
        _check_forward_only(key, layout)
    if num_processes(layout) != world_size:
        raise UserError(
            f"{key}: data_parallel {layout.data_parallel} * model_parallel {layout.model_parallel} * pipeline_stage "
            f"{layout.pipeline_stage} = {num_processes(layout)}, but the number of processes is {world_size}; "
            f"start {num_processes(layout)} processes or {_remedy(layout, world_size)}"
        )
    if config.context.device_target == "Ascend" and world_size not in (1, 2, 4) and world_size % 8:
        raise UserError(
            f"the number of processes is {world_size}; MindSpore takes 1, 2, 4 or a multiple of 8 Ascend devices: "
            f"change {key}, or set context.device_target CPU, where any number works"
        )
    if layout.pipeline_stage > 1 and layout.micro_batch_num < layout.pipeline_stage:
        raise UserError(
            f"{key}.micro_batch_num is {layout.micro_batch_num}; a pipeline of {layout.pipeline_stage} stages needs "
            f"at least {layout.pipeline_stage}"
        )


def check_sequence_parallel(layout: ParallelConfig, batch_size: int, slots: int) -> None:
    """Check that tp can share out the activations of the actor between its blocks, [rows · slots, hidden].

    Call it when the number of slots is known, which the data decide.

    Args:
        layout: the actor's.
        batch_size: rows of a micro-batch on one data-parallel rank.
        slots: tokens in a row, padding included.

    Raises:
        UserError: they cannot be split evenly.

    """
    tokens = batch_size // layout.micro_batch_interleave_num * slots
    if layout.use_seq_parallel and tokens % layout.model_parallel:
        interleaved = f" / micro_batch_interleave_num {layout.micro_batch_interleave_num}"
        raise UserError(
            f"actor_config.parallel_config.use_seq_parallel: batch_size {batch_size}"
            f"{interleaved if layout.micro_batch_interleave_num > 1 else ''} * {slots} tokens in a row = {tokens}, "
            f"no multiple of model_parallel {layout.model_parallel}; rows of "
            f"{-slots % layout.model_parallel + slots} tokens would do, and so would use_seq_parallel false"
        )


def _check_forward_only(key: str, layout: ParallelConfig) -> None:
    for name, needed in _FOR_THE_ACTOR.items():
        value = attrgetter(name)(layout)
        if value != needed:
            raise UserError(
                f"{key}.{name} is {str(value).lower()}; only the actor, which is trained, can use it: "
                f"it must be {str(needed).lower()}"
            )


def _remedy(layout: ParallelConfig, world_size: int) -> str:
    """What would make a layout fit the processes."""
    inner = layout.model_parallel * layout.pipeline_stage
    if world_size % inner == 0:
        return f"set data_parallel to {world_size // inner}"
    return f"choose model_parallel * pipeline_stage ({inner}) so that it divides {world_size}"
