"""From a run's configuration to the layout of one of its models."""

from r1parallel.config.layout_checks import check_parallel_config, num_processes, parallel_config
from r1parallel.config.limits import check_limits
from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.config.schema import RunConfig
from r1parallel.config.stages import offset_stages
from r1parallel.errors import UserError
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout, check_model_parallel


def layout_from_config(config: RunConfig, model_config: ModelConfig, model: str, world_size: int) -> ModelLayout:
    """The layout of one model of a run.

    Args:
        config: of the run; its numbers are within their limits.
        model_config: sizes, the same for all models of a run.
        model: "actor", "ref" or "generate".
        world_size: number of processes of the run.

    Raises:
        UserError: the layout is for another number of processes, or does not fit the model; with the key and the
            values that work.
    """
    check_parallel_config(config, model, world_size)
    key, layout = parallel_config(config, model)
    check_model_parallel(model_config, layout.model_parallel, f"{key}.model_parallel")
    mesh = Mesh(dp=layout.data_parallel, pp=layout.pipeline_stage, tp=layout.model_parallel)
    if model != "actor":
        return ModelLayout(model_config, mesh)
    actor = config.actor_config
    _check_recomputed(actor.recompute_config.recompute_layers, model_config.num_layers)
    stages = offset_stages(model_config.num_layers, mesh.pp, actor.offset)
    return ModelLayout(model_config, mesh, actor.enable_parallel_optimizer, stages)


def layout_before_run(config: RunConfig, model: str, world_size: int | None) -> ModelLayout:
    """The same before a run: model.yaml is read, and nothing else that a run needs has to be set.

    Args:
        config: only `actor_config.model_config` and the layouts are looked at, and the limits of all numbers.
        model: "actor", "ref" or "generate".
        world_size: number of processes of the run; None: as many as the actor's layout is for.

    Raises:
        UserError: as in `layout_from_config`, or there is no model configuration.
    """
    check_limits(config, list(vars(config)))
    if not config.actor_config.model_config:
        raise UserError("actor_config.model_config is empty; set it in the YAML file or with its flag")
    sizes = load_model_config(config.actor_config.model_config)
    processes = num_processes(config.actor_config.parallel_config) if world_size is None else world_size
    return layout_from_config(config, sizes, model, processes)


def _check_recomputed(layers: list[int], num_layers: int) -> None:
    unknown = [layer for layer in layers if not 0 <= layer < num_layers]
    if unknown:
        raise UserError(
            f"actor_config.recompute_config.recompute_layers has {', '.join(map(str, unknown))}; "
            f"the model's layers are 0 to {num_layers - 1}"
        )
