"""GRPO, and every preset of `rl_config.algorithm`, as a task of `training/run.py`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mindspore import nn

from r1parallel.checkpoint.export import save_model_ranks
from r1parallel.checkpoint.load import open_model
from r1parallel.checkpoint.writing.shards import Shards
from r1parallel.config.loading.load import GRPO_SECTIONS
from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import RunConfig
from r1parallel.models.parameters import TensorSource, parameter_values
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.rewards import check_reward_names
from r1parallel.rl.experience.rows import RowShape
from r1parallel.rl.models import Actor
from r1parallel.rl.trainer import StepResult, Trainer
from r1parallel.training.inputs import Inputs, fingerprint, load_inputs
from r1parallel.training.run import StepRecord, Task, run


def _read_inputs(config: RunConfig) -> Inputs:
    settings = config.rl_config
    check_reward_names(config.reward_config.verifier_function)
    return load_inputs(config.actor_config.model_config, settings.tokenizer_dir, settings.dataset_file)


class GRPOTraining:
    """A run's `Trainer` as `run` sees it; see `Training`."""

    def __init__(self, config: RunConfig, trainer: Trainer, model_config: ModelConfig):
        self._config, self._trainer, self._model_config = config, trainer, model_config
        self.train, self.total = trainer.train, trainer.total

    def identity(self) -> dict[str, Any]:
        rollout, settings = self._trainer.rollout, self._config.rl_config
        return {
            "data_set": fingerprint(rollout.rows),
            "prompts_per_step": rollout.prompts_per_step,
            "num_generations": rollout.group,
            "seed": settings.seed,
            "beta": settings.beta,  # 0 keeps no reference model, also not in the checkpoints
        }

    def layouts(self) -> dict[str, ModelLayout]:
        layouts = {"actor": self._trainer.actor.layout, "generate": self._trainer.generator_layout}
        if self._trainer.reference is not None:
            layouts["ref"] = self._trainer.reference.layout
        return layouts

    def load(self) -> None:
        actor, reference = self._config.actor_config.load, self._config.ref_config.load
        own_reference = None
        if reference and self._trainer.reference is not None:
            own_reference = open_model(reference, self._model_config)
        self._trainer.load(open_model(actor, self._model_config), own_reference)

    def restore(self, sources: Mapping[str, TensorSource], state: Mapping[str, Any]) -> None:
        self._trainer.load(sources["actor"], sources.get("reference"))
        # Checkpoints from before there was an adaptive beta keep none: theirs is the configuration's.
        self._trainer.beta.value = state.get("beta", self._config.rl_config.beta)

    def run_step(self, number: int, timer: PhaseTimer) -> StepRecord:
        progress = self._config.monitor_config.progress_bar and self._trainer.world.is_leader
        with timer.phase("step"):
            result = self._trainer.run_step(number, timer, progress)
        shown = {"reward": f"{result.metrics.get('reward_mean', float('nan')):.3f}"}
        settings = self._config.rl_config
        due = settings.save_prompt_completions_data and (number + 1) % settings.save_prompt_completions_interval == 0
        samples = _samples(result, self._config.monitor_config.num_samples) if due else []
        return StepRecord(result.metrics, shown, samples)

    def weights(self) -> dict[str, Shards]:
        actor, reference, rank = self._trainer.actor, self._trainer.reference, self._trainer.world.rank
        weights = {"actor": Shards(actor.layout, actor.values())}
        if reference is not None:
            values = parameter_values(reference.model, reference.layout, rank, copy=False)
            weights["reference"] = Shards(reference.layout, values)
        return weights

    def counters(self) -> dict[str, Any]:
        return {"beta": self._trainer.beta.value}


def _samples(result: StepResult, count: int) -> list[dict[str, Any]]:
    """Lines of samples.jsonl: `count` completions of a step, spread over all, so that several groups are seen."""
    draw, experience, total = result.draw, result.experience, len(result.draw.prompts)
    count = min(count, total)
    return [
        {
            "prompt": draw.prompts[row],
            "completion": draw.completions[row],
            "solution": draw.solutions[row],
            "reward": float(experience.rewards[row]),
            "parts": {name: float(values[row]) for name, values in experience.scores.parts.items()},
            "length": int(experience.lengths[row]),
        }
        for row in (i * total // count for i in range(count))
    ]


def _build(config: RunConfig, inputs: Inputs, world: World) -> GRPOTraining:
    trainer = Trainer(config, inputs.model, inputs.rows, inputs.tokenizer, world)
    return GRPOTraining(config, trainer, inputs.model)


def _compile_actor(config: RunConfig, model_config: ModelConfig, slots: int, world: World) -> nn.Cell:
    return Actor(config, model_config, shortest_rows(config, slots), updates=1, world=world).model


def shortest_rows(config: RunConfig, slots: int) -> RowShape:
    """Rows of `slots` prompt tokens and `slots` completion tokens, packed where the run's are."""
    shape = RowShape(slots, slots)
    return replace(shape, pack_length=shape.length) if config.rl_config.packing else shape


GRPO = Task(
    name="grpo",
    title=lambda config: f"GRPO of {config.rl_config.model_name}",
    section="rl_config",
    sections=GRPO_SECTIONS,
    phase="step",
    read_inputs=_read_inputs,
    build=_build,
    save_model=save_model_ranks,
    compile_actor=_compile_actor,
)


def run_grpo(config: RunConfig) -> Path:
    """Train as configured; returns the folder of the final model, see `run`."""
    return run(GRPO, config)
