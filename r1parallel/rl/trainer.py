"""GRPO (Shao et al. 2024): actor, reference and generator of one run, and what one step does with them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from r1parallel.config import RunConfig
from r1parallel.config.model import ModelConfig
from r1parallel.data.batches import RowOrder
from r1parallel.data.mindrecord import Rows
from r1parallel.data.tokenizer import Tokenizer
from r1parallel.errors import UserError
from r1parallel.generation.engine import RolloutEngine
from r1parallel.models.fused import choose_operators
from r1parallel.models.parameters import TensorSource, load_slices
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.parallel.model_layout import model_layout
from r1parallel.parallel.waiting import waiting
from r1parallel.parallel.world import World
from r1parallel.rl.experience import Experience, batched_logps, collect
from r1parallel.rl.metrics import reward_metrics, update_metrics
from r1parallel.rl.models import Actor, Reference, Slots, WeightSync
from r1parallel.rl.scoring import score_on_leader
from r1parallel.rl.update import TokenStatistics, run_update, update_batches
from r1parallel.training.schedule import learning_rate


@dataclass
class StepResult:
    """Metrics and completions of one step."""

    metrics: dict[str, float]
    experience: Experience
    prompts: list[str]
    completions: list[str]
    solutions: list[str]


class GRPOTrainer:
    """Everything a step needs. Shape letters as in `rl/experience.py`; G completions a prompt.

    Every rank makes one and calls the same methods; what they return is the same on every rank.

    Args:
        config: checked.
        model_config: sizes of all three models.
        rows: prompts and gold answers.
        tokenizer: decodes completions for the rewards.
        world: which rank this is.
    """

    def __init__(self, config: RunConfig, model_config: ModelConfig, rows: Rows, tokenizer: Tokenizer, world: World):
        settings, generate = config.rl_config, config.generate_config
        self.config, self.rows, self.tokenizer, self.world = config, rows, tokenizer, world
        self.group = settings.num_generations
        self.prompts_per_step = settings.chunk_size * generate.parallel_config.data_parallel * settings.num_rollouts
        self.completions_per_step = self.prompts_per_step * self.group
        self.order = RowOrder(len(rows.prompt_ids), self.prompts_per_step, settings.seed)
        self.total = settings.max_steps or settings.epochs * self.order.steps_per_epoch
        self.slots = Slots(_longest_prompt(config, rows), generate.sampling_config.max_tokens)
        actor = config.actor_config.parallel_config
        self.update_rows = settings.batch_size * actor.data_parallel * actor.micro_batch_num
        updates = settings.num_iterations * self.completions_per_step // self.update_rows
        self._make_engine(config, model_config)
        self.actor = Actor(config, model_config, self.slots, updates, world)
        self.train = self.actor.train
        self.reference = Reference(config, model_config, self.slots, world) if settings.beta > 0 else None
        self._to_generator = WeightSync(self.actor, self.engine.model, self.generator_layout, world)
        self._to_reference = None
        if self.reference is not None and config.ref_config.sync_ref_model:
            self._to_reference = WeightSync(self.actor, self.reference.model, self.reference.layout, world)

    def _make_engine(self, config: RunConfig, model_config: ModelConfig) -> None:
        generate, sampling = config.generate_config, config.generate_config.sampling_config
        stop_ids = sampling.eos_token_id or self.tokenizer.stop_ids
        self.pad_id = self.tokenizer.pad_token_id if sampling.pad_token_id < 0 else sampling.pad_token_id
        self.generator_layout = model_layout(config, model_config, "generate", self.world.size)
        self.engine = RolloutEngine(
            model_config,
            sampling,
            generate.infer_model_batch_size,
            self.slots.prompt,
            stop_ids,
            self.pad_id,
            self.generator_layout.mesh,
            self.world,
            choose_operators(config.context.compute_dtype, trained=False),
        )

    def load(self, actor: TensorSource, reference: TensorSource | None) -> None:
        """Set the weights of actor, reference (where there is one; None: the actor's) and generator."""
        load_slices(self.actor.model, actor, self.actor.layout, self.world.rank)
        if self.reference is not None:
            load_slices(self.reference.model, reference or actor, self.reference.layout, self.world.rank)
        self._to_generator()

    def run_step(self, number: int, timer: PhaseTimer, progress: bool) -> StepResult:
        """Step `number` (from 0): rollout, rewards, log-probs, updates, new weights for the generator."""
        experience, prompts, completions, solutions = self._rollout(number, timer, progress)
        self._add_logps(number, experience, timer, progress)
        with timer.phase("update"):
            statistics = self._update(number, experience)
        with timer.phase("sync"):
            self._to_generator()
            if self._to_reference is not None and (number + 1) % self.config.ref_config.ref_model_sync_steps == 0:
                self._to_reference()
        metrics = update_metrics(statistics) | reward_metrics(experience, self.group)
        metrics["tokens"] = float(experience.lengths.sum())
        return StepResult(metrics, experience, prompts, completions, solutions)

    def _rollout(
        self, number: int, timer: PhaseTimer, progress: bool
    ) -> tuple[Experience, list[str], list[str], list[str]]:
        chosen = np.repeat(self.order.indices(number), self.group)
        prompt_ids = [self.rows.prompt_ids[i, : self.rows.prompt_lengths[i]].tolist() for i in chosen]
        first = number * self.completions_per_step
        with timer.phase("rollout"), waiting("rollout"):
            samples = range(first, first + len(chosen))
            drawn = self.engine.generate(prompt_ids, self.config.rl_config.seed, samples, progress)
        with timer.phase("reward"):
            prompts = [self.tokenizer.decode(ids) for ids in prompt_ids]
            completions = [self.tokenizer.decode(drawn.ids(row)) for row in range(len(chosen))]
            solutions = [self.rows.solutions[i] for i in chosen]
            scores = score_on_leader(self.config.reward_config, prompts, completions, solutions, self.world)
        experience = collect(prompt_ids, chosen, drawn, scores, self.group, self.slots.prompt, self.pad_id)
        return experience, prompts, completions, solutions

    def _add_logps(self, number: int, experience: Experience, timer: PhaseTimer, progress: bool) -> None:
        if self.actor.old_logps is not None:
            with timer.phase("old_logps"):
                self.actor.before_old_logps()
                # A kernel rounds the last elements of an array in another way: take the first pass's order.
                order = np.concatenate([rows for iteration, rows in self._batches(number) if iteration == 0])
                experience.old_logps = batched_logps(
                    self.actor.old_logps, self.actor.micro_rows, experience, order, "old", progress
                )
        if self.reference is not None:
            with timer.phase("reference"):
                order = np.arange(self.completions_per_step)
                experience.ref_logps = batched_logps(
                    self.reference.logps, self.reference.rows, experience, order, "reference", progress
                )

    def _batches(self, number: int) -> Iterator[tuple[int, np.ndarray]]:
        settings = self.config.rl_config
        return update_batches(
            self.completions_per_step, self.update_rows, settings.num_iterations, [settings.seed, number]
        )

    def _update(self, number: int, experience: Experience) -> TokenStatistics:
        settings, statistics = self.config.rl_config, TokenStatistics()
        for iteration, rows in self._batches(number):
            lr = learning_rate(self.config.actor_config.lr_schedule, self.train.updates)
            where = f"step {number + 1}"
            run_update(self.train, experience, rows, settings.beta, lr, where, statistics, iteration == 0)
        return statistics


def _longest_prompt(config: RunConfig, rows: Rows) -> int:
    """P, the prompt slots that this data set needs."""
    longest, limit = int(rows.prompt_lengths.max()), config.generate_config.max_prompt_length
    if longest > limit:
        raise UserError(
            f"{config.rl_config.dataset_file}: has prompts of {longest} tokens; "
            f"generate_config.max_prompt_length is {limit}"
        )
    return longest
