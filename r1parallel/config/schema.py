"""Every configuration key, its type and its default: YAML, command line, checks and docs are made from this list.

Section and key names are those of mindrlhf where it has one. The comment behind a field is its help text.
"""

from dataclasses import dataclass, field


@dataclass
class ParallelConfig:
    """How many ways a model is split. data_parallel × model_parallel × pipeline_stage = number of processes."""

    data_parallel: int = 1  # copies of the model, each with its own rows of the batch
    model_parallel: int = 1  # ways every matrix product is split (tensor parallel)
    pipeline_stage: int = 1  # groups of consecutive layers, each on its own devices
    use_seq_parallel: bool = False  # split activations between the blocks over model_parallel
    micro_batch_num: int = 1  # micro-batches accumulated into one optimizer update
    micro_batch_interleave_num: int = 1  # parts of a micro-batch whose communication and computation overlap


@dataclass
class RecomputeConfig:
    """Activations that the backward pass computes again instead of keeping them."""

    recompute: bool = False  # whole blocks
    recompute_layers: list[int] = field(default_factory=list)  # of these layers only; empty: of all
    select_recompute: bool = False  # instead of whole blocks, attention weights and the gated product only


@dataclass
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019): decoupled weight decay, none on biases and norm weights."""

    type: str = "adamw"  # adamw | momentum (plain SGD with momentum 0.9 and no decay, to compare layouts)
    adam_beta1: float = 0.9  # decay of the mean of gradients
    adam_beta2: float = 0.95  # decay of the mean of squared gradients
    eps: float = 1e-8  # added to the root of the mean square
    weight_decay: float = 0.01  # of matrices, each update, times lr
    max_grad_norm: float = 1.0  # gradients are scaled down to this global L2 norm; 0 turns it off


@dataclass
class LrScheduleConfig:
    """Linear warm-up, then a decay to min_lr."""

    lr_decay_style: str = "cosine"  # cosine | linear | constant
    lr: float = 5e-7  # peak learning rate
    min_lr: float = 1e-10  # learning rate after decay_steps
    warmup_step: int = 10  # optimizer updates of linear warm-up
    decay_steps: int = 200000  # optimizer updates until min_lr is reached, warm-up included


@dataclass
class ActorConfig:
    """The model that is trained."""

    load: str = ""  # checkpoint: a folder of convert_weight, a Hugging Face folder, a file, or a folder of rank_N
    save: str = ""  # where checkpoints go; empty: <output_dir>/checkpoints
    model_config: str = ""  # model.yaml or a Hugging Face config.json; a relative path starts at the YAML's folder
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)
    offset: list[int] = field(default_factory=list)  # layers of each stage more (or fewer) than an even share
    recompute_config: RecomputeConfig = field(default_factory=RecomputeConfig)
    enable_parallel_optimizer: bool = False  # split optimizer state over data_parallel
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_schedule: LrScheduleConfig = field(default_factory=LrScheduleConfig)


@dataclass
class RefConfig:
    """The frozen model that the KL term pulls towards."""

    load: str = ""  # checkpoint; empty: the actor's
    ref_model_batch_size: int = 2  # rows in one forward pass
    sync_ref_model: bool = False  # copy the actor into the reference now and then
    ref_model_sync_steps: int = 50  # every so many steps
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass
class RewardConfig:
    """Which scores are added up."""

    verifier_function: list[str] = field(default_factory=lambda: ["accuracy_reward", "format_reward"])
    verifier_weight: list[float] = field(default_factory=lambda: [1.0, 1.0])  # one for each function
    time_limit: float = 5.0  # seconds that one function may take for one completion
    num_workers: int = 0  # processes that compute the scores; 0: one for each CPU, 8 at most
    memory_limit: int = 2048  # MiB that such a process may allocate


@dataclass
class SamplingConfig:
    """How a completion is drawn. Training needs the policy itself: temperature 1, nothing cut off, no penalty."""

    max_tokens: int = 512  # longest completion
    min_tokens: int = 0  # stop ids are not drawn before this many tokens
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # 1 keeps every token
    top_k: int = 0  # 0 keeps every token
    repetition_penalty: float = 1.0  # 1 is none
    eos_token_id: list[int] = field(default_factory=list)  # stop ids; empty: the tokenizer's
    pad_token_id: int = -1  # -1: the tokenizer's


@dataclass
class GenerateConfig:
    """The model that draws completions."""

    model_config: str = ""  # only for predict: model.yaml or config.json
    load: str = ""  # only for predict: checkpoint
    tokenizer_dir: str = ""  # only for predict: tokenizer folder; empty: the checkpoint's
    infer_model_batch_size: int = 2  # rows generated together
    max_prompt_length: int = 2048  # longest prompt
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)
    sampling_config: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass
class RLConfig:
    """The reinforcement learning loop. Prompts per step = chunk_size × generator's data_parallel × num_rollouts."""

    model_name: str = "qwen2_5"  # a name for logs and the report
    dataset_file: str = ""  # MindRecord of preprocess_data
    tokenizer_dir: str = ""  # Hugging Face tokenizer folder, or one with a SentencePiece tokenizer.model
    output_dir: str = "runs/grpo"  # the run's folder: metrics, samples, checkpoints, report
    epochs: int = 1  # passes over the data set
    max_steps: int = 0  # stop after so many steps; 0: epochs decide
    algorithm: str = "grpo"  # preset of the keys that are not given, see docs/algorithms.md
    batch_size: int = 1  # rows of one training micro-batch on one data-parallel rank
    mini_batch_size: int = 0  # completions of an update; 0: batch_size × data_parallel × micro_batch_num, packed: all
    seq_length: int = 4096  # longest prompt + completion
    seed: int = 0  # of sampling and of the order of prompts
    num_generations: int = 8  # completions of one prompt (the group)
    num_rollouts: int = 4  # chunks of prompts in one step
    chunk_size: int = 1  # prompts in one chunk
    num_iterations: int = 1  # optimizer passes over one step's completions
    packing: bool = False  # several completions in one row of the training graph; their prompt stands in it once
    pack_length: int = 0  # tokens of a packed row; 0: longest prompt + max_tokens
    dynamic_sampling: bool = False  # groups whose rewards are all equal give way to groups of other prompts
    max_refills: int = 3  # rounds of other prompts in one step
    overlong: str = "keep"  # completions cut off at max_tokens: keep | mask (left out of the loss) | penalty
    overlong_buffer: int = 0  # last tokens over which the penalty grows; 0: a fifth of max_tokens
    overlong_penalty: float = 1.0  # taken off the reward of a completion that is cut off
    advantage_estimator: str = "group"  # baseline: group (mean) | rloo (the others) | reinforce_plus_plus (none)
    advantage_scale: str = "group"  # divide by the standard deviation of the group | batch, or by nothing: none
    policy_loss: str = "clip"  # clip (PPO) | cispo (clipped weight on the log-prob) | reinforce (no ratio)
    importance_level: str = "token"  # ratio of each token | of the whole sequence (GSPO)
    epsilon_low: float = 0.2  # the ratio is clipped to [1 - epsilon_low, 1 + epsilon_high]
    epsilon_high: float = 0.2  # see epsilon_low
    dual_clip: float = 0.0  # largest ratio that counts against a negative advantage; 0: none
    loss_aggregation: str = "sequence_mean"  # sequence_mean | token_mean | constant (sum / rows / loss_constant)
    loss_constant: int = 0  # see loss_aggregation; 0: max_tokens
    beta: float = 0.01  # weight of the KL term; 0: no reference model is kept
    kl_estimator: str = "k3"  # k1 | k2 | k3 | abs
    kl_gradient: str = "same"  # estimator whose gradient is taken: same | k1 | k2 | k3 | abs
    kl_place: str = "loss"  # loss | reward
    kl_importance_weighted: bool = False  # KL term times the ratio, which makes its gradient unbiased
    kl_clamp: float = 0.0  # log ratios of the KL term are clamped to ±this, in nats; 0: not
    kl_controller: str = "fixed"  # fixed | adaptive: beta follows kl_target
    kl_target: float = 6.0  # KL of a completion, in nats, that the adaptive beta steers to
    kl_horizon: int = 10000  # completions over which the adaptive beta moves by its own size
    entropy_coef: float = 0.0  # weight of the entropy bonus
    calculate_entropy: bool = False  # the policy's entropy as a metric
    rollout_correction: str = "none"  # none | token_truncate | token_mask | sequence_truncate | sequence_mask
    rollout_correction_low: float = 0.0  # masked below this ratio of training to rollout probability
    rollout_correction_high: float = 2.0  # truncated or masked above this ratio
    rollout_gap_limit: float = -1.0  # mean |training - rollout log-prob| that stops; 0: none; -1: 1e-3, bfloat16: 0.1
    resume_training: bool = False  # go on from the newest checkpoint in the run's folder
    save_strategy_dir: str = "./strategy/"  # strategy files of this run
    save_ckpt_interval: int = 5  # steps between checkpoints; 0: only the last
    save_max_ckpt_num: int = 5  # older checkpoints are removed
    save_prompt_completions_data: bool = True  # keep samples of completions
    save_prompt_completions_interval: int = 1  # steps between them
    tensorboard: bool = True  # write TensorBoard event files
    tensorboard_dir: str = ""  # empty: <output_dir>/tensorboard


@dataclass
class SFTConfig:
    """Supervised fine-tuning on the answer's tokens."""

    dataset_file: str = ""  # MindRecord of preprocess_data
    eval_dataset_file: str = ""  # held-out MindRecord; empty: no evaluation
    tokenizer_dir: str = ""  # copied beside the weights that are saved
    output_dir: str = "runs/sft"  # the run's folder
    epochs: int = 1  # passes over the data set
    max_steps: int = 0  # stop after so many updates; 0: epochs decide
    batch_size: int = 8  # rows of one micro-batch on one data-parallel rank
    eval_batch_size: int = 8  # rows of one evaluation batch
    eval_interval: int = 100  # updates between evaluations
    seed: int = 0  # of the order of rows
    resume_training: bool = False  # go on from the newest checkpoint in the run's folder
    save_strategy_dir: str = "./strategy/"  # strategy files of this run
    save_ckpt_interval: int = 0  # updates between checkpoints; 0: only the last
    save_max_ckpt_num: int = 2  # older checkpoints are removed
    tensorboard: bool = True  # write TensorBoard event files
    tensorboard_dir: str = ""  # empty: <output_dir>/tensorboard


@dataclass
class ContextConfig:
    """MindSpore's own settings."""

    device_target: str = "CPU"  # CPU | Ascend
    compute_dtype: str = "float32"  # float32 | bfloat16: Ascend only, see docs/ascend.md
    device_id: int = 0  # which device of this host
    max_call_depth: int = 10000  # of graph compilation
    compile_cache: bool = True  # keep compiled graphs for the next run like this one; for one process on the CPU
    wait_limit: float = 1800.0  # seconds that a rank waits for the others, compilation included
    save_graphs: bool = False  # dump the compiler's graphs
    save_graphs_path: str = "./graphs"  # where they go


@dataclass
class MonitorConfig:
    """What a run shows and when it protects the host."""

    progress_bar: bool = True  # show progress where there is a terminal
    report: bool = True  # write report.html at the end
    num_samples: int = 4  # completions kept of each logged step
    host_memory_protection: bool = False  # stop, with a checkpoint, before the host runs out of memory
    host_max_memory_threshold: float = 0.95  # used fraction of the host's memory that counts as running out


@dataclass
class RunConfig:
    """Everything one run is told."""

    rl_config: RLConfig = field(default_factory=RLConfig)
    sft_config: SFTConfig = field(default_factory=SFTConfig)
    actor_config: ActorConfig = field(default_factory=ActorConfig)
    ref_config: RefConfig = field(default_factory=RefConfig)
    reward_config: RewardConfig = field(default_factory=RewardConfig)
    generate_config: GenerateConfig = field(default_factory=GenerateConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    monitor_config: MonitorConfig = field(default_factory=MonitorConfig)
