"""A GRPO run from configuration to report."""

from pathlib import Path

import mindspore as ms
from tqdm import tqdm

from r1parallel.checkpoint.export import save_model_ranks
from r1parallel.checkpoint.load import read_model
from r1parallel.checkpoint.shards import Shards
from r1parallel.config import RunConfig
from r1parallel.config.load import GRPO_SECTIONS
from r1parallel.errors import UserError
from r1parallel.models.parameters import parameter_values
from r1parallel.monitor.memory import host_memory_used_fraction
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.monitor.report import write_report
from r1parallel.parallel.device import setup_device
from r1parallel.parallel.layout import ModelLayout
from r1parallel.parallel.mesh import Mesh
from r1parallel.parallel.strategy import STRATEGY_NAMES, write_model_strategies
from r1parallel.parallel.world import World
from r1parallel.rewards import check_reward_names
from r1parallel.rl.trainer import GRPOTrainer, StepResult
from r1parallel.training.inputs import fingerprint, load_inputs
from r1parallel.training.run_folder import RunFolder, check_steps_left


def run_grpo(config: RunConfig) -> Path:
    """Train as configured; returns the folder of the final model, <output_dir>/model.

    Raises:
        UserError: anything that the user can mend, before the first step wherever possible.
    """
    settings, actor = config.rl_config, config.actor_config
    check_reward_names(config.reward_config.verifier_function)
    inputs = load_inputs(actor.model_config, settings.tokenizer_dir, settings.dataset_file)
    world, layout = setup_device(config.context), ModelLayout(inputs.model, Mesh(dp=1, pp=1, tp=1))
    ms.set_seed(settings.seed)
    trainer = GRPOTrainer(config, inputs.model, inputs.rows, inputs.tokenizer)
    folder = _run_folder(config, trainer, world)
    check_steps_left(folder.step, trainer.total, "rl_config.max_steps or rl_config.epochs")
    if folder.sources:
        tensors = {group: {name: s.read(name) for name in s.shapes} for group, s in folder.sources.items()}
        trainer.load(tensors["actor"], tensors.get("reference"), str(folder.checkpoints))
        trainer.train.load_state(tensors["optimizer"], folder.state["updates"])
    else:
        reference = config.ref_config.load
        trainer.load(
            read_model(actor.load, inputs.model),
            read_model(reference, inputs.model) if reference and trainer.reference is not None else None,
            actor.load,
        )
    folder.open()
    for model in STRATEGY_NAMES:
        write_model_strategies(layout, model, settings.save_strategy_dir)
    _train(config, trainer, folder, layout)
    model_dir = save_model_ranks(
        folder.path / "model",
        Shards(layout, parameter_values(trainer.actor, layout, world.rank)),
        settings.tokenizer_dir,
        inputs.tokenizer.stop_ids,
        world,
    )
    folder.close()
    if config.monitor_config.report:
        print(f"report: {write_report(folder.path, f'GRPO of {settings.model_name}')}", flush=True)
    return model_dir


def _run_folder(config: RunConfig, trainer: GRPOTrainer, world: World) -> RunFolder:
    settings = config.rl_config
    board = (
        Path(settings.tensorboard_dir or Path(settings.output_dir) / "tensorboard") if settings.tensorboard else None
    )
    identity = {
        "data_set": fingerprint(trainer.rows),
        "prompts_per_step": trainer.prompts_per_step,
        "num_generations": trainer.group,
        "seed": settings.seed,
        "beta": settings.beta,  # 0 keeps no reference model, also not in the checkpoints
    }
    return RunFolder(
        config,
        GRPO_SECTIONS,
        settings.output_dir,
        config.actor_config.save,
        board,
        settings.resume_training,
        identity,
        world,
    )


def _train(config: RunConfig, trainer: GRPOTrainer, folder: RunFolder, layout: ModelLayout) -> None:
    settings, monitor, timer = config.rl_config, config.monitor_config, PhaseTimer()
    bar = tqdm(
        total=trainer.total,
        initial=folder.step,
        desc="grpo",
        unit="step",
        disable=None if monitor.progress_bar else True,
    )
    for number in range(folder.step, trainer.total):
        step = number + 1
        with timer.phase("step"):
            result = trainer.run_step(number, timer, monitor.progress_bar)
        # Metrics first: a kill in between costs no line, because resuming cuts off what is newer than the checkpoint.
        _log(config, folder, step, result, timer.collect())
        used = host_memory_used_fraction()
        short_of_memory = monitor.host_memory_protection and used > monitor.host_max_memory_threshold
        due = settings.save_ckpt_interval and step % settings.save_ckpt_interval == 0
        if due or step == trainer.total or short_of_memory:
            with timer.phase("checkpoint"):
                groups, state = _snapshot(trainer, layout)
                folder.save(step, groups, state, settings.save_max_ckpt_num)
        bar.set_postfix(reward=f"{result.metrics.get('reward_mean', float('nan')):.3f}", refresh=False)
        bar.update(1)
        if short_of_memory:
            raise UserError(
                f"step {step}: the host's memory is more than {monitor.host_max_memory_threshold:.0%} used; "
                "a checkpoint was written, go on with --resume_training on a host with more memory or a smaller batch"
            )
    bar.close()


def _snapshot(trainer: GRPOTrainer, layout: ModelLayout) -> tuple[dict[str, Shards], dict[str, int]]:
    tensors = {"actor": parameter_values(trainer.actor), "optimizer": trainer.train.state()}
    if trainer.reference is not None:
        tensors["reference"] = parameter_values(trainer.reference)
    return {name: Shards(layout, values) for name, values in tensors.items()}, {"updates": trainer.train.updates}


def _log(config: RunConfig, folder: RunFolder, step: int, result: StepResult, seconds: dict[str, float]) -> None:
    speed = {"tokens_per_second": result.metrics["tokens"] / seconds["seconds/step"]}
    folder.log(step, result.metrics | seconds | speed)
    settings = config.rl_config
    if settings.save_prompt_completions_data and step % settings.save_prompt_completions_interval == 0:
        scores = result.experience.scores
        folder.log_samples(
            step,
            [
                {
                    "prompt": result.prompts[row],
                    "completion": result.completions[row],
                    "solution": result.solutions[row],
                    "reward": None
                    if result.experience.rewards[row] != result.experience.rewards[row]
                    else float(result.experience.rewards[row]),
                    "parts": {name: float(values[row]) for name, values in scores.parts.items()},
                    "length": int(result.experience.lengths[row]),
                }
                for row in _spread_rows(len(result.prompts), config.monitor_config.num_samples)
            ],
        )


def _spread_rows(count: int, wanted: int) -> list[int]:
    """`wanted` row numbers spread over `count` rows, so that several groups are seen."""
    wanted = min(wanted, count)
    return [i * count // wanted for i in range(wanted)]
