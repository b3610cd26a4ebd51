"""The one place where the device is set up. Called once, before any Cell is made."""

import os

import mindspore as ms

from r1parallel.config.schema import ContextConfig
from r1parallel.errors import UserError
from r1parallel.parallel.launch.rank_status import job_status
from r1parallel.parallel.launch.waiting import waiting, watch
from r1parallel.parallel.launch.world import World, is_worker, launched_world_size

DEVICE_TARGETS = ("CPU", "Ascend")

_world: World | None = None


def setup_device(config: ContextConfig) -> World:
    """Graph mode on the configured device; under msrun, also the way to the other ranks.

    Under msrun each rank takes the device that msrun gave it, and `context.device_id` is not read. On the CPU the
    backend that MindSpore lacks there is switched on; on Ascend it is not even imported.

    Returns:
        Which rank this is, of how many.

    Raises:
        UserError: MindSpore has no such device here, or the CPU backend does not know this wheel.
    """
    device_id = int(os.environ["DEVICE_ID"]) if is_worker() else config.device_id
    try:
        ms.set_context(mode=ms.GRAPH_MODE)
        ms.set_recursion_limit(config.max_call_depth)
        ms.set_device(config.device_target, device_id)
    except (RuntimeError, ValueError, TypeError) as error:
        first_line = str(error).splitlines()[0]
        raise UserError(f"context.device_target {config.device_target}, device_id {device_id}: {first_line}") from None
    if config.save_graphs:
        ms.set_context(save_graphs=1, save_graphs_path=config.save_graphs_path)
    world = _join_job(config) if is_worker() else World()
    if config.device_target == "CPU":
        _enable_fused(world)
    return world


def has_fused_kernels() -> bool:
    """Whether the CPU, as it was set up, has kernels for Ascend's fused operators, in float32."""
    from r1parallel.cpu_backend.enable import has_fused

    return has_fused()


def current_world() -> World:
    """The job that this process has joined; a single process is a job of its own."""
    return _world or World()


def _join_job(config: ContextConfig) -> World:
    """Find the other ranks. A second call in a process only sets the limit of waiting anew."""
    global _world
    from mindspore.communication import get_group_size, get_rank, init

    known_rank = _world.rank if _world else int(os.environ.get("RANK_ID", "-1"))
    if known_rank >= 0:  # msrun with several nodes and without --node_rank leaves the numbering to init
        watch(job_status(), known_rank, launched_world_size(), config.wait_limit)
    if _world is not None:
        return _world
    with waiting("the start of the job"):
        init()
    _world = World(get_rank(), get_group_size())
    if _world.rank != known_rank:
        os.environ["RANK_ID"] = str(_world.rank)  # as msrun sets it otherwise
        watch(job_status(), _world.rank, _world.size, config.wait_limit)
    if config.device_target == "CPU" and _world.size > 1:
        _enable_cpu_backend(_world)
    return _world


def _enable_cpu_backend(world: World) -> None:
    from r1parallel.cpu_backend.enable import enable

    missing = enable()
    if missing and world.is_leader:
        print(missing, flush=True)


def _enable_fused(world: World) -> None:
    from r1parallel.cpu_backend.enable import enable_fused

    missing = enable_fused()
    if missing and world.is_leader:
        print(missing, flush=True)
