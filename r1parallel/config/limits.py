"""Limits of single values: how small, how large, which names."""

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

from r1parallel.config.presets import PRESETS
from r1parallel.config.schema import RunConfig
from r1parallel.errors import UserError

_LAYOUTS = ("actor_config.parallel_config", "ref_config.parallel_config", "generate_config.parallel_config")
_LAYOUT_NUMBERS = (
    "data_parallel",
    "model_parallel",
    "pipeline_stage",
    "micro_batch_num",
    "micro_batch_interleave_num",
)
_AT_LEAST_ONE = (
    "rl_config.epochs",
    "rl_config.batch_size",
    "rl_config.seq_length",
    "rl_config.num_rollouts",
    "rl_config.chunk_size",
    "rl_config.num_iterations",
    "rl_config.kl_horizon",
    "rl_config.save_max_ckpt_num",
    "rl_config.save_prompt_completions_interval",
    "sft_config.epochs",
    "sft_config.batch_size",
    "sft_config.eval_batch_size",
    "sft_config.eval_interval",
    "sft_config.save_max_ckpt_num",
    "ref_config.ref_model_batch_size",
    "ref_config.ref_model_sync_steps",
    "generate_config.infer_model_batch_size",
    "generate_config.max_prompt_length",
    "generate_config.sampling_config.max_tokens",
    "reward_config.memory_limit",
    "context.max_call_depth",
    *(f"{layout}.{name}" for layout in _LAYOUTS for name in _LAYOUT_NUMBERS),
)
_ABOVE_ZERO = (
    "actor_config.lr_schedule.lr",
    "actor_config.lr_schedule.decay_steps",
    "actor_config.optimizer.eps",
    "reward_config.time_limit",
    "rl_config.kl_target",
    "rl_config.rollout_correction_high",
    "context.wait_limit",
    "generate_config.sampling_config.repetition_penalty",
    "generate_config.sampling_config.top_p",
    "monitor_config.host_max_memory_threshold",
)
_AT_LEAST_ZERO = (
    "rl_config.max_steps",
    "rl_config.seed",
    "rl_config.epsilon_low",
    "rl_config.epsilon_high",
    "rl_config.beta",
    "rl_config.mini_batch_size",
    "rl_config.pack_length",
    "rl_config.max_refills",
    "rl_config.overlong_buffer",
    "rl_config.overlong_penalty",
    "rl_config.dual_clip",
    "rl_config.loss_constant",
    "rl_config.kl_clamp",
    "rl_config.entropy_coef",
    "rl_config.rollout_correction_low",
    "rl_config.save_ckpt_interval",
    "sft_config.max_steps",
    "sft_config.seed",
    "sft_config.save_ckpt_interval",
    "actor_config.optimizer.weight_decay",
    "actor_config.optimizer.max_grad_norm",
    "actor_config.optimizer.adam_beta1",
    "actor_config.optimizer.adam_beta2",
    "actor_config.lr_schedule.min_lr",
    "actor_config.lr_schedule.warmup_step",
    "generate_config.sampling_config.min_tokens",
    "generate_config.sampling_config.temperature",
    "generate_config.sampling_config.top_k",
    "reward_config.num_workers",
    "context.device_id",
    "monitor_config.num_samples",
)
_BELOW_ONE = (
    "actor_config.optimizer.adam_beta1",
    "actor_config.optimizer.adam_beta2",
)
_AT_MOST_ONE = (
    "rl_config.epsilon_low",  # 1: the ratio has no lower limit
    "generate_config.sampling_config.top_p",
    "monitor_config.host_max_memory_threshold",
)
_SEEDS = ("rl_config.seed", "sft_config.seed")
LARGEST_SEED = 2**32 - 1  # of NumPy's generators, which MindSpore seeds too
_RULES: tuple[tuple[Sequence[str], str, Callable[[float], bool]], ...] = (
    (_AT_LEAST_ONE, "at least 1", lambda value: value >= 1),
    (_ABOVE_ZERO, "above 0", lambda value: value > 0),
    (_AT_LEAST_ZERO, "0 or more", lambda value: value >= 0),
    (_BELOW_ONE, "below 1", lambda value: value < 1),
    (_AT_MOST_ONE, "at most 1", lambda value: value <= 1),
    (("rl_config.rollout_gap_limit",), "0 or more, or -1", lambda value: value >= 0 or value == -1),
    (_SEEDS, f"at most {LARGEST_SEED}", lambda value: value <= LARGEST_SEED),
)
KL_ESTIMATORS = ("k1", "k2", "k3", "abs")
_KNOWN_NAMES = {
    "actor_config.lr_schedule.lr_decay_style": ("cosine", "linear", "constant"),
    "actor_config.optimizer.type": ("adamw", "momentum"),
    "rl_config.algorithm": tuple(PRESETS),
    "rl_config.overlong": ("keep", "mask", "penalty"),
    "rl_config.advantage_estimator": ("group", "rloo", "reinforce_plus_plus"),
    "rl_config.advantage_scale": ("group", "batch", "none"),
    "rl_config.policy_loss": ("clip", "cispo", "reinforce"),
    "rl_config.importance_level": ("token", "sequence"),
    "rl_config.loss_aggregation": ("sequence_mean", "token_mean", "constant"),
    "rl_config.kl_estimator": KL_ESTIMATORS,
    "rl_config.kl_gradient": ("same", *KL_ESTIMATORS),
    "rl_config.kl_place": ("loss", "reward"),
    "rl_config.kl_controller": ("fixed", "adaptive"),
    "rl_config.rollout_correction": (
        "none",
        "token_truncate",
        "token_mask",
        "sequence_truncate",
        "sequence_mask",
    ),
    "context.device_target": ("CPU", "Ascend"),
    "context.compute_dtype": ("float32", "bfloat16"),
}


def check_limits(config: RunConfig, sections: Sequence[str]) -> None:
    """Check every value of `sections` that stands alone.

    Raises:
        UserError: the first number out of its range, or name that is none of the known ones.

    """
    for keys, rule, holds in _RULES:
        for key, value in values_of(config, sections, keys):
            if not holds(value):
                raise UserError(f"{key} is {value}; it must be {rule}")
    for key, value in values_of(config, sections, _KNOWN_NAMES):
        if value not in _KNOWN_NAMES[key]:
            raise UserError(f"{key} is {value!r}; known: {', '.join(_KNOWN_NAMES[key])}")


def values_of(config: RunConfig, sections: Sequence[str], keys: Iterable[str]) -> list[tuple[str, Any]]:
    """(key, value) of those dotted `keys` that lie in `sections`."""
    return [(key, attrgetter(key)(config)) for key in keys if key.split(".")[0] in sections]
