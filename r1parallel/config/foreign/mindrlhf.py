"""What the keys and flags of mindrlhf's GRPO mean here. A key that is not listed has the same name and meaning.

Three generations: flags of main.py with mindformers files (0.4.0), flags with one grpo_config.yaml, and the same file
with key=value words.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1parallel.config.foreign.key_translation import Fate, Look, Table, only, renamed, without_meaning

_PPO = "mindrlhf reads it for PPO; its GRPO does not use it either"
_VLLM = "there is no vLLM here; the generator is r1parallel's own"
_LAYOUTS = ("actor_config", "ref_config", "generate_config")
_COMMUNICATION = "the backward pass does not repeat communication"
_GENERATOR = "the generator takes the actor's weights"
_FORMAT = "the format of a checkpoint is read from its files"
_PARALLEL = "the number of processes decides"
_HOST = "the host's memory is watched at every step where host_memory_protection is on"
_MASK = "attention makes its own mask"


_PROFILER = (
    *("profile", "mstx", "stage", "profile_save_path", "profile_step_start", "profile_step_end", "profile_level"),
    *("profile_with_memory", "profile_with_cpu", "profile_with_npu", "profile_with_stack", "profile_analysis"),
    "profile_ranks",
)

KEYS: Table = {
    "rl_config.deterministic": Fate((), "CPU runs are deterministic"),
    "rl_config.align_type": Fate((), "mindrlhf itself does not read it"),
    "rl_config.tokenizer_type": Fate((), "the files of tokenizer_dir say what it is"),
    "rl_config.sink_size": Fate((), "data are fed step by step"),
    "rl_config.use_parallel": Fate((), _PARALLEL),
    "rl_config.load_ckpt_format": Fate((), _FORMAT),
    "rl_config.save_ckpt_format": only(("safetensors",), "checkpoints are safetensors; tools convert them"),
    "rl_config.parallel_mode": Fate((), "operators are laid out by r1parallel"),
    "rl_config.enable_compile_cache": renamed("context.compile_cache"),
    "rl_config.compile_cache_path": Fate((), "compiled graphs are kept in the user's cache folder, XDG_CACHE_HOME"),
    "rl_config.save_data_file": Fate((), "a step's completions are not written as MindRecord; samples are in the run"),
    "rl_config.pack_num": Fate((), "pack_length limits a packed row, however many completions it holds"),
    "rl_config.packing_sample_length": renamed("rl_config.pack_length"),
    "rl_config.save_prompt_completions_dir": Fate((), "samples are written into output_dir"),
    "rl_config.reshard_mem_opt_level": Fate((), "weights are moved between layouts one parameter at a time"),
    "rl_config.reshard_mode": Fate((), "there is one way to move weights between layouts"),
    "rl_config.enable_reshard_optimizer": Fate((), "a checkpoint of any layout can be resumed"),
    "rl_config.save_checkpoint_steps": renamed("rl_config.save_ckpt_interval"),
    "rl_config.save_checkpoint_dir": renamed("actor_config.save"),
    "rl_config.tensorboard_queue_size": Fate((), "events are written at every step"),
    "rl_config.enable_full_monitor": Fate((), "clip fraction, KL and loss are always in the metrics"),
    "rl_config.performance_stats": Fate((), "phases are always timed in the metrics"),
    "rl_config.micro_batch_interleaved": renamed("actor_config.parallel_config.micro_batch_interleave_num"),
    "rl_config.enable_oldpolicy": Fate((), "old log-probs are computed whenever a step has more than one update"),
    "rl_config.start_lr": renamed("actor_config.lr_schedule.lr"),
    "rl_config.end_lr": renamed("actor_config.lr_schedule.min_lr"),
    "rl_config.grpo_epochs": renamed("rl_config.epochs"),
    "rl_config.warmup_step": renamed("actor_config.lr_schedule.warmup_step"),
    "rl_config.decay_steps": renamed("actor_config.lr_schedule.decay_steps"),
    "rl_config.sync_ref_model": renamed("ref_config.sync_ref_model"),
    "rl_config.ref_model_sync_steps": renamed("ref_config.ref_model_sync_steps"),
    **without_meaning(
        _PPO,
        *(
            f"rl_config.{name}"
            for name in ("init_kl_coef", "kl_coef", "target", "horizon", "gamma", "lam", "cliprange")
        ),
        *(f"rl_config.{name}" for name in ("cliprange_value", "vf_coef", "pretrain_coef", "scale_reward", "ref_mean")),
        *(f"rl_config.{name}" for name in ("ref_std", "gen_experience_kwargs")),
    ),
    **without_meaning(_HOST, "monitor_config.host_monitor_interval", "monitor_config.host_monitor_steps"),
    **{
        f"{model}.parallel_config.{name}": fate
        for model in _LAYOUTS
        for name, fate in {
            "expert_parallel": only((1,), "a Qwen2.5 model has no experts"),
            "context_parallel": only((1,), "sequences are not split; use_seq_parallel splits activations"),
            "vocab_emb_dp": Fate((), "the embedding is split over model_parallel"),
            "gradient_aggregation_group": Fate((), "each gradient is summed on its own"),
        }.items()
    },
    "actor_config.enable_alltoall": Fate((), "a Qwen2.5 model has no experts"),
    **without_meaning(_MASK, *(f"{model}.use_eod_attn_mask_compression" for model in _LAYOUTS)),
    "actor_config.loss_scale_value": Fate((), "gradients need no loss scale in float32 and bfloat16"),
    **{
        f"{model}.recompute_config.{name}": Fate((), text)
        for model in ("actor_config", "ref_config")
        for name, text in {
            "select_comm_recompute": _COMMUNICATION,
            "parallel_optimizer_comm_recompute": _COMMUNICATION,
            "mp_comm_recompute": _COMMUNICATION,
            "recompute_slice_activation": "what is kept for the backward pass is split with use_seq_parallel",
        }.items()
    },
    **without_meaning(
        "the reference model is not trained",
        "ref_config.recompute_config.recompute",
        "ref_config.recompute_config.select_recompute",
    ),
    "actor_config.optimizer.opt_offload": Fate((), "the optimizer's state stays on the device"),
    "ref_config.model_config": Fate((), "the reference has the actor's sizes, and this file must say the same"),
    **without_meaning("only the actor has pipeline stages", "ref_config.offset", "generate_config.offset"),
    "generate_config.use_vllm": Fate((), _VLLM),
    "generate_config.hf_config_path": Fate((), "the actor's model_config has the sizes"),
    **without_meaning(
        _VLLM,
        *(f"generate_config.{name}" for name in ("block_size", "max_model_len", "max_num_batched_tokens")),
        *(f"generate_config.{name}" for name in ("max_num_seqs", "num_scheduler_steps", "gpu_memory_utilization")),
        "generate_config.trust_remote_code",
    ),
    "generate_config.sampling_config.bos_token_id": Fate(
        (), "no id is put before a prompt; Qwen2.5's would be 151643, and 153643 is a misprint of it"
    ),
    "generate_config.sampling_config.detokenize": Fate((), "completions are decoded for their rewards"),
    "generate_config.sampling_config.logprobs": Fate((), "log-probs of completions are always kept"),
    "generate_config.sampling_config.min_p": only((0, 0.0), "the sampler has top_p and top_k"),
    "context.mode": only((0,), "models run in graph mode"),
    "context.max_device_memory": Fate((), "MindSpore takes the device's memory as it needs it"),
    "context.jit_config.jit_level": Fate((), "MindSpore's default is used"),
    "context.memory_optimize_level": Fate((), "MindSpore's default is used"),
    "context.enable_graph_kernel": Fate((), "MindSpore's default is used"),
    "context.ascend_config.precision_mode": Fate((), "compute_dtype says what is computed in"),
    **without_meaning(
        "phases are timed in every run's metrics; there is no other profiler",
        *(f"profiler_config.{name}" for name in _PROFILER),
    ),
}

# Keys of ours that mean nothing to GRPO but do to mindrlhf's.
GRPO_KEYS: Table = {"generate_config.load": Fate((), _GENERATOR)}

# Our key → their value → (ours, why).
VALUES: dict[str, dict[Any, tuple[Any, str]]] = {
    "rl_config.seed": {None: (0, "no seed there; here every run has one")},
    "actor_config.optimizer.type": {"AdamW": ("adamw", "")},
    "generate_config.sampling_config.top_k": {-1: (0, "0 keeps every token here")},
    "generate_config.sampling_config.pad_token_id": {153643: (151643, "153643 is a misprint of Qwen2.5's 151643")},
}


@dataclass(frozen=True)
class Flag:
    """A foreign flag: what its key becomes, and whether it takes every word up to the next flag."""

    fate: Fate
    many: bool = False


def _folder(path: Any, _: Look) -> str:
    return str(Path(path).parent)


FLAGS: dict[str, Flag] = {
    "model_name": Flag(renamed("rl_config.model_name")),
    "custom_model_name": Flag(renamed("rl_config.model_name")),
    "tokenizer_type": Flag(Fate((), "the files of tokenizer_dir say what it is")),
    "generate_checkpoint_path": Flag(Fate((), _GENERATOR)),
    "load_sft_checkpoint_infer": Flag(Fate((), _GENERATOR)),
    "load_sft_checkpoint_train": Flag(renamed("actor_config.load")),
    "load_ref_checkpoint": Flag(renamed("ref_config.load")),
    "sft_path_infer": Flag(renamed("generate_config.model_config")),
    "sft_path_ref": Flag(renamed("ref_config.model_config")),
    "sft_path_train": Flag(renamed("actor_config.model_config")),
    "vocab_path": Flag(renamed("rl_config.tokenizer_dir", text="its folder", convert=_folder)),
    "merges_file_path": Flag(renamed("rl_config.tokenizer_dir", text="its folder", convert=_folder)),
    "tokenizer_path": Flag(renamed("rl_config.tokenizer_dir", text="its folder", convert=_folder)),
    "mind_dataset_dir": Flag(renamed("rl_config.dataset_file")),
    "save_data_file": Flag(KEYS["rl_config.save_data_file"]),
    "save_ckpt_dir": Flag(renamed("actor_config.save")),
    "use_parallel": Flag(Fate((), _PARALLEL)),
    "enable_compile_cache": Flag(renamed("context.compile_cache")),
    "pre_num_generations": Flag(
        Fate((), "it shapes mindrlhf's trial compilation; rl_config.num_generations is the group")
    ),
    "pre_store_data": Flag(Fate((), "it shapes mindrlhf's trial compilation")),
    "reward_funcs": Flag(renamed("reward_config.verifier_function"), many=True),
    "reward_weights": Flag(renamed("reward_config.verifier_weight"), many=True),
    "save_strategy_dir": Flag(renamed("rl_config.save_strategy_dir")),
    "tensorboard_dir": Flag(renamed("rl_config.tensorboard_dir")),
    "tensorboard_queue_size": Flag(KEYS["rl_config.tensorboard_queue_size"]),
    "load_ckpt_format": Flag(Fate((), _FORMAT)),
    "only_save_strategy": Flag(only(("False", "false"), "strategy files alone are written by tools/make_strategy.py")),
}
