"""The pictures of docs/parallel.md, drawn from the layout of a run's actor."""

from pathlib import Path

from r1parallel.config.schema import RunConfig
from r1parallel.errors import UserError
from r1parallel.monitor.pictures.block_picture import draw_block
from r1parallel.monitor.pictures.mesh_picture import draw_mesh
from r1parallel.monitor.pictures.schedule_picture import draw_schedule
from r1parallel.parallel.layout.from_config import layout_before_run

_MOST_IN_A_STAGE, _MOST_STAGES, _MOST_MICRO = 8, 8, 64  # more cannot be read on a page


def draw_layout(config: RunConfig, folder: str | Path) -> list[Path]:
    """Write mesh.svg, block.svg and schedule.svg; equal configurations give equal bytes.

    Args:
        config: of the run; only what the actor's layout needs has to be set.
        folder: made when missing.

    Raises:
        UserError: as in `layout_before_run`, or the layout is too large for a picture.
    """
    layout = layout_before_run(config, "actor", None)
    parallel, recompute = config.actor_config.parallel_config, config.actor_config.recompute_config
    for found, limit, what in (
        (layout.stage_size, _MOST_IN_A_STAGE, "data_parallel * model_parallel"),
        (layout.mesh.pp, _MOST_STAGES, "pipeline_stage"),
        (parallel.micro_batch_num, _MOST_MICRO, "micro_batch_num"),
    ):
        if found > limit:
            raise UserError(
                f"actor_config.parallel_config: {what} is {found}; a picture can show {limit}, so give smaller numbers"
            )
    pictures = {
        "mesh.svg": (draw_mesh(layout), "The mesh of ranks"),
        "block.svg": (draw_block(layout, parallel.use_seq_parallel), "The layout of one block"),
        "schedule.svg": (
            draw_schedule(layout.mesh.pp, parallel.micro_batch_num, recompute.recompute),
            "The schedule of the pipeline",
        ),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (canvas, title) in pictures.items():
        canvas.save(folder / name, title)
    return [folder / name for name in pictures]
