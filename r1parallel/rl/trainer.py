"""GRPO (Shao et al. 2024): actor, reference and generator of one run, and what one step does with them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from mindspore import nn

from r1parallel.config import RunConfig
from r1parallel.config.model import ModelConfig
from r1parallel.data.batches import RowOrder
from r1parallel.data.mindrecord import Rows
from r1parallel.data.tokenizer import Tokenizer
from r1parallel.errors import UserError
from r1parallel.generation.engine import RolloutEngine
from r1parallel.models.logps import CompletionLogps
from r1parallel.models.parameters import copy_parameters, load_parameters
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.parallel.mesh import Mesh
from r1parallel.parallel.parallelize import parallelize
from r1parallel.rewards import score
from r1parallel.rl.experience import Experience, batched_logps, collect
from r1parallel.rl.losses import GRPOLoss
from r1parallel.rl.metrics import reward_metrics, update_metrics
from r1parallel.rl.update import TokenStatistics, run_update, update_batches
from r1parallel.training.schedule import learning_rate
from r1parallel.training.step import TrainStep


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

    Args:
        config: checked.
        model_config: sizes of all three models.
        rows: prompts and gold answers.
        tokenizer: decodes completions for the rewards.
    """

    def __init__(self, config: RunConfig, model_config: ModelConfig, rows: Rows, tokenizer: Tokenizer):
        settings, generate = config.rl_config, config.generate_config
        sampling = generate.sampling_config
        self.config, self.rows, self.tokenizer = config, rows, tokenizer
        self.group = settings.num_generations
        self.prompts_per_step = settings.chunk_size * generate.parallel_config.data_parallel * settings.num_rollouts
        self.completions_per_step = self.prompts_per_step * self.group
        self.micro_rows = settings.batch_size
        self.update_rows = settings.batch_size * config.actor_config.parallel_config.micro_batch_num
        self.order = RowOrder(len(rows.prompt_ids), self.prompts_per_step, settings.seed)
        self.total = settings.max_steps or settings.epochs * self.order.steps_per_epoch
        self.prompt_length = int(rows.prompt_lengths.max())
        if self.prompt_length > generate.max_prompt_length:
            raise UserError(
                f"{settings.dataset_file}: has prompts of {self.prompt_length} tokens; "
                f"generate_config.max_prompt_length is {generate.max_prompt_length}"
            )
        stop_ids = sampling.eos_token_id or tokenizer.stop_ids
        pad_id = tokenizer.pad_token_id if sampling.pad_token_id < 0 else sampling.pad_token_id
        self.pad_id = pad_id
        self.engine = RolloutEngine(
            model_config, sampling, generate.infer_model_batch_size, self.prompt_length, stop_ids, pad_id
        )
        slots = self.prompt_length + sampling.max_tokens
        self.actor = Qwen2ForCausalLM(model_config, slots)
        self.reference = Qwen2ForCausalLM(model_config, slots) if settings.beta > 0 else None
        for model in (self.actor, self.reference):
            if model is not None:
                parallelize(model, Mesh(dp=1, pp=1, tp=1))
        updates = settings.num_iterations * self.completions_per_step // self.update_rows
        loss = GRPOLoss(
            self._logps(self.actor, self.micro_rows),
            settings.epsilon_low,
            settings.epsilon_high,
            settings.beta,
            on_policy=updates == 1,
        )
        self.train = TrainStep(loss, self.actor.trainable_params(), config.actor_config.optimizer)
        # Same graph, same rows in the same places as in training: the log-probs come out equal to the last bit.
        self._old_logps = self._logps(self.actor, self.micro_rows) if updates > 1 else None
        self._ref_logps = (
            self._logps(self.reference, config.ref_config.ref_model_batch_size) if self.reference else None
        )
        for cell in (self._old_logps, self._ref_logps):
            if cell is not None:
                cell.set_train(False)

    def _logps(self, model: nn.Cell, rows: int) -> CompletionLogps:
        return CompletionLogps(model, rows, self.prompt_length, self.config.generate_config.sampling_config.max_tokens)

    def load(self, actor: dict[str, np.ndarray], reference: dict[str, np.ndarray] | None, source: str) -> None:
        """Set the weights of actor, reference (where there is one) and generator."""
        load_parameters(self.actor, actor, source)
        if self.reference is not None:
            load_parameters(self.reference, actor if reference is None else reference, source)
        copy_parameters(self.actor, self.engine.model)

    def run_step(self, number: int, timer: PhaseTimer, progress: bool) -> StepResult:
        """Step `number` (from 0): rollout, rewards, log-probs, updates, new weights for the generator."""
        experience, prompts, completions, solutions = self._rollout(number, timer, progress)
        self._add_logps(number, experience, timer, progress)
        with timer.phase("update"):
            statistics = self._update(number, experience)
        with timer.phase("sync"):
            copy_parameters(self.actor, self.engine.model)
            ref = self.config.ref_config
            if self.reference is not None and ref.sync_ref_model and (number + 1) % ref.ref_model_sync_steps == 0:
                copy_parameters(self.actor, self.reference)
        metrics = update_metrics(statistics) | reward_metrics(experience, self.group)
        metrics["tokens"] = float(experience.lengths.sum())
        return StepResult(metrics, experience, prompts, completions, solutions)

    def _rollout(
        self, number: int, timer: PhaseTimer, progress: bool
    ) -> tuple[Experience, list[str], list[str], list[str]]:
        chosen = np.repeat(self.order.indices(number), self.group)
        prompt_ids = [self.rows.prompt_ids[i, : self.rows.prompt_lengths[i]].tolist() for i in chosen]
        first = number * self.completions_per_step
        with timer.phase("rollout"):
            drawn = self.engine.generate(
                prompt_ids, self.config.rl_config.seed, range(first, first + len(chosen)), progress
            )
        with timer.phase("reward"):
            prompts = [self.tokenizer.decode(ids) for ids in prompt_ids]
            completions = [self.tokenizer.decode(drawn.ids(row)) for row in range(len(chosen))]
            solutions = [self.rows.solutions[i] for i in chosen]
            reward = self.config.reward_config
            scores = score(
                reward.verifier_function,
                reward.verifier_weight,
                prompts,
                completions,
                solutions,
                reward.time_limit,
            )
        experience = collect(prompt_ids, chosen, drawn, scores, self.group, self.prompt_length, self.pad_id)
        return experience, prompts, completions, solutions

    def _add_logps(self, number: int, experience: Experience, timer: PhaseTimer, progress: bool) -> None:
        if self._old_logps is not None:
            with timer.phase("old_logps"):
                # A kernel rounds the last elements of an array in another way: take the first pass's order.
                order = np.concatenate([rows for iteration, rows in self._batches(number) if iteration == 0])
                experience.old_logps = batched_logps(
                    self._old_logps, self.micro_rows, experience, order, "old", progress
                )
        if self._ref_logps is not None:
            rows = self.config.ref_config.ref_model_batch_size
            with timer.phase("reference"):
                order = np.arange(self.completions_per_step)
                experience.ref_logps = batched_logps(self._ref_logps, rows, experience, order, "reference", progress)

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
            run_update(
                self.train,
                experience,
                rows,
                self.micro_rows,
                settings.beta,
                lr,
                where,
                statistics,
                iteration == 0,
            )
        return statistics
