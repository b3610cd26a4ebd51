"""A reinforcement learning run from configuration to report."""

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from tqdm import tqdm

from r1parallel.checkpoint.export import save_model_ranks
from r1parallel.checkpoint.load import open_model
from r1parallel.checkpoint.writing.shards import Shards
from r1parallel.config.loading.load import GRPO_SECTIONS
from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import RLConfig, RunConfig
from r1parallel.errors import UserError
from r1parallel.models.parameters import load_state, parameter_values, state_values
from r1parallel.monitor.memory import host_memory_used_fraction
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.parallel.device import setup_device
from r1parallel.parallel.graph_cache import GraphCache, keep_graphs
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.strategy_files import write_model_strategies
from r1parallel.parallel.moving.collectives import all_gather
from r1parallel.rewards import check_reward_names
from r1parallel.rl.trainer import StepResult, Trainer
from r1parallel.training.inputs import fingerprint, graph_parts, load_inputs
from r1parallel.training.run_folder import RunFolder, check_steps_left


def run_grpo(config: RunConfig) -> Path:
    """Train as configured; returns the folder of the final model, <output_dir>/model.

    Raises:
        UserError: anything that the user can mend, before the first step wherever possible.
    """
    settings, actor = config.rl_config, config.actor_config
    check_reward_names(config.reward_config.verifier_function)
    inputs = load_inputs(actor.model_config, settings.tokenizer_dir, settings.dataset_file)
    world = setup_device(config.context)
    graphs = keep_graphs(config.context, world, ["grpo", *graph_parts(config, inputs)])
    ms.set_seed(settings.seed)
    folder = _run_folder(config, world)
    trainer = Trainer(config, inputs.model, inputs.rows, inputs.tokenizer, world)
    folder.restore(_identity(settings, trainer))
    check_steps_left(folder.step, trainer.total, folder.model, "rl_config.max_steps or rl_config.epochs")
    _load(config, trainer, folder, inputs.model)
    folder.open()
    if world.is_leader:
        _write_strategies(config, trainer)
    _train(config, trainer, folder, graphs)
    shards = Shards(trainer.actor.layout, trainer.actor.values())
    tokenizer = settings.tokenizer_dir
    model_dir = save_model_ranks(folder.model, shards, tokenizer, inputs.tokenizer.stop_ids, world)
    folder.close()
    if config.monitor_config.report and world.is_leader:
        from r1parallel.monitor.report.report import write_report  # brings matplotlib: not before the first step

        print(f"report: {write_report(folder.path, f'GRPO of {settings.model_name}')}", flush=True)
    return model_dir


def _load(config: RunConfig, trainer: Trainer, folder: RunFolder, model: ModelConfig) -> None:
    """Weights and optimizer state of the checkpoint to go on from, or the weights to start with."""
    if folder.sources:
        trainer.load(folder.sources["actor"], folder.sources.get("reference"))
        state, layout = trainer.train.optimizer.state(), trainer.actor.layout
        load_state(state, folder.sources["optimizer"], layout, trainer.world.rank)
        trainer.train.updates = folder.state["updates"]
        # Checkpoints from before there was an adaptive beta keep none: theirs is the configuration's.
        trainer.beta.value = folder.state.get("beta", config.rl_config.beta)
        return
    actor, reference = config.actor_config.load, config.ref_config.load
    own_reference = open_model(reference, model) if reference and trainer.reference is not None else None
    trainer.load(open_model(actor, model), own_reference)


def _write_strategies(config: RunConfig, trainer: Trainer) -> None:
    layouts = {"actor": trainer.actor.layout, "generate": trainer.generator_layout}
    if trainer.reference is not None:
        layouts["ref"] = trainer.reference.layout
    for model, layout in layouts.items():
        write_model_strategies(layout, model, config.rl_config.save_strategy_dir)


def _run_folder(config: RunConfig, world: World) -> RunFolder:
    settings = config.rl_config
    board = (
        Path(settings.tensorboard_dir or Path(settings.output_dir) / "tensorboard") if settings.tensorboard else None
    )
    save, resume = config.actor_config.save, settings.resume_training
    return RunFolder(config, GRPO_SECTIONS, settings.output_dir, save, board, resume, world)


def _identity(settings: RLConfig, trainer: Trainer) -> dict[str, Any]:
    """What must not change between a run and its continuation."""
    return {
        "data_set": fingerprint(trainer.rollout.rows),
        "prompts_per_step": trainer.rollout.prompts_per_step,
        "num_generations": trainer.rollout.group,
        "seed": settings.seed,
        "beta": settings.beta,  # 0 keeps no reference model, also not in the checkpoints
    }


def _train(config: RunConfig, trainer: Trainer, folder: RunFolder, graphs: GraphCache | None) -> None:
    settings, monitor, timer = config.rl_config, config.monitor_config, PhaseTimer()
    bar = tqdm(
        total=trainer.total,
        initial=folder.step,
        desc="grpo",
        unit="step",
        disable=None if monitor.progress_bar and trainer.world.is_leader else True,
    )
    for number in range(folder.step, trainer.total):
        step = number + 1
        with timer.phase("step"):
            result = trainer.run_step(number, timer, monitor.progress_bar and trainer.world.is_leader)
        if graphs is not None:
            graphs.complete()
        # Metrics first: a kill in between costs no line, because resuming cuts off what is newer than the checkpoint.
        _log(config, folder, step, result, timer.collect())
        # The fullest host decides for all: every rank must take the same way.
        used = float(all_gather(trainer.world, np.array([host_memory_used_fraction()]), "memory of the hosts").max())
        short_of_memory = monitor.host_memory_protection and used > monitor.host_max_memory_threshold
        due = settings.save_ckpt_interval and step % settings.save_ckpt_interval == 0
        if due or step == trainer.total or short_of_memory:
            with timer.phase("checkpoint"):
                groups, state = _snapshot(trainer)
                folder.save(step, groups, state, settings.save_max_ckpt_num)
        bar.set_postfix(reward=f"{result.metrics.get('reward_mean', float('nan')):.3f}", refresh=False)
        bar.update(1)
        if short_of_memory:
            raise UserError(
                f"step {step}: the host's memory is more than {monitor.host_max_memory_threshold:.0%} used; "
                "a checkpoint was written, go on with --resume_training on a host with more memory or a smaller batch"
            )
    bar.close()


def _snapshot(trainer: Trainer) -> tuple[dict[str, Shards], dict[str, float]]:
    """This rank's slices of everything that a run goes on from, as they are until the next step, and the counters."""
    layout, rank = trainer.actor.layout, trainer.world.rank
    groups = {
        "actor": Shards(layout, trainer.actor.values()),
        "optimizer": Shards(layout, state_values(trainer.train.optimizer.state(), layout, rank)),
    }
    if trainer.reference is not None:
        values = parameter_values(trainer.reference.model, trainer.reference.layout, rank, copy=False)
        groups["reference"] = Shards(trainer.reference.layout, values)
    return groups, {"updates": trainer.train.updates, "beta": trainer.beta.value}


def _log(config: RunConfig, folder: RunFolder, step: int, result: StepResult, seconds: dict[str, float]) -> None:
    speed = {"tokens_per_second": result.metrics["tokens"] / seconds["seconds/step"]}
    folder.log(step, result.metrics | seconds | speed)
    settings = config.rl_config
    if settings.save_prompt_completions_data and step % settings.save_prompt_completions_interval == 0:
        draw, scores = result.draw, result.experience.scores
        folder.log_samples(
            step,
            [
                {
                    "prompt": draw.prompts[row],
                    "completion": draw.completions[row],
                    "solution": draw.solutions[row],
                    "reward": None
                    if result.experience.rewards[row] != result.experience.rewards[row]
                    else float(result.experience.rewards[row]),
                    "parts": {name: float(values[row]) for name, values in scores.parts.items()},
                    "length": int(result.experience.lengths[row]),
                }
                for row in _spread_rows(len(draw.prompts), config.monitor_config.num_samples)
            ],
        )


def _spread_rows(count: int, wanted: int) -> list[int]:
    """`wanted` row numbers spread over `count` rows, so that several groups are seen."""
    wanted = min(wanted, count)
    return [i * count // wanted for i in range(wanted)]
