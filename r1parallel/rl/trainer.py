"""One GRPO step: rollout, rewards, log-probs, optimizer updates, weight sync."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import RunConfig
from r1parallel.data.mindrecord import DatasetRows
from r1parallel.data.text.tokenizer import Tokenizer
from r1parallel.errors import UserError
from r1parallel.generation.engine import RolloutEngine
from r1parallel.generation.make_engine import make_engine
from r1parallel.models.parameters import TensorSource, load_slices
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.parallel.launch.waiting import waiting
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.from_config import layout_from_config
from r1parallel.rl.experience.experience import Experience, collect, compute_advantages
from r1parallel.rl.experience.rollout import Draw, Rollout
from r1parallel.rl.experience.rows import RowShape
from r1parallel.rl.metrics import completion_kl, experience_metrics, reward_errors, reward_metrics, update_metrics
from r1parallel.rl.models import Actor, Reference, WeightSync, to_generator
from r1parallel.rl.objective.correction import check_gap, gap_limit, rollout_gap
from r1parallel.rl.objective.kl import Beta
from r1parallel.rl.update import Batch, TokenStatistics, Update, run_update, update_batches
from r1parallel.training.schedule import learning_rate


@dataclass
class StepResult:
    """Metrics and completions of one step."""

    metrics: dict[str, float]
    experience: Experience
    draw: Draw


class Trainer:
    """Everything a step needs. Shape letters as in `rl/experience/experience.py`; G completions a prompt.

    Every rank makes one and calls the same methods; what they return is the same on every rank.

    Args:
        config: checked.
        model_config: sizes of all three models.
        rows: prompts and gold answers.
        tokenizer: decodes completions for the rewards.
        world: which rank this is.
    """

    def __init__(
        self, config: RunConfig, model_config: ModelConfig, rows: DatasetRows, tokenizer: Tokenizer, world: World
    ):
        settings = config.rl_config
        self.config, self.world, self.beta = config, world, Beta(settings, settings.beta)
        self.gap_limit = gap_limit(settings, config.context.compute_dtype)
        self.shape = row_shape(config, rows)
        self.generator_layout = layout_from_config(config, model_config, "generate", world.size)
        engine = self._make_engine(model_config, tokenizer)
        self.rollout = Rollout(config, rows, tokenizer, engine, world)
        self.engine, self.total = engine, settings.max_steps or settings.epochs * self.rollout.order.steps_per_epoch
        updates = len(list(self._samples(0)))
        self.actor = Actor(config, model_config, self.shape, updates, world)
        self.train, self._only_one = self.actor.train, updates == 1
        self.reference = Reference(config, model_config, self.shape, world) if settings.beta > 0 else None
        self._to_generator = to_generator(self.actor, engine, self.generator_layout, world)
        self._to_reference = None
        if self.reference is not None and config.ref_config.sync_ref_model:
            self._to_reference = WeightSync(self.actor, self.reference.model, self.reference.layout, world)

    def _make_engine(self, model_config: ModelConfig, tokenizer: Tokenizer) -> RolloutEngine:
        mesh = self.generator_layout.mesh
        engine = make_engine(self.config, model_config, self.shape.prompt, tokenizer, mesh=mesh, world=self.world)
        self.pad_id = engine.pad_id
        return engine

    def load(self, actor: TensorSource, reference: TensorSource | None) -> None:
        """Set the weights of actor, reference (where there is one; None: the actor's) and generator."""
        load_slices(self.actor.model, actor, self.actor.layout, self.world.rank)
        if self.reference is not None:
            load_slices(self.reference.model, reference or actor, self.reference.layout, self.world.rank)
        if self._to_generator is not None:
            self._to_generator()

    def run_step(self, number: int, timer: PhaseTimer, progress: bool) -> StepResult:
        """Step `number` (from 0): rollout, rewards, log-probs, updates, new weights for the generator."""
        settings = self.config.rl_config
        draw = self.rollout.draw(number, timer, progress)
        experience = self._collect(draw)
        metrics = reward_metrics(experience, settings.num_generations)
        metrics["tokens"] = float(experience.lengths.sum())
        if settings.dynamic_sampling:
            refill = self.rollout.refill(draw, number, timer, progress)
            experience = self._collect(draw)
            metrics |= refill | reward_errors(draw.scores)
            metrics["tokens"] += refill["refill_tokens"]
        batches = self._batches(number, experience)
        self._add_logps(number, experience, batches, timer, progress)
        compute_advantages(experience, settings, self.beta.value)
        with timer.phase("update"):
            statistics = self._update(number, experience, batches)
        with timer.phase("sync"):
            if self._to_generator is not None:
                self._to_generator()
            if self._to_reference is not None and (number + 1) % self.config.ref_config.ref_model_sync_steps == 0:
                self._to_reference()
        metrics |= update_metrics(statistics, settings) | experience_metrics(experience, settings)
        if self.reference is not None:
            metrics["beta"] = self.beta.value
            self.beta.move(completion_kl(experience, settings), len(experience.lengths))
        metrics["graphs"] = float(self.graphs)
        return StepResult(metrics, experience, draw)

    @property
    def graphs(self) -> int:
        """Number of graphs compiled so far."""
        forward = [self.actor.old_logps, self.reference.logps if self.reference is not None else None]
        return self.engine.graphs + self.train.graphs + sum(len(cell.compile_cache) for cell in forward if cell)

    def _collect(self, draw: Draw) -> Experience:
        settings, prompt_slots = self.config.rl_config, self.shape.prompt
        return collect(draw.prompt_ids, draw.prompt_rows, draw.drawn, draw.scores, settings, prompt_slots, self.pad_id)

    def _samples(self, number: int) -> list[tuple[int, np.ndarray]]:
        """(pass, samples) of every update of step `number`."""
        settings, count = self.config.rl_config, self.rollout.completions_per_step
        actor = self.config.actor_config.parallel_config
        whole = count if settings.packing else settings.batch_size * actor.data_parallel * actor.micro_batch_num
        size = settings.mini_batch_size or whole
        return list(update_batches(count, size, settings.num_iterations, [settings.seed, number]))

    def _batches(self, number: int, experience: Experience) -> list[Batch]:
        return [
            Batch(iteration, samples, self.shape.rows(experience, samples, self.train.rows))
            for iteration, samples in self._samples(number)
        ]

    def _add_logps(
        self, number: int, experience: Experience, batches: Sequence[Batch], timer: PhaseTimer, progress: bool
    ) -> None:
        # A kernel rounds the last elements of an array in another way: take the rows as the first pass does.
        first = [batch for batch in batches if batch.iteration == 0]
        if self.actor.old_logps is not None:
            with timer.phase("old_logps"):
                self.actor.before_old_logps()
                self._logps("old", self.actor.old_logps, self.actor.micro_rows, experience, first, progress)
            gap = rollout_gap(experience.old_logps, experience.rollout_logps, experience.learned)
            check_gap(gap, self.gap_limit, f"step {number + 1}")
        if self.reference is not None:
            with timer.phase("reference"):
                self._logps("ref", self.reference.logps, self.reference.rows, experience, first, progress)

    def _logps(
        self,
        whose: str,
        logps: Callable[[Tensor, Tensor], Tensor] | nn.Cell,
        rows: int,
        experience: Experience,
        batches: Sequence[Batch],
        progress: bool,
    ) -> None:
        """Fill in the old or the reference log-probs, `rows` graph rows at a time."""
        into = experience.old_logps if whose == "old" else experience.ref_logps
        for batch in tqdm(batches, desc=whose, unit="batch", leave=False, disable=None if progress else True):
            for part in self.shape.rows(experience, batch.samples, rows).parts(rows):
                with waiting(f"{whose} log-probs"):
                    part.put(logps(Tensor(part.tokens), Tensor(part.row_data)).asnumpy(), into)

    def _update(self, number: int, experience: Experience, batches: Sequence[Batch]) -> TokenStatistics:
        statistics = TokenStatistics()
        for batch in batches:
            update = Update(
                batch=batch,
                beta=self.beta.value,
                lr=learning_rate(self.config.actor_config.lr_schedule, self.train.updates),
                step_name=f"step {number + 1}",
                on_policy=self._only_one,
                has_old_logps=self.actor.old_logps is not None,
                gap_limit=self.gap_limit,
            )
            run_update(self.train, experience, update, self.config.rl_config, statistics=statistics)
        return statistics


def row_shape(config: RunConfig, rows: DatasetRows) -> RowShape:
    """The graph rows that this data set needs.

    Raises:
        UserError: a prompt is longer than `max_prompt_length`, or a packed row shorter than one sample.
    """
    longest, limit = int(rows.prompt_lengths.max()), config.generate_config.max_prompt_length
    if longest > limit:
        raise UserError(
            f"{config.rl_config.dataset_file}: has prompts of {longest} tokens; "
            f"generate_config.max_prompt_length is {limit}"
        )
    settings, completion = config.rl_config, config.generate_config.sampling_config.max_tokens
    if not settings.packing:
        return RowShape(longest, completion)
    needed = longest + completion
    length = settings.pack_length or needed
    if length < needed:
        raise UserError(
            f"rl_config.pack_length is {length}, less than the longest prompt {longest} + "
            f"generate_config.sampling_config.max_tokens {completion} = {needed}; raise it"
        )
    return RowShape(longest, completion, length, settings.num_generations)
