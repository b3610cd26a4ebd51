"""A training run from configuration to report: the stages that every kind of training goes through."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import mindspore as ms
import numpy as np
from mindspore import nn
from tqdm import tqdm

from r1parallel.checkpoint.reading.source import CheckpointSource
from r1parallel.checkpoint.writing.shards import Shards
from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import MonitorConfig, RunConfig
from r1parallel.errors import UserError
from r1parallel.monitor.memory import host_memory_used_fraction
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.parallel.device import setup_device
from r1parallel.parallel.graph_cache import GraphCache, keep_graphs
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.strategy_files import write_model_strategies
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.moving.collectives import all_gather
from r1parallel.training.inputs import Inputs, graph_parts
from r1parallel.training.run_folder import RunFolder, check_steps_left
from r1parallel.training.step import TrainStep

InputsT = TypeVar("InputsT", bound=Inputs)


class TaskSettings(Protocol):
    """Keys that the section of every task has; `config/schema.py` explains them."""

    tokenizer_dir: str
    output_dir: str
    seed: int
    resume_training: bool
    save_strategy_dir: str
    save_ckpt_interval: int
    save_max_ckpt_num: int
    tensorboard: bool
    tensorboard_dir: str


@dataclass
class StepRecord:
    """What is kept of one step; the same on every rank.

    Attributes:
        metrics: with "tokens", the number of tokens that were learned from.
        shown: beside the progress bar.
        samples: lines of samples.jsonl.
    """

    metrics: dict[str, float]
    shown: dict[str, str]
    samples: Sequence[Mapping[str, Any]] = ()


class Training(Protocol):
    """A task's models on their ranks, compiled. Every rank has one and calls the same methods."""

    train: TrainStep  # of the actor

    @property
    def total(self) -> int:
        """Steps of the whole run."""

    def identity(self) -> dict[str, Any]:
        """What must not change between a run and its continuation."""

    def layouts(self) -> dict[str, ModelLayout]:
        """Model ("actor", "ref", "generate") → its layout, of which strategy files are written."""

    def load(self) -> None:
        """Set the weights that a new run starts from."""

    def restore(self, sources: Mapping[str, CheckpointSource], state: Mapping[str, Any]) -> None:
        """Set what `weights` and `counters` gave to the checkpoint; the optimizer is restored by the run."""

    def run_step(self, number: int, timer: PhaseTimer) -> StepRecord:
        """Step `number` (from 0)."""

    def weights(self) -> dict[str, Shards]:
        """Checkpoint group → this rank's slices until the next step; "actor" is the model that the run ends with."""

    def counters(self) -> dict[str, Any]:
        """What a checkpoint keeps besides weights and optimizer."""


@dataclass(frozen=True)
class Task(Generic[InputsT]):
    """One kind of training.

    Attributes:
        name: in the progress bar, and of its compiled graphs.
        title: of the report, made from the configuration.
        section: of the configuration, of this task alone: a `TaskSettings`.
        sections: all that it uses.
        phase: the phase of `run_step` that tokens per second are measured over; also the unit of the progress bar.
        read_inputs: reads and checks everything that the run starts from, before the device is set up.
        build: makes the models and compiles them.
        save_model: writes the final weights; see `checkpoint/export.py`.
        compile_actor: (config, sizes, slots, world) → the actor of such a run, compiled on rows of `slots` prompt
            tokens and `slots` completion tokens, for the compile-only check.
    """

    name: str
    title: Callable[[RunConfig], str]
    section: str
    sections: tuple[str, ...]
    phase: str
    read_inputs: Callable[[RunConfig], InputsT]
    build: Callable[[RunConfig, InputsT, World], Training]
    save_model: Callable[[Path, Shards, str | Path, list[int], World], Path]
    compile_actor: Callable[[RunConfig, ModelConfig, int, World], nn.Cell] = field(repr=False)

    def settings(self, config: RunConfig) -> TaskSettings:
        """The task's own section."""
        settings: TaskSettings = getattr(config, self.section)
        return settings


def run(task: Task[InputsT], config: RunConfig) -> Path:
    """Train as configured; returns the folder of the final model, <output_dir>/model.

    Raises:
        UserError: anything that the user can mend, before the first step wherever possible.
    """
    settings = task.settings(config)
    inputs = task.read_inputs(config)
    world = setup_device(config.context)
    graphs = keep_graphs(config.context, world, graph_parts(config, task.name, task.sections, task.section, inputs))
    ms.set_seed(settings.seed)
    folder = _run_folder(task, config, world)
    training = task.build(config, inputs, world)
    folder.restore(training.identity())
    keys = f"{task.section}.max_steps or {task.section}.epochs"
    check_steps_left(folder.step, training.total, folder.model, keys)
    _load(training, folder)
    folder.open()
    _write_strategies(training, settings, world)
    _train(task, config, training, folder, graphs, world)
    weights = training.weights()["actor"]
    model_dir = task.save_model(folder.model, weights, settings.tokenizer_dir, inputs.tokenizer.stop_ids, world)
    folder.close()
    if config.monitor_config.report and world.is_leader:
        _report(folder.path, task.title(config))
    return model_dir


def _run_folder(task: Task[InputsT], config: RunConfig, world: World) -> RunFolder:
    settings, save_dir = task.settings(config), config.actor_config.save
    board = Path(settings.tensorboard_dir or Path(settings.output_dir) / "tensorboard")
    return RunFolder(
        config,
        task.sections,
        settings.output_dir,
        save_dir,
        board if settings.tensorboard else None,
        settings.resume_training,
        world,
    )


def _load(training: Training, folder: RunFolder) -> None:
    """Weights and optimizer state of the checkpoint to go on from, or the weights to start from."""
    if not folder.sources:
        training.load()
        return
    training.restore(folder.sources, folder.state)
    training.train.restore(folder.sources["optimizer"], folder.state["updates"])


def _write_strategies(training: Training, settings: TaskSettings, world: World) -> None:
    if world.is_leader:
        for model, layout in training.layouts().items():
            write_model_strategies(layout, model, settings.save_strategy_dir)


def _train(
    task: Task[InputsT],
    config: RunConfig,
    training: Training,
    folder: RunFolder,
    graphs: GraphCache | None,
    world: World,
) -> None:
    settings, monitor, timer = task.settings(config), config.monitor_config, PhaseTimer()
    bar = tqdm(
        total=training.total,
        initial=folder.step,
        desc=task.name,
        unit=task.phase,
        disable=None if monitor.progress_bar and world.is_leader else True,
    )
    for number in range(folder.step, training.total):
        step = number + 1
        record = training.run_step(number, timer)
        if graphs is not None:
            graphs.complete()
        # Metrics first: a kill in between costs no line, because resuming cuts off what is newer than the checkpoint.
        _log(task, folder, step, record, timer.collect())
        short_of_memory = _is_short_of_memory(monitor, world)
        due = settings.save_ckpt_interval and step % settings.save_ckpt_interval == 0
        if due or step == training.total or short_of_memory:
            with timer.phase("checkpoint"):
                groups, state = _snapshot(training)
                folder.save(step, groups, state, settings.save_max_ckpt_num)
        bar.set_postfix(record.shown, refresh=False)
        bar.update(1)
        if short_of_memory:
            raise UserError(
                f"step {step}: the host's memory is more than {monitor.host_max_memory_threshold:.0%} used; "
                "a checkpoint was written, go on with --resume_training on a host with more memory or a smaller batch"
            )
    bar.close()


def _log(task: Task[InputsT], folder: RunFolder, step: int, record: StepRecord, seconds: dict[str, float]) -> None:
    speed = {"tokens_per_second": record.metrics["tokens"] / seconds[f"seconds/{task.phase}"]}
    folder.log(step, record.metrics | seconds | speed)
    if record.samples:
        folder.log_samples(step, record.samples)


def _is_short_of_memory(monitor: MonitorConfig, world: World) -> bool:
    """The fullest host decides for all: every rank must take the same way."""
    if not monitor.host_memory_protection:
        return False
    used = all_gather(world, np.array([host_memory_used_fraction()]), "memory of the hosts").max()
    return bool(used > monitor.host_max_memory_threshold)


def _snapshot(training: Training) -> tuple[dict[str, Shards], dict[str, Any]]:
    """This rank's slices of everything that a run goes on from, as they are until the next step, and the counters."""
    weights = training.weights()
    groups = {"actor": weights["actor"], "optimizer": training.train.snapshot()} | weights
    return groups, {"updates": training.train.updates} | training.counters()


def _report(folder: Path, title: str) -> None:
    from r1parallel.monitor.report.report import write_report  # brings matplotlib: not before the first step

    print(f"report: {write_report(folder, title)}", flush=True)
