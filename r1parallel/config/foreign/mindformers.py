"""What the keys of a mindformers YAML mean here: a training or prediction file of LlamaConfig or Qwen2Config.

`model:` stands for the section of the model that the file describes (actor_config, ref_config or generate_config),
`train:` for actor_config where this file is all that a training is told, `run:` for sft_config, `host:` for context. A
key of a section that the file cannot speak for is of no use: in GRPO, as in mindrlhf, the run's own file has the
optimizer, the schedule and the weights.
"""

from r1parallel.config.foreign import mindformers_values as values
from r1parallel.config.foreign.key_translation import Fate, Table, only, renamed, without_meaning
from r1parallel.config.foreign.mindrlhf import FLAGS as MINDRLHF_FLAGS
from r1parallel.config.foreign.mindrlhf import KEYS as MINDRLHF_KEYS
from r1parallel.config.foreign.mindrlhf import Flag
from r1parallel.config.model import MINDFORMERS_SIZES

_DECODING = "sampling_config says how completions are drawn"
_PROFILE = "phases are timed in every run's metrics; there is no other profiler"
_DATA = "rows come ready from preprocess_data"


KEYS: Table = {
    "seed": renamed("run:seed"),
    "output_dir": renamed("run:output_dir"),
    "load_checkpoint": renamed("train:load"),
    "resume_training": renamed("run:resume_training"),
    **without_meaning("a checkpoint of any layout is read", "auto_trans_ckpt", "transform_process_num"),
    **without_meaning("a checkpoint says itself how it is cut", "src_strategy_path_or_dir", "remove_redundancy"),
    "load_ckpt_format": Fate((), "the format of a checkpoint is read from its files"),
    "only_save_strategy": only((False,), "strategy files alone are written by tools/make_strategy.py"),
    **without_meaning("the command decides", "run_mode", "do_eval", "eval_step_interval", "eval_epoch_interval"),
    "use_parallel": Fate((), "the number of processes decides"),
    **without_meaning("a name; the command decides what is trained", "trainer.type", "trainer.model_name"),
    "runner_config.epochs": renamed("run:epochs"),
    "runner_config.batch_size": renamed("run:batch_size"),
    **without_meaning("data are fed step by step", "runner_config.sink_mode", "runner_config.sink_size"),
    "runner_config.gradient_accumulation_steps": only(
        (1,), "micro_batch_num says how many micro-batches make an update"
    ),
    "runner_wrapper.type": Fate((), "there is one training step"),
    "runner_wrapper.scale_sense": Fate((), "gradients need no loss scale in float32 and bfloat16"),
    "runner_wrapper.use_clip_grad": renamed(
        "train:optimizer.max_grad_norm", text="0 where it is off", convert=lambda on, _: {} if on else 0.0
    ),
    "runner_wrapper.max_grad_norm": renamed("train:optimizer.max_grad_norm", convert=values.max_grad_norm),
    "optimizer.type": renamed("train:optimizer.type", convert=values.optimizer),
    "optimizer.betas": renamed("train:optimizer.adam_beta1", "train:optimizer.adam_beta2", convert=values.betas),
    "optimizer.eps": renamed("train:optimizer.eps"),
    "optimizer.weight_decay": renamed("train:optimizer.weight_decay"),
    "optimizer.learning_rate": renamed(
        "train:lr_schedule.lr", text="lr_schedule.learning_rate counts where there is one", convert=values.optimizer_lr
    ),
    "lr_schedule.type": renamed("train:lr_schedule.lr_decay_style", convert=values.style),
    "lr_schedule.learning_rate": renamed("train:lr_schedule.lr"),
    "lr_schedule.lr_end": renamed("train:lr_schedule.min_lr"),
    "lr_schedule.warmup_lr_init": only((0, 0.0), "the warm-up starts at 0"),
    "lr_schedule.warmup_steps": renamed("train:lr_schedule.warmup_step"),
    "lr_schedule.warmup_ratio": renamed(
        "train:lr_schedule.warmup_step",
        text="a part of total_steps",
        convert=values.warmup_ratio,
        needed="how many updates a run has is not known before its data are read: set "
        "--actor_config.lr_schedule.warmup_step",
    ),
    "lr_schedule.total_steps": renamed(
        "train:lr_schedule.decay_steps",
        convert=values.total_steps,
        needed="how many updates a run has is not known before its data are read: set "
        "--actor_config.lr_schedule.decay_steps",
    ),
    "train_dataset.data_loader.type": Fate((), _DATA),
    "train_dataset.data_loader.dataset_dir": renamed("run:dataset_file"),
    "train_dataset.data_loader.shuffle": only((True,), "rows are taken in an order that seed decides"),
    "train_dataset.batch_size": Fate((), "runner_config.batch_size counts"),
    "train_dataset.drop_remainder": only((True,), "an update has whole batches"),
    **without_meaning(
        _DATA,
        *(
            f"train_dataset.{name}"
            for name in ("input_columns", "output_columns", "column_order", "num_parallel_workers")
        ),
        *(
            f"train_dataset.{name}"
            for name in ("python_multiprocessing", "numa_enable", "prefetch_size", "repeat", "seed")
        ),
    ),
    "train_dataset_task": Fate((), "the same data set again"),
    **without_meaning("evaluation has keys of its own in sft_config", "eval_dataset", "eval_dataset_task", "metric"),
    "eval_callbacks": Fate((), "evaluation has keys of its own in sft_config"),
    **{
        f"parallel_config.{name}": renamed(f"model:parallel_config.{name}")
        for name in ("data_parallel", "model_parallel", "pipeline_stage", "use_seq_parallel")
    },
    "parallel_config.micro_batch_num": renamed(
        "model:parallel_config.micro_batch_num",
        text="1 without a pipeline, as mindformers has it",
        convert=values.micro_batch_num,
    ),
    **{
        f"parallel_config.{name}": MINDRLHF_KEYS[f"actor_config.parallel_config.{name}"]
        for name in ("expert_parallel", "context_parallel", "vocab_emb_dp", "gradient_aggregation_group")
    },
    "micro_batch_interleave_num": renamed("model:parallel_config.micro_batch_interleave_num"),
    "parallel_config.micro_batch_interleave_num": renamed("model:parallel_config.micro_batch_interleave_num"),
    "parallel.enable_parallel_optimizer": renamed("model:enable_parallel_optimizer"),
    "parallel.parallel_optimizer_config": Fate((), "which state is split follows from the shapes"),
    "parallel.enable_alltoall": Fate((), "a Qwen2.5 model has no experts"),
    "parallel.gradients_mean": Fate((), "a loss has the denominators of the whole batch"),
    **without_meaning(
        "operators are laid out by r1parallel",
        *(f"parallel.{name}" for name in ("parallel_mode", "full_batch", "search_mode", "dataset_strategy")),
    ),
    **without_meaning(
        "strategy files go where save_strategy_dir says",
        "parallel.strategy_ckpt_save_file",
        "parallel.strategy_ckpt_config",
    ),
    "recompute_config.recompute": renamed(
        "model:recompute_config.recompute", "model:recompute_config.recompute_layers", convert=values.recompute
    ),
    "recompute_config.select_recompute": renamed(
        "model:recompute_config.select_recompute",
        text="of all layers, attention weights and the gated product; whole blocks go first",
        convert=values.select_recompute,
    ),
    **{
        f"recompute_config.{name}": MINDRLHF_KEYS[f"actor_config.recompute_config.{name}"]
        for name in (
            "select_comm_recompute",
            "parallel_optimizer_comm_recompute",
            "mp_comm_recompute",
            "recompute_slice_activation",
        )
    },
    "callbacks": renamed(
        "run:save_ckpt_interval",
        "run:save_max_ckpt_num",
        text="save_checkpoint_steps and keep_checkpoint_max of CheckpointMonitor; metrics are always written",
        convert=values.callbacks,
    ),
    "context.device_target": renamed("host:device_target"),
    "context.device_id": renamed("host:device_id"),
    "context.max_call_depth": renamed("host:max_call_depth"),
    "context.save_graphs": renamed("host:save_graphs"),
    "context.save_graphs_path": renamed("host:save_graphs_path"),
    **{name: fate for name, fate in MINDRLHF_KEYS.items() if name.startswith("context.")},
    "model.arch.type": Fate((), "the model is Qwen2.5"),
    "model.model_config.compute_dtype": renamed("host:compute_dtype", convert=values.compute_dtype),
    "model.model_config.offset": renamed("model:offset"),
    "model.model_config.seq_length": Fate((), "rows are as long as the data need"),
    "model.model_config.batch_size": Fate((), "runner_config.batch_size counts"),
    "model.model_config.checkpoint_name_or_path": only(("", None), "load_checkpoint names the weights"),
    **without_meaning(
        "norms, softmax and rotary embeddings are computed in float32, weights are kept in float32",
        *(f"model.model_config.{name}" for name in ("layernorm_compute_type", "softmax_compute_type", "rotary_dtype")),
        *(f"model.model_config.{name}" for name in ("param_init_type", "residual_dtype", "embedding_init_type")),
    ),
    **without_meaning(
        "the operators follow from compute_dtype",
        *(
            f"model.model_config.{name}"
            for name in ("use_flash_attention", "qkv_concat", "compute_in_2d", "is_dynamic")
        ),
        *(f"model.model_config.{name}" for name in ("use_past", "use_past_shard", "block_size", "num_blocks")),
        *(f"model.model_config.{name}" for name in ("fine_grain_interleave", "parallel_optimizer", "fused_rms_norm")),
        "model.model_config.use_eod_attn_mask_compression",
    ),
    **without_meaning(
        _DECODING,
        *(f"model.model_config.{name}" for name in ("repetition_penalty", "max_decode_length", "min_decode_length")),
        *(f"model.model_config.{name}" for name in ("top_k", "top_p", "temperature", "do_sample", "max_new_tokens")),
    ),
    **without_meaning(
        "the tokenizer's folder says it",
        *(f"model.model_config.{name}" for name in ("eos_token_id", "pad_token_id", "bos_token_id", "ignore_token_id")),
        "model.model_config.auto_map",
    ),
    **without_meaning("head sizes and the rotary base have keys of their own", "model.model_config.kv_channels"),
    "processor.tokenizer.vocab_file": renamed("run:tokenizer_dir", text="its folder", convert=values.folder_of_file),
    "processor.tokenizer.merges_file": renamed("run:tokenizer_dir", text="its folder", convert=values.folder_of_file),
    **without_meaning(
        "the tokenizer's folder says it",
        *(
            f"processor.tokenizer.{name}"
            for name in ("model_max_length", "bos_token", "eos_token", "unk_token", "pad_token")
        ),
        *(f"processor.tokenizer.{name}" for name in ("chat_template", "type", "auto_register", "add_bos_token")),
        *("processor.tokenizer.add_eos_token", "processor.type", "processor.return_tensors"),
    ),
    **without_meaning(
        _PROFILE,
        *("profile", "profile_start_step", "profile_stop_step", "init_start_profile", "profile_communication"),
        *(
            "profile_memory",
            "profile_rank_ids",
            "profile_pipeline",
            "profiler_level",
            "mstx",
            "with_stack",
            "data_simplification",
        ),
    ),
    "layer_scale": only((False,), "every layer has the same learning rate"),
    **without_meaning("only with layer_scale", "layer_decay", "lr_scale_factor"),
    "lr_scale": only((False,), "lr is not scaled by the number of processes"),
    **without_meaning("a Qwen2.5 model has no experts", "moe_config"),
    **without_meaning("files stay on this host", "remote_save_url", "local_cache_path"),
    **without_meaning("nothing is tuned by trial", "auto_tune", "filepath_prefix", "autotune_per_step"),
    "swap_config": Fate((), "activations stay on the device"),
}
# The sizes, which `load_model_config` reads and checks.
SIZES = tuple(f"model.model_config.{name}" for name in MINDFORMERS_SIZES)

# Flags of run_mindformer.py and of research/qwen2_5/run_qwen2_5.py, for SFT.
FLAGS: dict[str, Flag] = {
    "run_mode": Flag(only(("finetune", "train"), "this command trains; tools/generate.py predicts")),
    "train_data": Flag(renamed("sft_config.dataset_file")),
    "train_dataset_dir": Flag(renamed("sft_config.dataset_file")),
    "load_checkpoint": Flag(renamed("actor_config.load")),
    "auto_trans_ckpt": Flag(KEYS["auto_trans_ckpt"]),
    **{name: MINDRLHF_FLAGS[name] for name in ("use_parallel", "only_save_strategy", "load_ckpt_format")},
}
