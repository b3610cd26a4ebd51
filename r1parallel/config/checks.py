"""Refuse what cannot work before anything is loaded: one small function for each rule."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path

from r1parallel.config.layout_checks import check_parallel_configs
from r1parallel.config.limits import check_limits, values_of
from r1parallel.config.schema import RunConfig
from r1parallel.errors import UserError

# What each command cannot do without, and how users usually give it.
_GRPO_NEEDS = {
    "rl_config.dataset_file": "--dataset_file",
    "rl_config.tokenizer_dir": "--tokenizer_dir",
    "actor_config.load": "--actor_checkpoint_path",
    "actor_config.model_config": "--actor_config.model_config",
}
_SFT_NEEDS = {  # without actor_config.load training starts from random weights
    "sft_config.dataset_file": "--dataset_file",
    "sft_config.tokenizer_dir": "--tokenizer_dir",
    "actor_config.model_config": "--actor_config.model_config",
}
_PREDICT_NEEDS = {
    "generate_config.load": "--generate_config.load",
    "generate_config.model_config": "--generate_config.model_config",
}
# Sampling that leaves the policy's own distribution as it is. Temperature is applied in the loss too.
_ON_POLICY = {"top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "min_tokens": 0}
_FILES = ("rl_config.dataset_file", "sft_config.dataset_file", "sft_config.eval_dataset_file")
_FOLDERS = ("rl_config.tokenizer_dir", "sft_config.tokenizer_dir", "generate_config.tokenizer_dir")
_FILES_OR_FOLDERS = (
    "actor_config.load",
    "actor_config.model_config",
    "ref_config.load",
    "generate_config.load",
    "generate_config.model_config",
)


def check_config(config: RunConfig, sections: Sequence[str], world_size: int) -> None:
    """Check the values of `sections` against each other and against `world_size`, the number of processes.

    Raises:
        UserError: the first value that cannot work, with its key and what would work.

    """
    _check_needed_keys(config, sections)
    check_limits(config, sections)
    check_parallel_configs(config, sections, world_size)
    _check_interleave(config, sections)
    for section, check in _CHECKS:
        if section in sections:
            check(config)


def check_paths(config: RunConfig, sections: Sequence[str]) -> None:
    """Check that every file and folder that `sections` name exists.

    Raises:
        UserError: the first one that is missing, with its key.

    """
    kinds: tuple[tuple[Sequence[str], str, Callable[[Path], bool]], ...] = (
        (_FILES, "file", Path.is_file),
        (_FOLDERS, "folder", Path.is_dir),
        (_FILES_OR_FOLDERS, "file or folder", Path.exists),
    )
    for keys, kind, exists in kinds:
        for key, path in values_of(config, sections, keys):
            if path and not exists(Path(path)):
                raise UserError(f"{key}: {path}: no such {kind}; a relative path starts at {Path.cwd()}")


def _check_needed_keys(config: RunConfig, sections: Sequence[str]) -> None:
    if "rl_config" in sections:
        needs = _GRPO_NEEDS
    elif "sft_config" in sections:
        needs = _SFT_NEEDS
    else:
        needs = _PREDICT_NEEDS
    for key, flag in needs.items():
        if not attrgetter(key)(config):
            raise UserError(f"{key} is empty; set it in the YAML file or with {flag}")


def _check_interleave(config: RunConfig, sections: Sequence[str]) -> None:
    parts = config.actor_config.parallel_config.micro_batch_interleave_num
    for key, rows in values_of(config, sections, ("rl_config.batch_size", "sft_config.batch_size")):
        if rows % parts:
            raise UserError(
                f"actor_config.parallel_config.micro_batch_interleave_num is {parts}, which does not divide {key} "
                f"{rows}; {_around(parts, _divisors(rows))} would do"
            )


def _check_recompute(config: RunConfig) -> None:
    recompute = config.actor_config.recompute_config
    if recompute.recompute and recompute.select_recompute:
        raise UserError(
            "actor_config.recompute_config: recompute and select_recompute exclude each other; turn one of them off"
        )
    if recompute.recompute_layers and not (recompute.recompute or recompute.select_recompute):
        raise UserError(
            "actor_config.recompute_config.recompute_layers names layers, but nothing is recomputed; "
            "turn on recompute or select_recompute"
        )


def _check_schedule(config: RunConfig) -> None:
    schedule = config.actor_config.lr_schedule
    if schedule.warmup_step > schedule.decay_steps:
        raise UserError(
            f"actor_config.lr_schedule.warmup_step is {schedule.warmup_step}, more than decay_steps "
            f"{schedule.decay_steps}; the warm-up is a part of the decay_steps"
        )
    if schedule.min_lr > schedule.lr:
        raise UserError(f"actor_config.lr_schedule.min_lr is {schedule.min_lr}, more than lr {schedule.lr}; lower it")


def _check_rewards(config: RunConfig) -> None:
    rewards = config.reward_config
    functions, weights = len(rewards.verifier_function), len(rewards.verifier_weight)
    if functions == 0:
        raise UserError("reward_config.verifier_function is empty; name at least one reward function")
    if functions != weights:
        raise UserError(
            f"reward_config.verifier_weight has {weights} numbers for {functions} functions "
            f"({', '.join(rewards.verifier_function)}); give one for each"
        )


def _check_stop_ids(config: RunConfig) -> None:
    sampling = config.generate_config.sampling_config
    if any(token < 0 for token in sampling.eos_token_id):
        raise UserError(f"generate_config.sampling_config.eos_token_id is {sampling.eos_token_id}; ids start at 0")
    if sampling.pad_token_id < -1:
        raise UserError(
            f"generate_config.sampling_config.pad_token_id is {sampling.pad_token_id}; "
            "give an id, or -1 for the tokenizer's"
        )
    if sampling.min_tokens > sampling.max_tokens:
        raise UserError(
            f"generate_config.sampling_config.min_tokens is {sampling.min_tokens}, "
            f"more than max_tokens {sampling.max_tokens}; lower it"
        )


def _check_on_policy(config: RunConfig) -> None:
    sampling = config.generate_config.sampling_config
    if sampling.temperature == 0:
        raise UserError(
            "generate_config.sampling_config.temperature is 0, which draws the same completion every time; "
            "training needs it above 0"
        )
    if config.rl_config.rollout_correction != "none":
        return
    for name, needed in _ON_POLICY.items():
        if getattr(sampling, name) != needed:
            raise UserError(
                f"generate_config.sampling_config.{name} is {getattr(sampling, name)}: training on samples that were "
                f"not drawn from the policy biases the ratio; set it to {needed}, or correct for it with "
                "rl_config.rollout_correction sequence_mask"
            )


def _check_correction(config: RunConfig) -> None:
    rl = config.rl_config
    if rl.rollout_correction_low >= rl.rollout_correction_high:
        raise UserError(
            f"rl_config.rollout_correction_low is {rl.rollout_correction_low}, not below rollout_correction_high "
            f"{rl.rollout_correction_high}; lower it"
        )


def _check_group(config: RunConfig) -> None:
    rl = config.rl_config
    alone = rl.advantage_estimator == "reinforce_plus_plus" and rl.advantage_scale != "group"
    if rl.num_generations < 2 and not (alone and not rl.dynamic_sampling):
        raise UserError(
            f"rl_config.num_generations is {rl.num_generations}; an advantage compares completions of one prompt, "
            "so it must be at least 2"
        )
    if rl.dynamic_sampling and rl.max_refills < 1:
        raise UserError("rl_config.max_refills is 0 with dynamic_sampling; give it at least 1 round, or turn that off")


def _check_loss(config: RunConfig) -> None:
    """Combinations of which one part would have no meaning."""
    rl = config.rl_config
    if rl.dual_clip and rl.dual_clip <= 1.0:
        raise UserError(f"rl_config.dual_clip is {rl.dual_clip}; it must be above 1, or 0 for none")
    if rl.dual_clip and rl.policy_loss != "clip":
        raise UserError(f"rl_config.dual_clip belongs to policy_loss clip, not {rl.policy_loss}; leave it out")
    if rl.policy_loss == "reinforce" and rl.importance_level == "sequence":
        raise UserError(
            "rl_config.policy_loss reinforce has no ratio, so importance_level sequence has no meaning; leave it out"
        )
    if rl.loss_constant and rl.loss_aggregation != "constant":
        raise UserError(
            f"rl_config.loss_constant belongs to loss_aggregation constant, not {rl.loss_aggregation}; set it to 0"
        )
    in_reward = rl.beta > 0 and rl.kl_place == "reward"
    if in_reward and (rl.kl_gradient != "same" or rl.kl_importance_weighted):
        raise UserError(
            "rl_config.kl_gradient and kl_importance_weighted belong to kl_place loss: a reward has no gradient; "
            "leave them out"
        )
    if rl.kl_controller == "adaptive" and rl.beta == 0:
        raise UserError("rl_config.kl_controller is adaptive, but beta is 0 and stays 0; give beta a value to start at")
    completion = config.generate_config.sampling_config.max_tokens
    if rl.overlong_buffer > completion:
        raise UserError(
            f"rl_config.overlong_buffer is {rl.overlong_buffer}, more than "
            f"generate_config.sampling_config.max_tokens {completion}; lower it"
        )
    if rl.pack_length and not rl.packing:
        raise UserError("rl_config.pack_length is given, but packing is off; turn it on")


def _check_lengths(config: RunConfig) -> None:
    prompt = config.generate_config.max_prompt_length
    completion = config.generate_config.sampling_config.max_tokens
    if prompt + completion > config.rl_config.seq_length:
        raise UserError(
            f"rl_config.seq_length is {config.rl_config.seq_length}, but generate_config.max_prompt_length "
            f"{prompt} + sampling_config.max_tokens {completion} = {prompt + completion}; "
            "raise it or lower one of the two"
        )


def _check_batches(config: RunConfig) -> None:
    """Rows that do not fill a batch are masked; what would leave every batch mostly empty is a mistake."""
    rl, actor = config.rl_config, config.actor_config.parallel_config
    prompts = rl.chunk_size * config.generate_config.parallel_config.data_parallel * rl.num_rollouts
    completions = prompts * rl.num_generations
    made = (
        f"one step makes chunk_size {rl.chunk_size} * generator's data_parallel "
        f"{config.generate_config.parallel_config.data_parallel} * num_rollouts {rl.num_rollouts} * num_generations "
        f"{rl.num_generations} = {completions} completions"
    )
    if rl.mini_batch_size > completions:
        raise UserError(f"{made}, fewer than rl_config.mini_batch_size {rl.mini_batch_size}; lower it")
    batch = rl.batch_size * actor.data_parallel * actor.micro_batch_num
    if batch > completions:
        raise UserError(
            f"{made}, fewer than the training batch: batch_size {rl.batch_size} * actor's data_parallel "
            f"{actor.data_parallel} * micro_batch_num {actor.micro_batch_num} = {batch}; lower one of these or raise "
            "num_rollouts"
        )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _around(value: int, working: Sequence[int]) -> str:
    """The nearest working numbers below and above `value`."""
    below = [number for number in working if number < value][-1:]
    above = [number for number in working if number > value][:1]
    return " or ".join(str(number) for number in below + above)


def check_compute_dtype(config: RunConfig) -> None:
    """Check that the device can compute in the configured type. What is only compiled needs no check.

    Raises:
        UserError: bfloat16 on the CPU.

    """
    context = config.context
    if context.compute_dtype == "bfloat16" and context.device_target == "CPU":
        raise UserError(
            "context.compute_dtype is bfloat16, which the CPU cannot compute in; "
            "set it to float32, or context.device_target to Ascend"
        )


_CHECKS: tuple[tuple[str, Callable[[RunConfig], None]], ...] = (
    ("context", check_compute_dtype),
    ("actor_config", _check_recompute),
    ("actor_config", _check_schedule),
    ("reward_config", _check_rewards),
    ("generate_config", _check_stop_ids),
    ("rl_config", _check_on_policy),
    ("rl_config", _check_correction),
    ("rl_config", _check_group),
    ("rl_config", _check_loss),
    ("rl_config", _check_lengths),
    ("rl_config", _check_batches),
)
