"""Layouts of the tiny model for 1, 2, 4 and 8 processes."""

from dataclasses import dataclass

from r1parallel.errors import UserError


@dataclass(frozen=True)
class TinyLayout:
    """How the tiny model is spread: (dp, tp, pp) of the actor, (dp, tp) of generator and reference."""

    actor: tuple[int, int, int]
    generator: tuple[int, int]


TINY_LAYOUTS = {
    1: TinyLayout((1, 1, 1), (1, 1)),
    2: TinyLayout((1, 2, 1), (2, 1)),
    4: TinyLayout((2, 2, 1), (2, 2)),
    8: TinyLayout((2, 2, 2), (4, 2)),
}


def tiny_grpo_flags(world_size: int) -> dict[str, str]:
    """What to change in model_configs/tiny/grpo.yaml for a number of processes; prompts and updates stay the same.

    Raises:
        UserError: there is no layout for so many.
    """
    if world_size not in TINY_LAYOUTS:
        raise UserError(
            f"the tiny model has layouts for {', '.join(map(str, TINY_LAYOUTS))} processes, not for {world_size}; "
            "start one of these numbers or give --config"
        )
    layout = TINY_LAYOUTS[world_size]
    generator, _ = layout.generator
    return actor_flags(layout) | {
        "actor_config.parallel_config.micro_batch_num": "4",
        "rl_config.batch_size": str(64 // layout.actor[0]),
        "rl_config.chunk_size": str(8 // generator),
        "generate_config.infer_model_batch_size": str(256 // generator),
        **_mesh_flags("generate_config", layout.generator),
        **_mesh_flags("ref_config", layout.generator),
    }


def actor_flags(layout: TinyLayout) -> dict[str, str]:
    """Flags of the actor's layout; with a pipeline, sequence and optimizer parallelism too."""
    dp, tp, pp = layout.actor
    return {
        **_mesh_flags("actor_config", (dp, tp)),
        "actor_config.parallel_config.pipeline_stage": str(pp),
        "actor_config.parallel_config.use_seq_parallel": str(pp > 1).lower(),
        "actor_config.enable_parallel_optimizer": str(pp > 1).lower(),
    }


def _mesh_flags(section: str, mesh: tuple[int, int]) -> dict[str, str]:
    return {
        f"{section}.parallel_config.data_parallel": str(mesh[0]),
        f"{section}.parallel_config.model_parallel": str(mesh[1]),
    }
