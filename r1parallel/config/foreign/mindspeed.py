"""What the keys of MindSpeed-RL's rl_config mean here. Its other sections are Megatron's and have no counterpart."""

from typing import Any

from r1parallel.config.foreign.key_translation import Fate, Look, Table, only, renamed, without_meaning

_KL = {"kl": "k1", "abs": "abs", "mse": "k2", "low_var_kl": "k3"}
_DISPATCH = "completions of a step are handed on together"
_RAY = "there is no Ray here: one process for each device"


def _one_of(table: dict[Any, str]) -> Any:
    def convert(value: Any, _: Look) -> Any:
        if value not in table:
            raise ValueError(f"known: {', '.join(map(str, table))}")
        return table[value]

    return convert


def _clip_ratio(value: Any, look: Look) -> Any:
    return {} if look("rl_config.clip_higher_enable", False) else value


def _where_on(switch: str) -> Any:
    """The value counts only where another key is on."""

    def convert(value: Any, look: Look) -> Any:
        return value if look(f"rl_config.{switch}", False) else {}

    return convert


def _completions(value: Any, look: Look) -> Any:
    return value * look("rl_config.n_samples_per_prompt", 1)


def _refills(value: Any, look: Look) -> Any:
    if not look("rl_config.filter_groups_enable", False):
        return {}
    if value < 0:
        raise ValueError("a step has a limit here; give the number of rounds of other prompts")
    return max(value - 1, 0)


KEYS: Table = {
    "rl_config.adv_estimator": renamed(
        "rl_config.advantage_estimator", text="PPO's gae needs a critic", convert=_one_of({"group_norm": "group"})
    ),
    "rl_config.kl_penalty": renamed("rl_config.kl_estimator", convert=_one_of(_KL)),
    "rl_config.kl_ctrl_type": renamed("rl_config.kl_controller"),
    "rl_config.init_kl_coef": renamed("rl_config.beta"),
    "rl_config.use_kl_in_reward": renamed("rl_config.kl_place", convert=_one_of({True: "reward", False: "loss"})),
    "rl_config.clip_ratio": renamed(
        "rl_config.epsilon_low", "rl_config.epsilon_high", text="unless clip_higher_enable", convert=_clip_ratio
    ),
    "rl_config.clip_higher_enable": Fate((), "clip_ratio_low and clip_ratio_high count where it is on"),
    "rl_config.clip_ratio_low": renamed("rl_config.epsilon_low", convert=_where_on("clip_higher_enable")),
    "rl_config.clip_ratio_high": renamed("rl_config.epsilon_high", convert=_where_on("clip_higher_enable")),
    "rl_config.token_level_loss": renamed(
        "rl_config.loss_aggregation", convert=_one_of({True: "token_mean", False: "sequence_mean"})
    ),
    "rl_config.entropy_coeff": renamed("rl_config.entropy_coef"),
    "rl_config.overlong_buffer_enable": renamed(
        "rl_config.overlong", convert=_one_of({True: "penalty", False: "keep"})
    ),
    "rl_config.overlong_buffer": renamed("rl_config.overlong_buffer", convert=_where_on("overlong_buffer_enable")),
    "rl_config.overlong_buffer_penalty_factor": renamed(
        "rl_config.overlong_penalty", convert=_where_on("overlong_buffer_enable")
    ),
    "rl_config.rollout_max_tokens": Fate((), "sampling_config.max_tokens is the longest completion"),
    "rl_config.filter_groups_enable": renamed("rl_config.dynamic_sampling"),
    "rl_config.filter_groups_metric": Fate((), "groups are compared by their whole reward"),
    "rl_config.filter_groups_max_batches": renamed(
        "rl_config.max_refills", text="rounds after the first, where filter_groups_enable", convert=_refills
    ),
    "rl_config.filter_groups_train_batch_size": Fate((), "a step keeps its number of prompts"),
    "rl_config.use_dynamic_bsz": renamed("rl_config.packing"),
    "rl_config.use_remove_padding": Fate((), "rl_config.packing leaves out padding"),
    "rl_config.update_max_packing_token_size": renamed("rl_config.pack_length", convert=_where_on("use_dynamic_bsz")),
    "rl_config.max_packing_token_size": Fate((), "update_max_packing_token_size is pack_length"),
    **without_meaning(
        "pack_length is one for all models",
        *(f"rl_config.{name}_max_packing_token_size" for name in ("ref", "actor")),
        *(f"rl_config.{name}dynamic_max_batch_size" for name in ("", "ref_", "actor_", "update_")),
    ),
    "rl_config.use_dp_batch_balance": Fate((), "every rank has the same number of rows"),
    "rl_config.partial_rollout_max_split": only((1,), "a completion is drawn in one step"),
    "rl_config.require_max_age_all_finished": Fate((), "a completion is drawn in one step"),
    "rl_config.n_samples_per_prompt": renamed("rl_config.num_generations"),
    "rl_config.mini_batch_size": renamed(
        "rl_config.mini_batch_size", text="prompts there, completions here", convert=_completions
    ),
    "rl_config.max_prompt_length": renamed("generate_config.max_prompt_length"),
    "rl_config.ref_forward_micro_batch_size": renamed("ref_config.ref_model_batch_size"),
    "rl_config.actor_forward_micro_batch_size": Fate((), "old log-probs are computed with batch_size rows"),
    "rl_config.advantage_whiten": Fate((), "only for gae"),
    **without_meaning("only for gae", "rl_config.gamma", "rl_config.lam", "rl_config.cliprange_value"),
    "rl_config.shuffle_mini_batch": only((False,), "completions of a step keep their order"),
    "rl_config.shuffle_minibatch": only((False,), "completions of a step keep their order"),
    "rl_config.rule_reward": only((True,), "rewards are rules; there is no reward model"),
    "rl_config.verifier_parallel": Fate((), "rewards have a pool of processes"),
    "rl_config.verifier_timeout": renamed("reward_config.time_limit"),
    "rl_config.verifier_function": renamed("reward_config.verifier_function"),
    "rl_config.verifier_weight": renamed("reward_config.verifier_weight"),
    "rl_config.use_tensorboard": renamed("rl_config.tensorboard"),
    **without_meaning(
        "metrics are JSON lines, TensorBoard events and a report",
        *(f"rl_config.{name}" for name in ("use_wandb", "wandb_project", "wandb_exp_name", "wandb_save_dir")),
    ),
    **without_meaning(
        _RAY,
        *(
            f"rl_config.{name}"
            for name in ("use_integrated_worker", "integrated_mode_config", "blocking", "async_engine")
        ),
        *(
            f"rl_config.{name}"
            for name in ("guarantee_order", "num_cpus_for_local_task", "num_cpus_for_placement_group")
        ),
        *(f"rl_config.{name}_resource" for name in ("actor", "reference", "reward", "critic", "vit")),
        *("rl_config.runtime_env_path", "rl_config.zmq_communication", "rl_config.log_max_throughput"),
    ),
    **without_meaning(
        _DISPATCH,
        *(f"rl_config.{name}_dispatch_size" for name in ("actor_rollout", "actor_logprob", "ref", "reward", "adv")),
        *(f"rl_config.{name}_dispatch_size" for name in ("actor_update", "dynamic_sampling", "kl")),
    ),
}
# A file with one of these is MindSpeed-RL's, so that `mini_batch_size` or `init_kl_coef` mean what they do there.
MARKS = ("adv_estimator", "kl_penalty", "kl_ctrl_type", "clip_ratio", "n_samples_per_prompt", "token_level_loss")
