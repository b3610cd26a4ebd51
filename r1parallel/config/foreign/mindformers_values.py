"""Values of a mindformers file in the terms of ours; `foreign_mindformers` says which key uses which.

Each function takes their value and a look at the file's other keys. It returns ours, a dict of several, {} for none, or
None where something else must give one, and raises ValueError where there is no counterpart.
"""

from pathlib import Path
from typing import Any

from r1parallel.config.foreign.key_translation import Look
from r1parallel.config.stages import offset_stages

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant"}
_OPTIMIZERS = ("adamw", "fp32stateadamweightdecay", "pmaadamw", "fusedcastadamw")


def betas(value: Any, _: Look) -> dict[str, Any]:
    """Both decays of Adam."""
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("give two numbers")
    return {"train:optimizer.adam_beta1": value[0], "train:optimizer.adam_beta2": value[1]}


def optimizer(value: Any, _: Look) -> str:
    """AdamW, whatever it keeps in float32."""
    if str(value).lower() not in _OPTIMIZERS:
        raise ValueError("the optimizer is AdamW")
    return "adamw"


def optimizer_lr(value: Any, look: Look) -> Any:
    """The learning rate of the optimizer, where the schedule has none."""
    return {} if look("lr_schedule.learning_rate", None) is not None else value


def style(value: Any, _: Look) -> str:
    """The schedule's shape after the warm-up."""
    for word, style in _SCHEDULES.items():
        if word in str(value).lower() and "restart" not in str(value).lower():
            return style
    raise ValueError("known schedules: CosineWithWarmUpLR, LinearWithWarmUpLR, ConstantWarmUpLR")


def total_steps(value: Any, look: Look) -> Any:
    """Updates until the end of the decay; -1 asks for the length of the run."""
    if value == -1:
        return {} if _constant(look) else None
    return value


def warmup_ratio(value: Any, look: Look) -> Any:
    """Updates of warm-up as a part of total_steps."""
    total = look("lr_schedule.total_steps", -1)
    if look("lr_schedule.warmup_steps", None) is not None:
        return {}
    return None if value and total == -1 else round(float(value) * max(total, 0))


def _constant(look: Look) -> bool:
    """Whether the learning rate stays as it is after the warm-up, so that the end of its decay does not matter."""
    schedule = "lr_schedule"
    peak = float(look(f"{schedule}.learning_rate", 0))
    return "constant" in str(look(f"{schedule}.type", "")).lower() or float(look(f"{schedule}.lr_end", -1)) == peak


def micro_batch_num(value: Any, look: Look) -> Any:
    """Micro-batches of an update, which mindformers has in a pipeline only."""
    return value if look("parallel_config.pipeline_stage", 1) > 1 else 1


def max_grad_norm(value: Any, look: Look) -> Any:
    """The limit of the gradients' norm, where it is on."""
    return value if look("runner_wrapper.use_clip_grad", True) else 0.0


def recompute(value: Any, look: Look) -> dict[str, Any]:
    """All blocks, none, or the first so many of each pipeline stage."""
    place = "model:recompute_config"
    if isinstance(value, bool):
        return {f"{place}.recompute": value}
    stages = look("parallel_config.pipeline_stage", 1)
    counts = value if isinstance(value, list) else [value] * stages
    if len(counts) != stages or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"give a number of layers for each of {stages} pipeline stages")
    offset = look("model.model_config.offset", 0)
    sizes = offset_stages(
        look("model.model_config.num_layers", 0), stages, offset if isinstance(offset, list) else [offset]
    )
    starts = [sum(sizes[:stage]) for stage in range(stages)]
    layers = [
        layer
        for start, size, count in zip(starts, sizes, counts, strict=True)
        for layer in range(start, start + min(size, count))
    ]
    return {f"{place}.recompute": bool(layers), f"{place}.recompute_layers": layers}


def select_recompute(value: Any, look: Look) -> dict[str, Any]:
    """Whole blocks go first: they keep less, and the two exclude each other."""
    return (
        {}
        if look("recompute_config.recompute", False) or not value
        else {"model:recompute_config.select_recompute": True}
    )


def compute_dtype(value: Any, _: Look) -> str:
    """What operators compute in."""
    if value not in ("float32", "bfloat16"):
        raise ValueError("compute in float32 or bfloat16")
    return str(value)


def callbacks(value: Any, _: Look) -> dict[str, Any]:
    """How often checkpoints are written, and how many are kept."""
    found = {}
    for callback in value:
        for name, key in (
            ("save_checkpoint_steps", "run:save_ckpt_interval"),
            ("keep_checkpoint_max", "run:save_max_ckpt_num"),
        ):
            if callback.get("type") == "CheckpointMonitor" and name in callback:
                found[key] = callback[name]
    return found


def folder_of_file(value: Any, _: Look) -> Any:
    """The folder of a tokenizer's file."""
    return str(Path(value).parent) if value else {}
